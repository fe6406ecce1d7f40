package process

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const maxHostName = 64 // HOST_NAME_MAX

// holder is the first process of fresh namespaces, as its launcher sees it: a clone of the launcher
// that runs hold until it executes the command.
type holder struct {
	*child
	netNS  *os.File // of the namespaces, once they are there
	missed furnishing
}

// furnishing is what could not be done to make namespaces habitable. Nothing in it is worth failing
// for: some containers forbid one or the other.
type furnishing struct{ proc, ping, name syscall.Errno }

// Stages of a holder. What it reports in one of them is a failure if there is an error number with
// it.
const (
	stageNamespaces uintptr = iota // create and furnish them
	stageNetNS                     // open its network namespace for the launcher
	stageCommand                   // after the release: execute the command
)

// holderReport is a message of a holder.
type holderReport struct {
	stage  uintptr
	errno  syscall.Errno
	missed furnishing
}

// prepareHolder makes ready what a holder needs, whose link is to be theirs. The file it returns
// beside is part of that, and to be closed when the holder runs.
func (l *launcher) prepareHolder(theirs *os.File) (*preparedHolder, *os.File, error) {
	command, err := prepareCommand(l.spec.Command)
	if err != nil {
		return nil, nil, err
	}
	link, err := aboveLink(theirs)
	if err != nil {
		return nil, nil, err
	}
	forgetFiles()
	p := &preparedHolder{link: link.Fd(), hostName: hostName(l.spec.HostName, l.log), command: *command}
	p.compose()
	return p, link, nil
}

// await waits until the namespaces are there, or a failure.
func (h *holder) await() error {
	for h.netNS == nil {
		if err := h.receive(0); err != nil {
			return err
		}
	}
	return nil
}

// failed returns why a holder has not executed the command, nil if it has told of no failure.
func (h *holder) failed() error {
	err := h.receive(unix.MSG_DONTWAIT)
	if errors.Is(err, errNoReport) {
		return nil
	}
	return err
}

var errNoReport = errors.New("the first process of the namespaces was killed")

// receive takes one report. It is an error if that tells of a failure, or if there is none and
// never will be.
func (h *holder) receive(flags int) error {
	var r holderReport
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))
	var oob [holderFiles]byte
	n, oobn, err := recvmsg(int(h.link.Fd()), raw, oob[:], flags)
	switch {
	case err != nil || n != len(raw):
		return errNoReport
	case r.errno != 0 && r.stage == stageNetNS:
		return Failf("Couldn't open network namespace: %s", Reason(r.errno))
	case r.errno != 0 && r.stage == stageCommand:
		return Failf("Failed to start command or shell: %s", Reason(r.errno))
	case r.errno != 0:
		return cannotCreate(r.errno)
	}
	fds, err := rights(oob[:oobn])
	if err != nil || len(fds) != 1 {
		return errNoReport
	}
	h.netNS, h.missed = os.NewFile(uintptr(fds[0]), fdNetNS), r.missed
	return nil
}

// cannotCreate tells why there are no namespaces for a command.
func cannotCreate(err error) error {
	if errors.Is(err, unix.EPERM) {
		return Failf("Couldn't create namespaces: %s: that takes root's rights in the user namespace, "+
			"as in the new one that there is without --userns and --netns-only", Reason(err))
	}
	return Failf("Couldn't create namespaces: %s", Reason(err))
}

// warn tells what namespaces the command has to do without.
func (f furnishing) warn(log *zap.Logger) {
	if f.proc != 0 {
		log.Warn("Couldn't mount /proc: " + Reason(f.proc))
	}
	if f.ping != 0 {
		log.Warn("Cannot set ping_group_range, ICMP requests might fail: " + Reason(f.ping))
	}
	if f.name != 0 {
		log.Warn("Couldn't set the host name: " + Reason(f.name))
	}
}

// hostName is the host name for fresh namespaces.
func hostName(given string, log *zap.Logger) string {
	if given != "" {
		return given
	}
	current, err := os.Hostname()
	if err != nil {
		log.Warn("Couldn't get the host name: " + Reason(err))
	}
	name := "pasta-" + current
	return name[:min(len(name), maxHostName)]
}

// forgetFiles gives the limit on open files back that Go's runtime raised at start, so that the
// command has the one the user set: package syscall remembers it, and does this before it executes
// a program. There is none of that name.
func forgetFiles() { syscall.Exec("", nil, nil) }

// preparedCommand is a command as hold needs it: memory that is allocated already.
type preparedCommand struct {
	tries      []try
	search     bool // in a list of directories
	argv, envv []*byte
}

// try is one path to execute.
type try struct {
	path   *byte
	script []*byte // arguments of a shell that interprets it
}

// prepareCommand makes ready to execute a command, or the user's shell if there is none, as
// execvp(3) does: a name without a slash is looked for in PATH, and a file the kernel does not know
// is a shell script.
func prepareCommand(command []string) (*preparedCommand, error) {
	file, argv := "", command
	if len(command) > 0 {
		file = command[0]
	} else {
		file = os.Getenv("SHELL")
		switch {
		case file == "":
			file = "/bin/sh"
		case len(file) >= unix.PathMax:
			return nil, Failf("$SHELL is too long (%d bytes)", len(file))
		}
		argv = []string{"-" + file}
	}
	c := &preparedCommand{search: !strings.Contains(file, "/")}
	var err error
	if c.argv, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return nil, err
	}
	if c.envv, err = syscall.SlicePtrFromStrings(os.Environ()); err != nil {
		return nil, err
	}
	for _, path := range candidates(file) {
		script, err := syscall.SlicePtrFromStrings([]string{shell, path})
		if err != nil {
			return nil, err
		}
		script = append(script[:2], c.argv[1:]...)
		c.tries = append(c.tries, try{script[1], script})
	}
	return c, nil
}

const shell = "/bin/sh"

// candidates are the paths that file may be at.
func candidates(file string) []string {
	if file == "" {
		return nil
	}
	if strings.Contains(file, "/") {
		return []string{file}
	}
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	var paths []string
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		paths = append(paths, dir+"/"+file)
	}
	return paths
}
