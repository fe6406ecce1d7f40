package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/internal/restart"
)

// keptCaps are the capabilities a translator may need whoever it runs as: to enter and
// configure the namespace, to bind low ports in it, to open it by way of /proc, and to make do
// with chroot(2).
const keptCaps = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_CHROOT

// maxCap is the highest capability a kernel may come to know: numbers beyond the last one it
// knows are refused, which does no harm.
const maxCap = 63

// clone says how a translator comes to be: this program, begun anew (package restart).
type clone struct {
	link *os.File // becomes linkFD of the new process

	// user is whom to become, or nil. Capabilities survive the change.
	user *User

	// userNS is the user namespace to enter, or nil.
	userNS *os.File

	// newUser creates a user namespace without any id map inside userNS.
	newUser bool

	// mapped starts with a user namespace in which our user is root.
	mapped bool

	// holder, if not nil, is started in the same user namespace, in a PID namespace of its own, and
	// holderPID is set.
	holder    *preparedHolder
	holderPID int

	// flags are the CLONE_NEW* of the namespaces to create inside userNS, or 0. A
	// process in a new PID namespace is its first.
	flags uintptr

	// procs is how many of its threads run Go code at a time; 0 is Go's choice.
	procs int

	// exposed is set by start where the process had to execute this program instead: why, unless it
	// is that it is linked with a C library, which package sandbox says. The root of its user
	// namespace may look into the process then.
	exposed error
}

// Steps of the child that can fail, as told to the parent.
const (
	stepExec    = iota
	stepRestart // no failure: it executes a program instead
	stepMaps
	stepHolder
	stepGroup
	stepUser
	stepUserNS
	stepNewUser
	stepClone
	stepPrivs
	stepLink
)

// childReport is what the child writes to a pipe: its successor's PID, that of a holder, or what
// failed.
type childReport struct {
	pid    uintptr
	holder uintptr
	step   uintptr
	errno  syscall.Errno
}

// start starts the process and returns when it begins. The child is the caller's, who waits for it.
func (c *clone) start() (pid int, err error) {
	report, low, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer report.Close()
	reported, err := aboveLink(low)
	low.Close()
	if err != nil {
		return 0, err
	}
	defer reported.Close()
	link, err := aboveLink(c.link)
	if err != nil {
		return 0, err
	}
	defer link.Close()

	p, err := c.prepare(link, reported)
	if err != nil {
		return 0, err
	}
	if p.image, err = restart.Prepare(os.Args, c.environ(stageBegun), linkFD+1); err != nil && !errors.Is(err, restart.ErrCgo) {
		c.exposed = err
	}
	defer p.image.Close()
	syscall.ForkLock.Lock()
	first, errno := cloneSelf(p)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(c)
	reported.Close()
	if errno != 0 && c.mapped {
		return 0, c.failure(childReport{step: stepMaps, errno: errno})
	}
	if errno != 0 {
		return 0, fmt.Errorf("clone: %w", errno)
	}

	// Reports come from each process that does not get to begin a program; at the end of
	// file, none is left to fail.
	var r childReport
	for {
		var next childReport
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&next)), unsafe.Sizeof(next))
		if _, err := io.ReadFull(report, raw); err != nil {
			break
		}
		if next.pid != 0 {
			r.pid = next.pid
		}
		if next.holder != 0 {
			c.holderPID = int(next.holder)
		}
		switch {
		case next.errno == 0:
		case next.step == stepRestart:
			c.exposed = next.errno
		default:
			r.step, r.errno = next.step, next.errno
		}
	}
	if r.pid != 0 || r.errno != 0 {
		reap(int(first))
	}
	if r.errno != 0 {
		if r.pid != 0 {
			reap(int(r.pid))
		}
		if c.holderPID != 0 {
			(&child{pid: c.holderPID}).kill()
		}
		return 0, c.failure(r)
	}
	if r.pid != 0 {
		first = r.pid
	}
	return int(first), nil
}

func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (c *clone) failure(r childReport) error {
	switch r.step {
	case stepGroup:
		return cannotChange("GID", c.user.GID, r.errno)
	case stepUser:
		return cannotChange("UID", c.user.UID, r.errno)
	case stepUserNS:
		return Failf("Couldn't enter user namespace %s: %s", c.userNS.Name(), whyNot(r.errno, "a user namespace"))
	case stepNewUser, stepMaps:
		return Failf("Couldn't create user namespace: %s", Reason(r.errno))
	case stepHolder:
		return cannotCreate(r.errno)
	case stepClone:
		return isolateError{r.errno}
	case stepPrivs:
		return fmt.Errorf("set no_new_privs: %w", r.errno)
	case stepLink:
		return fmt.Errorf("pass the link on: %w", r.errno)
	}
	return fmt.Errorf("run %s again: %w", selfPath, r.errno)
}

// isolateError tells that a translator cannot have namespaces of its own.
type isolateError struct{ error }

func (e isolateError) Error() string {
	return "Failed to detach isolating namespaces: " + Reason(e.error)
}

const selfPath = "/proc/self/exe"

// prepared is a clone as the child needs it: memory that is allocated already.
type prepared struct {
	image      *restart.Image // or nil
	name       *byte
	path       *byte
	argv, envv []*byte
	link       uintptr
	report     uintptr
	become     bool
	uid, gid   uintptr
	enter      bool
	userNS     uintptr
	newUser    bool
	start      uintptr // CLONE_NEWUSER, or 0
	uidMap     string  // of that
	gidMap     string
	holder     *preparedHolder
	flags      uintptr
}

func (c *clone) prepare(link, reported *os.File) (*prepared, error) {
	p := &prepared{
		link:    link.Fd(),
		report:  reported.Fd(),
		newUser: c.newUser,
		holder:  c.holder,
		flags:   c.flags,
	}
	var err error
	if p.name, err = syscall.BytePtrFromString(filepath.Base(os.Args[0])); err != nil {
		return nil, err
	}
	if p.path, err = syscall.BytePtrFromString(selfPath); err != nil {
		return nil, err
	}
	if p.argv, err = syscall.SlicePtrFromStrings(os.Args); err != nil {
		return nil, err
	}
	if p.envv, err = syscall.SlicePtrFromStrings(c.environ(stageExecuted)); err != nil {
		return nil, err
	}
	if c.mapped {
		p.start = unix.CLONE_NEWUSER
		p.uidMap, p.gidMap = fmt.Sprintf("0 %d 1\n", os.Geteuid()), fmt.Sprintf("0 %d 1\n", os.Getegid())
	}
	if c.user != nil {
		p.become, p.uid, p.gid = true, uintptr(c.user.UID), uintptr(c.user.GID)
	}
	if c.userNS != nil {
		p.enter, p.userNS = true, c.userNS.Fd()
	}
	return p, nil
}

// translatorVariables are the variables that a translator is given: the time zone of a log,
// and what switches of Go's runtime a developer sets.
var translatorVariables = []string{"TZ", "GORACE", "GOTRACEBACK", "GOCOVERDIR", FilterVariable}

// environ is the environment of a translator, which has no use for its caller's.
func (c *clone) environ(stage string) []string {
	env := []string{StageVariable + "=" + stage}
	if c.procs > 0 {
		// To change it when the program runs is to stop it, which takes 1 ms or more.
		env = append(env, "GOMAXPROCS="+strconv.Itoa(c.procs))
	}
	for _, name := range translatorVariables {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// cloneSelf clones this process, and begins the program anew in the child. It returns in the parent
// only; what fails in the child is written to p.report.
//
// The child has one thread and a copy of a heap whose owners are gone. Until the program begins
// it must not allocate, grow its stack, be preempted or take a lock: all it
// needs is declared here and in p, signals are blocked by beforeFork, and it calls
// nothing but raw system calls. Package syscall starts processes in the same way; its
// own function cannot be used because it enters no namespace.
//
//go:noinline
//go:norace
//go:nocheckptr
func cloneSelf(p *prepared) (pid uintptr, errno syscall.Errno) {
	var (
		r    childReport
		head unix.CapUserHeader
		caps [2]unix.CapUserData
		bit  uintptr
	)

	beforeFork()
	pid, errno = rawClone(p.start)
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()

	if p.start != 0 {
		// The id maps belong to the real root while we are not dumpable.
		syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0, 0, 0, 0)
		r.step = stepMaps
		if r.errno = overwrite(pathUIDMap, p.uidMap); r.errno != 0 {
			goto fail
		}
		overwrite(pathSetgroups, "deny") // Linux 3.19, and needed since
		if r.errno = overwrite(pathGIDMap, p.gidMap); r.errno != 0 {
			goto fail
		}
	}
	if p.become {
		// Without the kernel's help here, the change of user takes all
		// capabilities away; with it, they stay permitted.
		syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0, 0)
		syscall.RawSyscall6(unix.SYS_SETGROUPS, 0, 0, 0, 0, 0, 0) // not allowed in some namespaces
		r.step = stepGroup
		if _, _, r.errno = syscall.RawSyscall6(unix.SYS_SETRESGID, p.gid, p.gid, p.gid, 0, 0, 0); r.errno != 0 {
			goto fail
		}
		r.step = stepUser
		if _, _, r.errno = syscall.RawSyscall6(unix.SYS_SETRESUID, p.uid, p.uid, p.uid, 0, 0, 0); r.errno != 0 {
			goto fail
		}
		head.Version = unix.LINUX_CAPABILITY_VERSION_3
		syscall.RawSyscall6(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&caps[0])), 0, 0, 0, 0)
		caps[0].Effective, caps[1].Effective = caps[0].Permitted, caps[1].Permitted
		syscall.RawSyscall6(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&caps[0])), 0, 0, 0, 0)
	}
	if p.enter {
		r.step = stepUserNS
		if _, _, r.errno = syscall.RawSyscall6(unix.SYS_SETNS, p.userNS, unix.CLONE_NEWUSER, 0, 0, 0, 0); r.errno != 0 {
			goto fail
		}
	}
	if p.newUser {
		r.step = stepNewUser
		if _, _, r.errno = syscall.RawSyscall6(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0, 0, 0, 0); r.errno != 0 {
			goto fail
		}
	}
	// The launcher is not, but a change of credentials has it as the system wants.
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0)
	if p.holder != nil {
		r.step = stepHolder
		pid, r.errno = rawClone(unix.CLONE_NEWPID | unix.CLONE_PARENT)
		if r.errno != 0 {
			goto fail
		}
		if pid == 0 {
			hold(p.holder)
		}
		r.holder = pid
		syscall.RawSyscall6(unix.SYS_WRITE, p.report, uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r), 0, 0, 0)
	}
	if p.flags&unix.CLONE_NEWPID == 0 && p.flags != 0 {
		r.step = stepClone
		if _, _, r.errno = syscall.RawSyscall6(unix.SYS_UNSHARE, p.flags, 0, 0, 0, 0, 0); r.errno != 0 {
			goto fail
		}
	}
	if p.flags&unix.CLONE_NEWPID != 0 { // a process cannot change its own
		r.step = stepClone
		pid, r.errno = rawClone(p.flags | unix.CLONE_PARENT)
		if r.errno != 0 {
			goto fail
		}
		if pid != 0 { // tell who our successor is, and go
			r.pid = pid
			goto fail
		}
	}

	// It is prepared for a sandbox: the bounding set is empty, what is not in keptCaps is given up
	// and can never be had again, and no program gives rights. What is left survives the execution
	// of a program, too, by a user that is not root here. All of this may fail without harm: then
	// nothing was permitted, and whoever needs it gets told. What is inheritable must be in the
	// bounding set when it becomes so, and to empty that set takes one of the capabilities that are
	// given up.
	head.Version = unix.LINUX_CAPABILITY_VERSION_3
	syscall.RawSyscall6(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&caps[0])), 0, 0, 0, 0)
	caps[0].Inheritable = caps[0].Permitted & keptCaps
	caps[1].Inheritable = 0
	syscall.RawSyscall6(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&caps[0])), 0, 0, 0, 0)
	for bit = 0; bit <= maxCap; bit++ {
		syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0, 0, 0, 0)
	}
	caps[0].Permitted, caps[0].Effective = caps[0].Inheritable, caps[0].Inheritable
	caps[1] = unix.CapUserData{}
	syscall.RawSyscall6(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&caps[0])), 0, 0, 0, 0)
	for bit = 0; bit < 32; bit++ {
		if caps[0].Inheritable&(1<<bit) != 0 {
			syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, bit, 0, 0, 0)
		}
	}
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0, 0)
	r.step = stepPrivs
	if _, _, r.errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); r.errno != 0 {
		goto fail
	}
	r.step = stepLink
	if _, _, r.errno = syscall.RawSyscall6(unix.SYS_DUP3, p.link, linkFD, 0, 0, 0, 0); r.errno != 0 {
		goto fail
	}
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(p.name)), 0, 0, 0, 0)
	if p.image != nil {
		r.step, r.errno = stepRestart, p.image.Begin()
		syscall.RawSyscall6(unix.SYS_WRITE, p.report, uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r), 0, 0, 0)
	}
	r.step = stepExec
	_, _, r.errno = syscall.RawSyscall6(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.path)),
		uintptr(unsafe.Pointer(&p.argv[0])), uintptr(unsafe.Pointer(&p.envv[0])), 0, 0, 0)

fail:
	syscall.RawSyscall6(unix.SYS_WRITE, p.report, uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r), 0, 0, 0)
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 1, 0, 0, 0, 0, 0)
	}
}
