package process

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const maxHostName = 64 // HOST_NAME_MAX

// Hold makes fresh namespaces habitable, waits until they are connected, and becomes the
// command. It returns only if that fails, with a message for the user, or with nil if
// there is no launcher any more to wait for.
func Hold(start *Start, spec Spec, log *zap.Logger) error {
	// The death signal is the thread's, and so is its end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	furnish(spec.HostName, log)
	log.Sync() // nothing of us is left to write when the command runs

	if word, err := receive(linkFD); err != nil || word != release {
		return nil
	}
	if start.hello.BeUser {
		if err := become(start.hello.User); err != nil {
			return err
		}
	}
	if spec.UserNS != "" {
		if err := dropInherited(); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return err
	}
	return run(spec.Command)
}

// furnish does what a command expects of its namespaces. Nothing in it is worth failing
// for: some containers forbid one or the other.
func furnish(hostName string, log *zap.Logger) {
	// Without a user namespace of our own, mounts would show up outside.
	err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err != nil {
		log.Warn("Couldn't mount /proc: " + Reason(err))
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
		log.Warn("Cannot set ping_group_range, ICMP requests might fail: " + Reason(err))
	}
	if hostName == "" {
		current, err := os.Hostname()
		if err != nil {
			log.Warn("Couldn't get the host name: " + Reason(err))
		}
		hostName = "pasta-" + current
		hostName = hostName[:min(len(hostName), maxHostName)]
	}
	if err := unix.Sethostname([]byte(hostName)); err != nil {
		log.Warn("Couldn't set the host name: " + Reason(err))
	}
}

// dropInherited gives up the capabilities that only brought this process here, through
// the execution of a program, into a namespace that was there before.
func dropInherited() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return err
	}
	caps[0].Inheritable, caps[1].Inheritable = 0, 0
	return unix.Capset(&head, &caps[0])
}

// run becomes the command, or the user's shell if there is none. syscall.Exec gives the
// limit on open files back that Go's runtime raised at start.
func run(command []string) error {
	file, argv := "", command
	if len(command) > 0 {
		file = command[0]
	} else {
		file = os.Getenv("SHELL")
		switch {
		case file == "":
			file = "/bin/sh"
		case len(file) >= unix.PathMax:
			return Failf("$SHELL is too long (%d bytes)", len(file))
		}
		argv = []string{"-" + file}
	}
	return Failf("Failed to start command or shell: %s", Reason(search(file, argv)))
}

// search executes file as execvp(3) does: a name without a slash is looked for in PATH,
// and a file the kernel does not know is a shell script. It returns why that failed.
func search(file string, argv []string) error {
	if file == "" {
		return unix.ENOENT
	}
	if strings.Contains(file, "/") {
		return execute(file, argv)
	}
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	result := error(unix.ENOENT)
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		err := execute(dir+"/"+file, argv)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		case errors.Is(err, unix.EACCES):
			result = err // tell this one unless a later directory has it
		default:
			return err
		}
	}
	return result
}

func execute(path string, argv []string) error {
	err := syscall.Exec(path, argv, os.Environ())
	if errors.Is(err, unix.ENOEXEC) {
		script := append([]string{"/bin/sh", path}, argv[1:]...)
		err = syscall.Exec("/bin/sh", script, os.Environ())
	}
	return err
}
