package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asVictim makes the test binary a confined process that is taken over: its arguments are what
// happens at a system call that is not allowed, and the number of the attempt it makes, or "all".
const asVictim = "-as-victim"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == asVictim {
		os.Exit(victim(Action(os.Args[2]), os.Args[3]))
	}
	os.Exit(m.Run())
}

// attempt is something that a process which carries packets has no business to do.
type attempt struct {
	name string
	do   func() error
}

// before are things a victim opened while it could.
type before struct {
	dir, ns, file, pidfd int
}

func sys(nr uintptr, args ...uintptr) func() error {
	return func() error {
		a := append(args, 0, 0, 0, 0, 0, 0)
		if _, _, errno := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

func str(s string) uintptr {
	p, _ := unix.BytePtrFromString(s)
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

// kept are strings that only system calls refer to.
var kept []any

func attempts(b before) []attempt {
	const here = ^uintptr(99) // AT_FDCWD, -100
	dir, ns, file, pidfd := uintptr(b.dir), uintptr(b.ns), uintptr(b.file), uintptr(b.pidfd)
	space := make([]uint64, 64)
	kept = append(kept, space)
	mem := uintptr(unsafe.Pointer(&space[0]))
	root, name := str("/"), str("x")
	iov := &unix.Iovec{Base: (*byte)(unsafe.Pointer(&space[8])), Len: 8}
	kept = append(kept, iov)
	vec := uintptr(unsafe.Pointer(iov))
	return []attempt{
		{"open a directory", sys(unix.SYS_OPENAT, here, root, unix.O_RDONLY)},
		{"open a path only", sys(unix.SYS_OPENAT, here, root, unix.O_PATH)},
		{"open by a directory left open", sys(unix.SYS_OPENAT, dir, str("etc/passwd"), unix.O_RDONLY)},
		{"openat2", sys(unix.SYS_OPENAT2, dir, str("etc"), mem, 24)},
		{"open_by_handle_at", sys(unix.SYS_OPEN_BY_HANDLE_AT, dir, mem, 0)},
		{"make a file", sys(unix.SYS_OPENAT, here, name, unix.O_CREAT|unix.O_WRONLY, 0o600)},
		{"make a directory", sys(unix.SYS_MKDIRAT, here, name, 0o700)},
		{"make a device", sys(unix.SYS_MKNODAT, here, name, unix.S_IFCHR|0o600, 0x103)},
		{"make a symbolic link", sys(unix.SYS_SYMLINKAT, root, here, name)},
		{"remove a file", sys(unix.SYS_UNLINKAT, dir, str("etc/nothing"), 0)},
		{"rename", sys(unix.SYS_RENAMEAT2, dir, name, dir, str("y"), 0)},
		{"change a mode", sys(unix.SYS_FCHMODAT, here, root, 0o777)},
		{"change an owner", sys(unix.SYS_FCHOWNAT, here, root, 0, 0, 0)},
		{"change the working directory", sys(unix.SYS_FCHDIR, dir)},
		{"chroot", sys(unix.SYS_CHROOT, root)},
		{"pivot_root", sys(unix.SYS_PIVOT_ROOT, root, root)},
		{"mount", sys(unix.SYS_MOUNT, str("proc"), root, str("proc"), 0, 0)},
		{"unmount", sys(unix.SYS_UMOUNT2, root, unix.MNT_DETACH)},
		{"open_tree", sys(unix.SYS_OPEN_TREE, dir, str(""), unix.AT_EMPTY_PATH)},
		{"fsopen", sys(unix.SYS_FSOPEN, str("tmpfs"), 0)},
		{"execute a file", sys(unix.SYS_EXECVE, str("/bin/true"), mem, mem)},
		{"execute by a directory left open", sys(unix.SYS_EXECVEAT, dir, str("bin/true"), mem, mem, 0)},
		{"execute memory", sys(unix.SYS_MEMFD_CREATE, name, 0)},
		{"executable memory", sys(sysMmap, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE, ^uintptr(0))},
		{"map a file", sys(sysMmap, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE, file)},
		{"make memory executable", sys(unix.SYS_MPROTECT, mem&^4095, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC)},
		{"a new process", func() error {
			pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_VFORK|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if errno == 0 && pid == 0 {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			if errno != 0 {
				return errno
			}
			return nil
		}},
		{"clone3", sys(unix.SYS_CLONE3, mem, 64)},
		{"a new user namespace", sys(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)},
		{"a new network namespace", sys(unix.SYS_UNSHARE, unix.CLONE_NEWNET)},
		{"enter a namespace left open", sys(unix.SYS_SETNS, ns, 0)},
		{"trace oneself", sys(unix.SYS_PTRACE, unix.PTRACE_TRACEME)},
		{"trace another", sys(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1)},
		{"read another's memory", sys(unix.SYS_PROCESS_VM_READV, 1, vec, 1, vec, 1, 0)},
		{"write another's memory", sys(unix.SYS_PROCESS_VM_WRITEV, 1, vec, 1, vec, 1, 0)},
		{"kcmp", sys(unix.SYS_KCMP, 1, 1, 0, 0, 0)},
		{"kill everybody", sys(unix.SYS_KILL, ^uintptr(0), 0)},
		{"signal a thread of another", sys(unix.SYS_TGKILL, 2, 2, 0)},
		{"signal by a descriptor left open", sys(unix.SYS_PIDFD_SEND_SIGNAL, pidfd, 0, 0, 0)},
		{"take a descriptor", sys(unix.SYS_PIDFD_GETFD, pidfd, 0, 0)},
		{"another's descriptor", sys(unix.SYS_PIDFD_OPEN, 1, 0)},
		{"a raw socket", sys(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		{"a packet socket", sys(unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW, 0x0300)},
		{"a UNIX socket", sys(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)},
		{"a pair of sockets", sys(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, mem)},
		{"a netlink socket", sys(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)},
		{"a vsock", sys(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{"the kernel's cryptography", sys(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0)},
		{"type on the terminal", sys(unix.SYS_IOCTL, 0, unix.TIOCSTI, mem)},
		{"io_uring", sys(unix.SYS_IO_URING_SETUP, 1, mem)},
		{"bpf", sys(unix.SYS_BPF, 0, mem, 64)},
		{"perf_event_open", sys(unix.SYS_PERF_EVENT_OPEN, mem, 0, ^uintptr(0), ^uintptr(0), 0)},
		{"userfaultfd", sys(unix.SYS_USERFAULTFD, 1)},
		{"add_key", sys(unix.SYS_ADD_KEY, str("user"), name, mem, 8, ^uintptr(2))},
		{"keyctl", sys(unix.SYS_KEYCTL, 0, ^uintptr(2), 1)},
		{"request_key", sys(unix.SYS_REQUEST_KEY, str("user"), name, 0, 0)},
		{"a module", sys(unix.SYS_FINIT_MODULE, file, root, 0)},
		{"another kernel", sys(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0)},
		{"reboot", sys(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF)},
		{"set the clock", sys(unix.SYS_CLOCK_SETTIME, 0, mem)},
		{"set the host name", sys(unix.SYS_SETHOSTNAME, name, 1)},
		{"become another user", sys(unix.SYS_SETRESUID, 1, 1, 1)},
		{"drop the filter's promise", sys(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1)},
		{"another filter", sys(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, mem)},
		{"get capabilities back", sys(unix.SYS_CAPSET, mem, mem)},
		{"raise a limit", sys(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, 0, mem)},
		{"the kernel's log", sys(unix.SYS_SYSLOG, 3, mem, 64)},
		{"shared memory", sys(unix.SYS_SHMGET, 0, 4096, unix.IPC_CREAT|0o600)},
		{"a message queue", sys(unix.SYS_MSGGET, 0, unix.IPC_CREAT|0o600)},
		{"list extended attributes", sys(unix.SYS_LISTXATTR, root, mem, 64)},
	}
}

// victim confines itself and does one thing or all. It says "done" to what worked, and the names.
func victim(action Action, which string) int {
	var b before
	var err error
	if b.dir, err = unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
		if b.ns, err = unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0); err == nil {
			if b.file, err = unix.Open("/proc/self/exe", unix.O_RDONLY, 0); err == nil {
				b.pidfd, err = unix.PidfdOpen(os.Getpid(), 0)
			}
		}
	}
	if err != nil {
		fmt.Println("prepare:", err)
		return 1
	}
	tell := func(text string) { fmt.Println(text) }
	f, err := Confine(Options{Mode: Pasta, Filter: action, Info: tell, Warn: tell})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if f.Partial {
		return 77
	}
	all := attempts(b)
	if which != "all" {
		i, err := strconv.Atoi(which)
		if err != nil {
			return 1
		}
		all = all[i : i+1]
	}
	for _, a := range all {
		if err := a.do(); err == nil {
			fmt.Println("done:", a.name)
		}
	}
	fmt.Println("end")
	return 0
}

// takeOver runs a victim in namespaces of its own.
func takeOver(t *testing.T, action Action, which string) (string, syscall.WaitStatus) {
	t.Helper()
	const all = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID
	return run(t, all, action, which)
}

// run runs a victim in the given namespaces, a user namespace among them.
func run(t *testing.T, namespaces uintptr, action Action, which ...string) (string, syscall.WaitStatus) {
	t.Helper()
	c := exec.Command("/proc/self/exe", asVictim, string(action), strings.Join(append(which, "all")[:1], ""))
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  namespaces,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("needs user namespaces: %v", err)
	}
	ws := c.ProcessState.Sys().(syscall.WaitStatus)
	if ws.ExitStatus() == 77 {
		t.Skip("linked with a C library, which is not confined")
	}
	return string(out), ws
}

// TestForbiddenThingsFail has a victim go on after each attempt.
func TestForbiddenThingsFail(t *testing.T) {
	if n := len(attempts(before{})); n < 40 {
		t.Fatalf("%d attempts", n)
	}
	out, ws := takeOver(t, deny, "all")
	if out != "end\n" || ws.ExitStatus() != 0 {
		t.Errorf("status %#x, output %q; want that nothing is done", ws, out)
	}
}

// TestForbiddenThingsKill has a fresh victim for each attempt.
func TestForbiddenThingsKill(t *testing.T) {
	for i, a := range attempts(before{}) {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			out, ws := takeOver(t, Kill, strconv.Itoa(i))
			if !ws.Signaled() || ws.Signal() != unix.SIGSYS || out != "" {
				t.Errorf("status %#x, output %q; want death by SIGSYS", ws, out)
			}
		})
	}
}

// TestWithoutTheFilter: what root, capabilities and Landlock take away does not come back when the
// filter is not there. What an unprivileged process without a file may do in any case is left.
func TestWithoutTheFilter(t *testing.T) {
	left := map[string]bool{
		"open a path only": true, "executable memory": true, "map a file": true, "make memory executable": true,
		"execute memory": true, "a new process": true, "a UNIX socket": true, "a pair of sockets": true,
		"a netlink socket": true, "a vsock": true, "the kernel's cryptography": true, "io_uring": true,
		"userfaultfd": true, "add_key": true, "keyctl": true, "request_key": true, "a new user namespace": true,
		"trace oneself": true, "another's descriptor": true, "another filter": true, "raise a limit": true,
		"shared memory": true, "a message queue": true, "drop the filter's promise": true, "kcmp": true, "clone3": true,
		"change the working directory": true, "signal by a descriptor left open": true, "take a descriptor": true,
		"list extended attributes": true, "kill everybody": true, "bpf": true, "read another's memory": true,
		"write another's memory": true, "perf_event_open": true, "open_tree": true,
	}
	for i, a := range attempts(before{}) {
		if left[a.name] {
			continue
		}
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			if out, ws := takeOver(t, Off, strconv.Itoa(i)); out != "end\n" || ws.ExitStatus() != 0 {
				t.Errorf("status %#x, output %q; want that it fails", ws, out)
			}
		})
	}
}

func TestLandlockRules(t *testing.T) {
	for abi := 1; abi <= 9; abi++ {
		for _, late := range []bool{false, true} {
			attr, what := landlockRules(abi, late)
			if attr.Handled_access_fs&unix.LANDLOCK_ACCESS_FS_READ_FILE == 0 || len(what) == 0 {
				t.Errorf("version %d: %+v %v", abi, attr, what)
			}
			if ports := attr.Handled_access_net != 0; ports != (abi >= landlockTCP && !late) {
				t.Errorf("version %d, late ports %v: ports %#x", abi, late, attr.Handled_access_net)
			}
			if got := strings.Contains(strings.Join(what, " "), "abstract"); got != (abi >= landlockScopes) {
				t.Errorf("version %d: %v", abi, what)
			}
		}
	}
}
