package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/internal/sandbox"
)

// StageVariable is set in the environment of the processes a launcher starts, and taken
// out of it before anything else happens. No command ever sees it.
const StageVariable = "FUSILLI_STAGE"

// Values of StageVariable.
const (
	stageBegun    = "1"
	stageExecuted = "2" // where the program could not be begun without that
)

// FilterVariable is for developers: what happens at a system call that a translator is not
// allowed, one of the actions of package sandbox. It is main that reads it.
const FilterVariable = "FUSILLI_SECCOMP"

const (
	// linkFD is the launcher's socket in the processes it starts.
	linkFD = 3

	maxHello  = 4 << 10
	maxAnswer = 16 << 10
	maxFDs    = 8
)

// Role tells a process which part it has.
type Role string

const (
	Launcher   Role = "launcher"   // started by the user
	Translator Role = "translator" // connects the namespace
)

// hello is the first message a launcher sends to a process it starts. Descriptors travel
// beside it, in the order of FDs. As a text it is a line for each of the fields, and for each name.
type hello struct {
	Role   Role
	Origin int64 // start of the launcher, CLOCK_MONOTONIC, ns
	FDs    []string
}

func (h *hello) text() string {
	return strings.Join(append([]string{string(h.Role), strconv.FormatInt(h.Origin, 10)}, h.FDs...), "\n")
}

func parseHello(text string) (hello, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 2 || Role(lines[0]) != Translator {
		return hello{}, errors.New("not a greeting")
	}
	origin, err := strconv.ParseInt(lines[1], 10, 64)
	return hello{Role: Translator, Origin: origin, FDs: lines[2:]}, err
}

// Names of descriptors in hello.FDs.
const (
	fdNetNS   = "netns"   // the target network namespace
	fdProcess = "process" // pidfd of the target process
	fdInotify = "inotify" // reports deletions in the directory of the target's path
	fdDir     = "dir"     // that directory, to look into where inotify does not work
)

// Answers to the launcher. A failure's text follows answerFail.
const (
	answerReady = "ready"
	answerFail  = "fail "
)

// What a launcher sends after hello.
const (
	release = "run"   // to a holder: its command may run
	ended   = "ended" // to a translator: the command has ended, and its namespace with it
)

// newLink returns the two ends of a socket that keeps messages apart, both close-on-exec.
func newLink() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("create socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

// aboveLink returns a copy of fd that dup3(2) to linkFD does not overwrite.
func aboveLink(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, linkFD+1)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// sendHello sends h and files under their names.
func sendHello(link *os.File, h hello, files ...*os.File) error {
	for _, f := range files {
		h.FDs = append(h.FDs, f.Name())
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(int(link.Fd()), []byte(h.text()), rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("send to the new process: %w", err)
	}
	return nil
}

// receiveHello takes the first message and the descriptors that came with it, by name.
func receiveHello(link int) (hello, map[string]int, error) {
	var h hello
	text := make([]byte, maxHello)
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, err := recvmsg(link, text, oob, 0)
	if err != nil {
		return h, nil, err
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return h, nil, err
	}
	if h, err = parseHello(string(text[:n])); err != nil {
		return h, nil, err
	}
	if len(h.FDs) != len(fds) {
		return h, nil, fmt.Errorf("%d descriptors for %d names", len(fds), len(h.FDs))
	}
	files := make(map[string]int)
	for i, name := range h.FDs {
		files[name] = fds[i]
	}
	return h, files, nil
}

func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	return unix.ParseUnixRights(&messages[0])
}

// receive waits for one short message. It returns io.EOF when the other end is gone.
func receive(link int) (string, error) {
	text := make([]byte, maxAnswer)
	n, _, err := recvmsg(link, text, nil, 0)
	return string(text[:max(n, 0)]), err
}

func recvmsg(fd int, text, oob []byte, flags int) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(fd, text, oob, flags|unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
			return 0, 0, io.EOF
		}
		return n, oobn, err
	}
}

// send sends one short message, cut where it is too long.
func send(link int, text string) error {
	text = text[:min(len(text), maxAnswer)]
	return unix.Sendmsg(link, []byte(text), nil, nil, unix.MSG_NOSIGNAL)
}

// answer is what a translator told its launcher.
type answer struct {
	ready bool
	fail  string // why not; empty if it ended without a word
}

func receiveAnswer(link int) answer {
	text, err := receive(link)
	if err != nil {
		return answer{}
	}
	if why, failed := strings.CutPrefix(text, answerFail); failed {
		return answer{fail: why}
	}
	return answer{ready: text == answerReady}
}

// monotonic is the current CLOCK_MONOTONIC reading, which all processes of a machine
// share.
func monotonic() int64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return t.Nano()
}

// Start is what a process learns about itself before it does anything.
type Start struct {
	// Role is the part to play.
	Role Role

	// Origin is when the user's program started.
	Origin time.Time

	hello hello
	files map[string]int // descriptors by the names of hello.FDs
	pass  []*os.File     // for the processes we start
}

// Pass has the processes that Launch will start get f, under its name. f stays the caller's
// and must be open until Launch has returned.
func (s *Start) Pass(f *os.File) { s.pass = append(s.pass, f) }

// File returns what the launcher passed on under that name, and whether it did. It is the
// caller's, and to be asked for once.
func (s *Start) File(name string) (*os.File, bool) {
	fd, ok := s.files[name]
	if !ok {
		return nil, false
	}
	delete(s.files, name)
	return os.NewFile(uintptr(fd), name), true
}

// Begin finds out which part this process has, and takes the trace of it out of the environment. A
// launcher gives up what capabilities it does not need. From here on, no process of the same user
// may look into this one. Begin is to be called once, before descriptors are closed or opened.
func Begin() (*Start, error) {
	stage, staged := os.LookupEnv(StageVariable)
	if stage == stageExecuted {
		showName()
	}
	if err := sandbox.Hide(); err != nil {
		return nil, err
	}
	if !staged {
		if err := sandbox.Shed(); err != nil {
			return nil, err
		}
		return &Start{
			Role:   Launcher,
			Origin: time.Now(),
			hello:  hello{Origin: monotonic()},
		}, nil
	}
	if err := os.Unsetenv(StageVariable); err != nil {
		return nil, err
	}
	unix.CloseOnExec(linkFD)
	h, files, err := receiveHello(linkFD)
	if err != nil {
		return nil, fmt.Errorf("%s is set, but there is no launcher: %w", StageVariable, err)
	}
	return &Start{
		Role:   h.Role,
		Origin: time.Now().Add(time.Duration(h.Origin - monotonic())),
		hello:  h,
		files:  files,
	}, nil
}
