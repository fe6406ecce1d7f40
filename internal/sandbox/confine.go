package sandbox

import (
	"fmt"
	"runtime"
	"strings"
	"time"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"
)

// Options say what a translator will still need.
type Options struct {
	Mode Mode

	// Filter is what happens at a system call that is not allowed.
	Filter Action

	// LatePorts says that ports may have to be opened to listen on, low ones among them:
	// it keeps CAP_NET_BIND_SERVICE, if the process has it.
	LatePorts bool

	// ChrootFallback makes do with chroot(2) where pivot_root(2) is refused.
	ChrootFallback bool

	// Info and Warn are told what a user may want to know, and should.
	Info, Warn func(message string)
}

// InForce is what Confine has achieved.
type InForce struct {
	Root string // how the empty root was entered
	Caps Caps   // what is left, of this thread if Partial

	Calls  int    // number of system calls allowed; 0 if there is no filter
	Filter Action // what happens at others

	Landlock string // what it denies, "" if the kernel does not have it

	// Partial is set in a program linked with a C library: other threads keep their
	// capabilities.
	Partial bool
}

// stepError tells which step failed, in words other implementations use.
type stepError struct {
	what string
	err  error
}

func (e *stepError) Error() string {
	text := e.err.Error()
	return e.what + ": " + strings.ToUpper(text[:1]) + text[1:]
}

func (e *stepError) Unwrap() error { return e.err }

// Confine confines the process for good. The process must have a mount namespace of its own and
// CAP_SYS_ADMIN in it. After an error it is partly confined and good for nothing but to end.
func Confine(o Options) (InForce, error) {
	var f InForce
	var err error
	readLate()
	if f.Root, err = emptyRoot(o.ChrootFallback); err != nil {
		return f, err
	}
	if f.Root == "chroot" {
		o.Info("Failed to pivot_root(), fallback to chroot()...")
	}
	var keep Caps
	if o.LatePorts {
		keep = 1 << unix.CAP_NET_BIND_SERVICE
	}
	if f.Caps, f.Partial, err = keepCaps(keep); err != nil {
		return f, err
	}
	if f.Partial && !raceEnabled {
		o.Warn("Built with cgo: only a part of the sandbox is in force")
	}
	if err := hide(); err != nil {
		return f, err
	}
	if f.Landlock, err = landlock(o.LatePorts); err != nil {
		return f, err
	}
	if f.Filter = o.Filter; f.Partial {
		f.Filter = Off // its system calls are not ours
	}
	if f.Filter == Off {
		return f, nil
	}
	f.Calls, err = filter(o.Mode, Carrying, f.Filter)
	return f, err
}

// Start has the translator that this process is, which has promised to take no new privileges, make
// no system calls but those it needs until Confine, and those it needs then. It returns how many
// they are, 0 if there is no filter.
func Start(mode Mode, action Action) (calls int, err error) {
	return phase(mode, Starting, action)
}

// Wait has the launcher that this process is make no system calls but those it needs to wait for
// its children, which are untouched by that, and tell of their end. It returns how many they are.
func Wait(mode Mode, action Action, children ...int) (calls int, err error) {
	readLate()
	return phase(mode, Waiting, action, children...)
}

func phase(mode Mode, phase Phase, action Action, children ...int) (int, error) {
	if action == Off || iscgo {
		return 0, nil // in a program linked with a C library, system calls are not ours
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The filter takes this to the other threads.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("set no_new_privs: %w", err)
	}
	return filter(mode, phase, action, children...)
}

// iscgo reports whether the program is linked with a C library.
//
//go:linkname iscgo runtime.iscgo
var iscgo bool

// promise sets no_new_privs: nothing we do gives rights, and nothing may. The filters and Landlock
// need that. All threads have it if it was made before this program was executed.
func promise() (partial bool, err error) {
	if partial, err = allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		err = fmt.Errorf("set no_new_privs: %w", err)
	}
	return partial, err
}

// readLate has Go's library read the files that it would otherwise look for later, in vain.
func readLate() {
	_, _ = time.Now().Zone() // the time zone
}

// Hide keeps other processes of the user, and the root of a user namespace that this process enters
// without executing a program, from its memory and descriptors: it is not dumpable (prctl(2),
// PTRACE_MODE_READ in ptrace(2)). A change of credentials undoes that where the system is set so
// (fs.suid_dumpable).
func Hide() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	return nil
}

// hide keeps the memory of the process from others: a core file would contain what the guest
// sends, and the keys of sequence numbers.
func hide() error {
	if err := Hide(); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core files off: %w", err)
	}
	if on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && on == 1 {
		return nil
	}
	_, err := promise()
	return err
}
