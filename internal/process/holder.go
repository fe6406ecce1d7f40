package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const maxHostName = 64 // HOST_NAME_MAX

// holder is the first process of fresh namespaces, as its launcher sees it: a clone of the launcher
// that runs holderChild until it executes the command.
type holder struct {
	*child

	user    *User // whom to become before the command is executed, or nil
	userNS  *os.File
	private bool    // in a user namespace of its own
	stage   uintptr // the last one it has ended
	next    uintptr // PID of its successor, once it has told
	missed  furnishing
}

// furnishing is what could not be done to make namespaces habitable. Nothing in it is worth failing
// for: some containers forbid one or the other.
type furnishing struct{ proc, ping, name syscall.Errno }

// Stages of a holder, in their order. What a holder reports in one of them is a failure if there is an
// error number with it, and the end of the stage otherwise.
const (
	stageUserNS     uintptr = iota // enter a user namespace
	stageFirst                     // have a successor in a new PID namespace, whose PID comes with it
	stageMaps                      // map IDs
	stageNamespaces                // create the others, and furnish them
	stageGroups                    // after the release: change the user
	stageGroup
	stageUser
	stageCommand // execute the command
)

// holderReport is a message of a holder.
type holderReport struct {
	stage  uintptr
	errno  syscall.Errno
	pid    uintptr    // of a successor
	missed furnishing // in stageNamespaces
}

// startHolder starts the first process of the command's namespaces, inside userNS or, if that is nil,
// inside a user namespace created with them unless spec has it otherwise. The holder goes on by
// itself until it is released; what it is to have done by a moment, await waits for.
func (l *launcher) startHolder(userNS *os.File) error {
	h := &holder{userNS: userNS, private: userNS == nil && l.spec.createsUserNS()}
	if l.change {
		h.user = &l.user
	}
	command, err := prepareCommand(l.spec.Command)
	if err != nil {
		return err
	}
	ours, theirs, err := newLink()
	if err != nil {
		return err
	}
	l.keep(ours)
	link, err := aboveLink(theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	defer link.Close()
	p := &preparedHolder{
		link:     link.Fd(),
		flags:    unix.CLONE_NEWPID,
		command:  *command,
		hostName: hostName(l.spec.HostName, l.log),
	}
	if h.private {
		p.flags |= unix.CLONE_NEWUSER
		p.uidMap = fmt.Sprintf("0 %d 1\n", os.Geteuid())
		p.gidMap = fmt.Sprintf("0 %d 1\n", os.Getegid())
	}
	if userNS != nil {
		p.enter, p.userNS = true, userNS.Fd()
	}
	if h.user != nil {
		p.become, p.uid, p.gid = true, uintptr(h.user.UID), uintptr(h.user.GID)
	}

	l.log.Sync() // nothing of ours is left to write when the command runs
	forgetFiles()
	syscall.ForkLock.Lock()
	pid, errno := cloneHolder(p)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(p)
	link.Close()
	if errno != 0 {
		return h.failure(stageFirst, errno)
	}
	if userNS != nil {
		// Its successor is ours, too, and may be the first to tell something.
		for h.next == 0 && err == nil {
			err = h.receive(int(ours.Fd()), 0)
		}
		reap(int(pid))
		if err != nil {
			return err
		}
		pid = h.next
	}
	h.child = &child{pid: int(pid), link: ours}
	l.holder = h
	return nil
}

// await waits for the end of a stage, or a failure.
func (h *holder) await(stage uintptr) error {
	for h.stage < stage {
		if err := h.receive(int(h.link.Fd()), 0); err != nil {
			return err
		}
	}
	return nil
}

// failed returns why a holder has not executed the command, nil if it has told of no failure.
func (h *holder) failed() error {
	err := h.receive(int(h.link.Fd()), unix.MSG_DONTWAIT)
	if errors.Is(err, errNoReport) {
		return nil
	}
	return err
}

var errNoReport = errors.New("the first process of the namespaces was killed")

// receive takes one report from the holder at the other end of link. It is an error if the report
// tells of a failure, or if there is none and never will be.
func (h *holder) receive(link, flags int) error {
	var r holderReport
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))
	n, _, err := recvmsg(link, raw, nil, flags)
	switch {
	case err != nil || n != len(raw):
		return errNoReport
	case r.errno != 0:
		return h.failure(r.stage, r.errno)
	case r.pid != 0:
		h.next = r.pid
		return nil
	}
	h.stage, h.missed = r.stage, r.missed
	return nil
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

// failure says what a stage failed with.
func (h *holder) failure(stage uintptr, errno syscall.Errno) error {
	switch stage {
	case stageUserNS:
		return Failf("Couldn't enter user namespace %s: %s", h.userNS.Name(), Reason(errno))
	case stageGroups:
		return Failf("Can't drop groups: %s", Reason(errno))
	case stageGroup:
		return Failf("Can't set GID to %d", h.user.GID)
	case stageUser:
		return Failf("Can't set UID to %d", h.user.UID)
	case stageCommand:
		return Failf("Failed to start command or shell: %s", Reason(errno))
	}
	if h.private && stage < stageNamespaces {
		return Failf("Couldn't create user namespace: %s", Reason(errno))
	}
	return Failf("Couldn't create namespaces: %s", Reason(errno))
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
// command has the one the user set: package syscall remembers it, and does this before it executes a
// program. There is none of that name.
func forgetFiles() { syscall.Exec("", nil, nil) }

// preparedCommand is a command as holderChild needs it: memory that is allocated already.
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

// prepareCommand makes ready to execute a command, or the user's shell if there is none, as execvp(3)
// does: a name without a slash is looked for in PATH, and a file the kernel does not know is a shell
// script.
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
