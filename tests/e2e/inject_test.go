package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// injectVariable has the test binary execute its arguments where some system calls, whose numbers
// it has as JSON, are decided upon by who has the other end of descriptor 3 (seccomp_unotify(2)).
const injectVariable = "FUSILLI_E2E_INJECT"

// notice is struct seccomp_notif of linux/seccomp.h: somebody waits in a system call.
type notice struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

// verdict is struct seccomp_notif_resp: what the call returns, or that it is to go on.
type verdict struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// injector decides, while a program runs, which of its system calls fail.
type injector struct {
	fd int // the listener of seccomp(2)

	mu    sync.Mutex
	fails map[int32]failing
	hits  int
}

// failing is with what a system call fails, and where: nil for anywhere.
type failing struct {
	errno unix.Errno
	where func(*notice) bool
}

// fail has the calls with these numbers fail from now on, and no others.
func (j *injector) fail(f failing, calls ...int32) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.hits = 0
	j.fails = make(map[int32]failing)
	for _, nr := range calls {
		j.fails[nr] = f
	}
}

// stop has none fail any more, and returns how many have since fail.
func (j *injector) stop() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fails = nil
	return j.hits
}

func (j *injector) decide(n *notice) verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	if f, ok := j.fails[n.nr]; ok && (f.where == nil || f.where(n)) {
		j.hits++
		return verdict{id: n.id, errno: -int32(f.errno)}
	}
	return verdict{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
}

// run decides until nobody is left who could ask.
func (j *injector) run() {
	defer unix.Close(j.fd)
	for {
		p := []unix.PollFd{{Fd: int32(j.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err == unix.EINTR {
			continue
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notice
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(j.fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue // a signal has taken it back
		}
		v := j.decide(&n)
		unix.Syscall(unix.SYS_IOCTL, uintptr(j.fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&v)))
	}
}

// onTap reports whether the call's first argument is a descriptor of a tap.
func onTap(n *notice) bool {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", n.pid, n.args[0]))
	return err == nil && strings.Contains(string(info), "\niff:")
}

// injecting has cmd, which the caller starts, run where an injector decides about calls. started is
// to be called when that has been done.
func injecting(t *testing.T, cmd *exec.Cmd, calls ...int32) (j *injector, started func()) {
	t.Helper()
	self, err := bed.Provide("/proc/self/exe", "inject")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "inject")
	cmd.Path, cmd.Args = self, append([]string{self}, cmd.Args...)
	cmd.Env = append(os.Environ(), injectVariable+"="+string(text))
	cmd.ExtraFiles = []*os.File{theirs}
	j = &injector{fd: -1}
	return j, func() {
		t.Helper()
		theirs.Close()
		defer unix.Close(pair[0])
		oob := make([]byte, 64)
		patient := unix.NsecToTimeval(limit.Nanoseconds())
		unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patient)
		_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			t.Fatal("no listener: ", err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) == 0 {
			t.Fatalf("no listener: %v", err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			t.Fatal(err)
		}
		j.fd = fds[0]
		go j.run()
	}
}

// injected is the test binary's part as the one that executes its arguments.
func injected(text string) int {
	var calls []uint32
	err := json.Unmarshal([]byte(text), &calls)
	if err == nil {
		os.Unsetenv(injectVariable)
		err = inject(calls, os.Args[1:])
	}
	fmt.Fprintln(os.Stderr, "inject:", err)
	return 125
}

// inject executes argv with a filter that asks about calls. It returns only if that fails.
func inject(calls []uint32, argv []string) error {
	const (
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	// the number of the call
	prog := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}}
	for _, nr := range calls {
		prog = append(prog, unix.SockFilter{Code: equal, K: nr, Jf: 1}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	prog = append(prog, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	unix.CloseOnExec(3)
	// Only this thread has the filter, and becomes the program. Another one, which need not ask,
	// sends.
	listener, sent := make(chan int), make(chan error)
	go func() { sent <- unix.Sendmsg(3, []byte{0}, unix.UnixRights(<-listener), nil, 0) }()
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&fprog)))
	if e != 0 {
		return os.NewSyscallError("seccomp", e)
	}
	listener <- int(fd)
	if err := <-sent; err != nil {
		return err
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

// connectInjected is connect, for a program whose calls fail when j says so.
func connectInjected(t *testing.T, b *bed.Bed, calls []int32, args ...string) (c *connection, j *injector) {
	t.Helper()
	ctx := patience(t, limit)
	c = &connection{Bed: b}
	var err error
	if c.target, err = b.Target(ctx); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(scratch(t), "pid")
	args = append([]string{"-f", "-P", pidFile, "--config-net", "--no-map-gw", "-q"}, args...)
	cmd := exec.Command(program, append(args, strconv.Itoa(c.target.PID))...)
	j, started := injecting(t, cmd, calls...)
	if c.proc, err = b.Host.Spawn(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.end(t) })
	started()
	err = bed.Wait(ctx, "the PID file", func() (bool, error) {
		select {
		case <-c.proc.Done():
			return false, fmt.Errorf("%v ended with status %d: %s", args, c.proc.Status(), c.proc.Stderr())
		default:
		}
		text, err := os.ReadFile(pidFile)
		return err == nil && strings.HasSuffix(string(text), "\n"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, j
}
