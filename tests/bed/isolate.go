package bed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageVar tells a program that ran itself again how far it has come.
const stageVar = "FUSILLI_BED_STAGE"

// Outside reports whether the program has yet to call [Isolate]: the time to build what
// needs the machine's own network and file system.
func Outside() bool { return os.Getenv(stageVar) == "" }

// Isolate moves the program into namespaces of its own by running it again with the same
// arguments and env added to its environment. Only in that second run does it return with
// inside set; in the first, status is the exit status of the second.
//
// It needs root, or user namespaces open to unprivileged users. It is to be called from
// the main goroutine before any other is started.
func Isolate(env ...string) (inside bool, status int, err error) {
	switch os.Getenv(stageVar) {
	case "":
		status, err = outer(env)
		return false, status, err
	case "init":
		status, err = initProcess()
		return false, status, err
	}
	return true, 0, nil
}

// outer starts the init process and waits for it. Init dies with the calling thread.
func outer(env []string) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := again("init", env)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	err := cmd.Start()
	if err == nil {
		defer interrupts(cmd.Process)()
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return code(exit.Sys().(syscall.WaitStatus)), nil
	}
	if err != nil {
		return 1, fmt.Errorf("make namespaces for the tests: %w", err)
	}
	return 0, nil
}

// initProcess prepares the file system, starts the program proper, and reaps whatever is
// orphaned until the program has ended.
func initProcess() (int, error) {
	if err := mounts(); err != nil {
		return 1, err
	}
	cmd := again("inside", nil)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	defer interrupts(cmd.Process)()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 1, fmt.Errorf("wait: %w", err)
		}
		if pid == cmd.Process.Pid {
			return code(syscall.WaitStatus(ws)), nil
		}
	}
}

// interrupts passes SIGINT on to p until stop is called: a fuzz test ends well by it.
func interrupts(p *os.Process) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	go func() {
		for s := range c {
			p.Signal(s)
		}
	}()
	return func() {
		signal.Stop(c)
		close(c)
	}
}

func again(stage string, env []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(append(os.Environ(), env...), stageVar+"="+stage)
	return cmd
}

// code is the exit status a shell would show.
func code(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// mounts gives the new mount namespace its own /proc, /run and /etc/resolv.conf.
func mounts() error {
	resolv, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		resolv = ""
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.Mkdir("/run/netns", 0o755); err != nil {
		return err
	}
	const text = "nameserver " + FarAddr4 + "\n"
	switch {
	case resolv == "":
		return nil // no file to cover; making one would leave a trace
	case strings.HasPrefix(resolv, "/run/"):
		if err := os.MkdirAll(filepath.Dir(resolv), 0o755); err != nil {
			return err
		}
		return os.WriteFile(resolv, []byte(text), 0o644)
	}
	if err := os.WriteFile("/run/resolv.conf", []byte(text), 0o644); err != nil {
		return err
	}
	if err := unix.Mount("/run/resolv.conf", resolv, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", resolv, err)
	}
	return nil
}

// nobody is the unprivileged user that programs run as.
const nobody = 65534

// credential returns the unprivileged user's, or nil where that user does not exist: in a
// user namespace made by an unprivileged user there is only one.
func credential() *syscall.Credential {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return nil
	}
	var inside, outside, size uint64
	if _, err := fmt.Sscan(string(b), &inside, &outside, &size); err != nil || size <= nobody {
		return nil
	}
	return &syscall.Credential{Uid: nobody, Gid: nobody}
}
