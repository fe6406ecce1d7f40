package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"fusilli/internal/sandbox"
)

// Spec says which namespace to connect and how to stay. The zero value runs the user's
// shell in fresh namespaces, a user namespace among them.
type Spec struct {
	// NetNS is the path of the network namespace to attach to. If it is "", Command
	// runs in fresh namespaces.
	NetNS string

	// Alone says that there is no target: the translator connects what it was passed. It
	// lives in a fresh user namespace, in UserNS or, with KeepUserNS, in our own.
	Alone bool

	// UserNS is the path of the user namespace to join, or "". Fresh namespaces are
	// made inside it.
	UserNS string

	// KeepUserNS makes Command run in our own user namespace.
	KeepUserNS bool

	// Command is the command and its arguments; empty means the user's shell, as a
	// login shell.
	Command []string

	// HostName is the host name inside fresh namespaces; "" means one made from the
	// current name.
	HostName string

	// Foreground keeps the launcher until the translator ends. The command form does
	// so in any case.
	Foreground bool

	// Debug keeps the translator's messages on standard error while a command runs.
	Debug bool

	// LogElsewhere ends them once the translator is ready, even if the launcher stays.
	LogElsewhere bool

	// KeepStderr leaves standard error open, for what is no message, where the launcher
	// stays.
	KeepStderr bool

	// StayWithoutNetNS keeps the translator when NetNS goes away.
	StayWithoutNetNS bool

	// Sandbox is which system calls the translator is allowed once it is ready;
	// 0 means sandbox.Pasta.
	Sandbox sandbox.Mode

	// Filter is what happens at others; "" means that the process is killed.
	Filter sandbox.Action

	// LatePorts says that the translator may have to listen on ports, low ones among them, that
	// are not open when it is ready.
	LatePorts bool

	// Procs is how many threads of the translator run Go code at a time; 0 is Go's choice.
	Procs int

	// ChrootFallback makes do with chroot(2) where pivot_root(2) is refused.
	ChrootFallback bool

	// PIDFile is the path of the PID file, or "".
	PIDFile string

	// Renounce makes the launcher give up its capabilities once the translator is ready, and, where
	// it may and Launch runs on the process's first thread, all directories but /etc and /run.
	Renounce bool

	// Ready, if not nil, is written "1" and closed once the translator is ready.
	Ready *os.File

	// Exit, if not nil, ends everything when it has an event (poll(2)).
	Exit *os.File

	// Made are paths at which the caller has made sockets. They are removed if Launch fails before
	// all that it starts runs; later, nothing may be removed any more (sandbox.Wait).
	Made []string

	// RunAs is the user to become, or nil for the default: nobody when started by the
	// real root, no change otherwise.
	RunAs *User
}

// mode is which system calls our processes are allowed.
func (s *Spec) mode() sandbox.Mode {
	if s.Sandbox == 0 {
		return sandbox.Pasta
	}
	return s.Sandbox
}

// runsCommand reports whether s is the command form.
func (s *Spec) runsCommand() bool { return s.NetNS == "" && !s.Alone }

// stays reports whether the launcher outlives readiness.
func (s *Spec) stays() bool { return s.Foreground || s.runsCommand() }

// createsUserNS reports whether the command gets a user namespace of its own.
func (s *Spec) createsUserNS() bool {
	return s.runsCommand() && s.UserNS == "" && !s.KeepUserNS
}

// failure is an error whose text is the whole message to the user, kept to the letter of
// what other implementations print.
type failure string

func (f failure) Error() string { return string(f) }

// Failf returns an error whose text is the whole message to the user.
func Failf(format string, args ...any) error { return failure(fmt.Sprintf(format, args...)) }

// Reason is err as the C library words it: users and programs know these texts.
func Reason(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}

// openFile opens path for the launcher, close-on-exec.
func openFile(path string, flags int, perm fs.FileMode) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, uint32(perm))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
