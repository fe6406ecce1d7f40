// As in package main: the translator under test may make no other system calls.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

package process_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"fusilli/internal/logging"
	"fusilli/internal/process"
)

// The tests run this test binary as the program: TestMain becomes main when the first
// argument is asProgram. The second one is a plan.
const asProgram = "-as-program"

const noRaceWait = "atexit_sleep_ms=0"

// plan is the command line of the program under test.
type plan struct {
	process.Spec

	// Facts is a file where the translator tells what it sees, or "".
	Facts string
	// Fail is the error the translator ends with before it is ready, or "".
	Fail string
	// Wait is a file whose existence the translator waits for before it is ready.
	Wait string
	// Pass is a file the launcher opens and passes on, or "".
	Pass string
	// Cause is a file where the translator tells why it ended, or "".
	Cause string
}

// facts is what a translator sees.
type facts struct {
	Passed        string // what came as "passed"
	NetNS, UserNS string // its own
	Target        string // network namespace of its thread
	PID           int
	UID, GID      int
	Caps          string // effective, in hexadecimal
	Files         uint64 // soft limit
	SIGPIPE       bool   // ignored
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == asProgram {
		os.Exit(program(os.Args[2]))
	}
	// Programs built with the race detector wait a second before they end.
	os.Setenv("GORACE", noRaceWait)
	goleak.VerifyTestMain(m)
}

// program is what main does, less the command line.
func program(text string) int {
	start, err := process.Begin()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var p plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	log := logging.New(os.Stderr, logging.Options{Origin: start.Origin})
	defer log.Close()
	if start.Role == process.Translator {
		return process.Translate(start, p.Spec, log, p.translate)
	}
	if err := process.CloseStray(); err != nil {
		log.Error(err.Error())
		return 1
	}
	if p.Pass != "" {
		fd, err := unix.Open(p.Pass, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			log.Error(err.Error())
			return 1
		}
		f := os.NewFile(uintptr(fd), "passed")
		defer f.Close()
		start.Pass(f)
	}
	status, err := process.Launch(start, p.Spec, log.Logger)
	if err != nil {
		log.Error(err.Error())
	}
	return status
}

func (p *plan) translate(ctx context.Context, env *process.Env) error {
	// As any that opens something to wait for, which has Go's runtime make ready to wait. Once
	// ready, it may not.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	r.Close()
	w.Close()
	if p.Facts != "" {
		if err := writeFacts(p.Facts, env); err != nil {
			return err
		}
	}
	if p.Fail != "" {
		return errors.New(p.Fail)
	}
	for p.Wait != "" && ctx.Err() == nil {
		if _, err := os.Stat(p.Wait); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	var cause *os.File
	if p.Cause != "" {
		var err error
		if cause, err = os.Create(p.Cause); err != nil { // later, there are no paths
			return err
		}
		defer cause.Close()
	}
	if err := env.Ready(); err != nil {
		return err
	}
	<-ctx.Done()
	if cause != nil {
		_, err := cause.WriteString(context.Cause(ctx).Error())
		return err
	}
	return nil
}

func writeFacts(path string, env *process.Env) error {
	var f facts
	f.NetNS, _ = os.Readlink("/proc/self/ns/net")
	f.UserNS, _ = os.Readlink("/proc/self/ns/user")
	if passed, ok := env.File("passed"); ok {
		b, err := io.ReadAll(passed)
		passed.Close()
		if err != nil {
			return err
		}
		f.Passed = string(b)
	}
	if env.NetNS != nil {
		err := env.NetNS.Do(func() (err error) {
			f.Target, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil {
			return err
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	f.Caps = field(string(status), "CapEff")
	ignored, err := strconv.ParseUint(field(string(status), "SigIgn"), 16, 64)
	if err != nil {
		return err
	}
	f.SIGPIPE = ignored>>(uint(unix.SIGPIPE)-1)&1 == 1
	f.UID, f.GID, f.PID = os.Geteuid(), os.Getegid(), os.Getpid()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	f.Files = lim.Cur
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o666)
}

// field is the value of a line of /proc/PID/status.
func field(status, name string) string {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// who is an identity to run the program as.
type who struct {
	name   string
	cred   *syscall.Credential // nil: ours
	nested bool                // as root of a user namespace of the bed
}

// identities are those we can take on: an unprivileged user, that user as root of a
// user namespace of its own, the real root.
func identities() []who {
	user := who{name: "user"}
	if os.Geteuid() == 0 {
		user.cred = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	inner := who{name: "root of a user namespace", cred: user.cred, nested: true}
	all := []who{user, inner}
	if os.Geteuid() == 0 {
		all = append(all, who{name: "root"})
	}
	return all
}

// eachIdentity runs f once for every identity, and looks for processes it left.
func eachIdentity(t *testing.T, f func(*testing.T, *bed)) {
	for _, w := range identities() {
		t.Run(w.name, func(t *testing.T) { f(t, newBed(t, w)) })
	}
}

// bed is the surroundings of one test.
type bed struct {
	who
	t   *testing.T
	dir string // anybody may write to it; its name marks our processes

	// wrap is a command that runs another one where the bed's identity is valid.
	wrap []string
}

func newBed(t *testing.T, w who) *bed {
	dir, err := os.MkdirTemp("", "fusilli-process-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	b := &bed{who: w, t: t, dir: dir}
	t.Cleanup(func() {
		b.eventually("nothing is left running", func() bool { return len(b.running("")) == 0 })
		for _, pid := range b.running("") {
			unix.Kill(pid, unix.SIGKILL)
		}
		os.RemoveAll(dir)
	})
	if b.nested {
		home := b.idle("unshare", "-Ur")
		b.wrap = []string{"nsenter", "-U", "--preserve-credentials", "-t", strconv.Itoa(home.Process.Pid)}
	}
	return b
}

// in is the bed as a subtest uses it.
func (b *bed) in(t *testing.T) *bed {
	sub := *b
	sub.t = t
	return &sub
}

func (b *bed) path(name string) string { return filepath.Join(b.dir, name) }

// running lists the living processes of this test whose command line contains text.
func (b *bed) running(text string) []int {
	var pids []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline") // empty for zombies
		if err == nil && bytes.Contains(line, []byte(b.dir)) && bytes.Contains(line, []byte(text)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// eventually waits for a condition. Ten seconds are for a loaded machine.
func (b *bed) eventually(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			b.t.Errorf("not so after ten seconds: %s; running: %v", what, b.running(""))
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (b *bed) eventuallyGone(pid int) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("%d is gone", pid), func() bool { return !alive(pid) })
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && !strings.HasPrefix(field(string(status), "State"), "Z")
}

// command makes a command for the bed's identity.
func (b *bed) command(argv ...string) *exec.Cmd {
	argv = append(b.wrap[:len(b.wrap):len(b.wrap)], argv...)
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir = "/"
	if b.cred != nil {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: b.cred}
	}
	return c
}

// plain is this test built without a C library, or what it is where there is the race detector: one
// executes itself again, the other begins anew.
var plain = sync.OnceValues(func() (text []byte, err error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if !raceEnabled {
		dir, err := os.MkdirTemp("", "fusilli-process-build-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		path = filepath.Join(dir, "program")
		c := exec.Command("go", "test", "-c", "-o", path, ".")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go test -c: %w: %s", err, out)
		}
	}
	return os.ReadFile(path)
})

// binary is a copy of plain where everybody can execute it.
func (b *bed) binary() string {
	path := b.path("program")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	text, err := plain()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o755); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// program makes a command that runs the program.
func (b *bed) program(p plan) *exec.Cmd {
	text, err := json.Marshal(p)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.command(b.binary(), asProgram, string(text))
}

// result is how a program ended.
type result struct {
	status int // 128 + signal if it was killed
	out    string
	err    string // standard error, less the warning to root
}

// run runs a command to its end, and until nobody holds its output any more.
func (b *bed) run(c *exec.Cmd) result {
	b.t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	return result{statusOf(c.ProcessState), out.String(), lessWarning(errs.String())}
}

func lessWarning(s string) string {
	for _, line := range []string{
		"Started as root, will change to nobody.\n",
		"Built with cgo: only a part of the sandbox is in force\n", // so are test binaries
	} {
		s = strings.ReplaceAll(s, line, "")
	}
	return s
}

func statusOf(s *os.ProcessState) int {
	if ws := s.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

// start starts a program that is expected to stay.
func (b *bed) start(c *exec.Cmd) {
	b.t.Helper()
	if err := c.Start(); err != nil {
		b.t.Fatal(err)
	}
	for _, f := range []any{c.Stdin, c.Stdout} {
		if f, ok := f.(*os.File); ok {
			f.Close() // our copy, so that reading ends when the program does
		}
	}
	b.t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
}

// pidFile waits for a PID file and returns its PID.
func (b *bed) pidFile(path string) int {
	b.t.Helper()
	var text []byte
	b.eventually("there is a PID file", func() bool {
		text, _ = os.ReadFile(path)
		return bytes.HasSuffix(text, []byte("\n"))
	})
	pid, err := strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		b.t.Fatalf("PID file: %v", err)
	}
	return pid
}

func (b *bed) facts(path string) facts {
	b.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	var f facts
	if err := json.Unmarshal(text, &f); err != nil {
		b.t.Fatal(err)
	}
	return f
}

// target starts a process in user and network namespaces of its own.
func (b *bed) target() *exec.Cmd { return b.idle("unshare", "-Urn") }

// idle starts a process that does nothing, by way of a command that enters namespaces.
func (b *bed) idle(enter ...string) *exec.Cmd {
	b.t.Helper()
	c := b.command(append(enter, "sh", "-c", "echo; exec sleep 1000")...)
	out, err := c.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.start(c)
	if _, err := out.Read(make([]byte, 1)); err != nil { // it is where it should be
		b.t.Fatal(err)
	}
	return c
}

func link(t *testing.T, format string, args ...any) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
