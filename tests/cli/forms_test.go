package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// started is a program of the comparison that was started, and is ready or over.
type started struct {
	cmd  *exec.Cmd
	errs strings.Builder
	done chan struct{} // the process started has ended
	err  error         // of waiting for it, once done

	pidFile string
	pid     int // in the PID file; 0: none
}

// outcome is what there is to compare of any run.
type outcome struct {
	Status  int    // of the process started
	Stays   bool   // that process is the one that stays when all is ready
	LetsGo  bool   // of its standard streams, when it does not
	PIDFile string // whose PID is in the file
	Mode    fs.FileMode
	Ends    bool // when it should
	Leaves  bool // the PID file when it has ended
}

// begin runs argv on the host b and waits until it has ended or written pidFile.
func begin(t *testing.T, b *bed.Bed, user bed.User, pidFile string, files []*os.File, argv ...string) *started {
	t.Helper()
	s := &started{done: make(chan struct{}), pidFile: pidFile}
	words := onHost(b.Host, user, argv...)
	// what ends in time anyway, without timeout(1) in between
	s.cmd = exec.Command(words[4], words[5:]...)
	s.cmd.Env = []string{"PATH=" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	s.cmd.Dir = "/"
	s.cmd.ExtraFiles = files
	s.cmd.WaitDelay = 3 * time.Second // somebody may keep the pipes open
	s.cmd.Stderr = &s.errs
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		<-s.done
		if s.pid > 0 {
			unix.Kill(s.pid, unix.SIGKILL)
		}
	})
	s.wait(t, "readiness", func() bool { return s.over() || s.read() })
	s.read()
	return s
}

func (s *started) wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := bed.Wait(ctx, what, func() (bool, error) { return cond(), nil }); err != nil {
		t.Fatalf("%v: %v", s.cmd.Args, err)
	}
}

func (s *started) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// read looks whether the PID file is complete.
func (s *started) read() bool {
	text, err := os.ReadFile(s.pidFile)
	if err != nil || !strings.HasSuffix(string(text), "\n") {
		return false
	}
	s.pid, err = strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	return err == nil && s.pid > 1
}

// ready notes what is to be seen of a program that is ready, or has ended with a failure.
func (s *started) ready(t *testing.T) outcome {
	t.Helper()
	if s.pid > 0 && s.pid != s.cmd.Process.Pid { // the other one is in the background
		s.wait(t, "the end of the one in the foreground", s.over)
	}
	o := outcome{PIDFile: "none"}
	switch {
	case s.pid == s.cmd.Process.Pid:
		o.PIDFile = "the one started"
	case s.pid > 0:
		o.PIDFile = "another"
	}
	if st, err := os.Stat(s.pidFile); err == nil && s.pid > 0 {
		o.Mode = st.Mode() // of one that is not written, nobody asks when it was made
	}
	o.Stays = !s.over()
	if s.over() {
		o.Status, o.LetsGo = s.status(t), !errors.Is(s.err, exec.ErrWaitDelay)
		if o.Status != 0 {
			t.Logf("%s: %.300s", s.cmd.Args[len(s.cmd.Args)-1], s.errs.String())
		}
	}
	return o
}

// status returns how the process started has ended.
func (s *started) status(t *testing.T) int {
	t.Helper()
	var exit *exec.ExitError
	if s.err != nil && !errors.As(s.err, &exit) && !errors.Is(s.err, exec.ErrWaitDelay) {
		t.Fatal(s.err)
	}
	ws := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// gone waits for the end of the one that stays, for up to d, and notes it.
func (s *started) gone(t *testing.T, o *outcome, d time.Duration) {
	t.Helper()
	if s.pid == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	o.Ends = bed.Wait(ctx, "the end", func() (bool, error) { return dead(s.pid) && (!o.Stays || s.over()), nil }) == nil
	if o.Ends && o.Stays {
		o.Status = s.status(t)
	}
	_, err := os.Stat(s.pidFile)
	o.Leaves = err == nil
}

// ending is what ends a run: the signal by, or "namespace" for the end of that; and within what
// time.
type ending struct {
	by     string
	within time.Duration
}

// theirTime is how long the other implementation has to end: not long where it is known not to.
func theirTime(reason string) time.Duration {
	if reason != "" {
		return 2 * time.Second
	}
	return limit
}

// attached is the outcome of pasta in a namespace that is there.
type attached struct {
	Run    outcome
	Inside found
}

// TestAttachedSideBySide is TestSideBySide for namespaces that are there already: by PID, path and
// name.
func TestAttachedSideBySide(t *testing.T) {
	if _, err := os.Stat(other); err != nil {
		t.Skip(err)
	}
	b, err := bed.New(bed.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)

	const (
		none    = "-q -t none -u none -T none -U none "
		signals = "in background the other one is the first process of its namespace, and deaf to what it does not handle"
		watched = "what a process leaves is noticed, though procfs tells nobody"
	)
	for _, tt := range []struct {
		args   string // with {pid}, {net}, {user}, {file}, {name} for what they stand for
		end    string // what ends it: a signal, or the end of the namespace
		root   bool   // started by root
		old    string // what the PID file holds before
		reason string
	}{
		{args: none + "-P {file} {pid}", end: "TERM"},
		{args: none + "--config-net -P {file} {pid}", end: "TERM"},
		{args: none + "--config-net --pid={file} {pid}", end: "QUIT"},
		{args: none + "--config-net -P {file} {pid}", end: "INT", reason: signals},
		{args: none + "--config-net -P {file} {pid}", end: "HUP", reason: signals},
		{args: none + "--config-net -P {file} {pid}", end: "TERM", old: "what was here before, and is longer\n"},
		{args: none + "--config-net -f -P {file} {pid}", end: "TERM"},
		{args: none + "--config-net -fP{file} {pid}", end: "QUIT"},
		{args: none + "--config-net -f -P {file} {pid}", end: "HUP"},
		{args: none + "--config-net -f -P {file} {pid}", end: "namespace", reason: watched},
		{args: none + "--config-net -P {file} {pid}", end: "namespace", reason: watched},
		{args: none + "--config-net -P {file} --no-netns-quit {pid}", end: "TERM"},
		{args: none + "--config-net -4 -I tap9 -m 1300 -P {file} {pid}", end: "TERM"},
		{args: none + "--config-net --netns-only -P {file} {pid}", end: "TERM"},
		{args: none + "--config-net --userns {user} -P {file} {pid}", end: "TERM"},
		{args: none + "--config-net --userns {user} --netns {net} -P {file}", end: "TERM"},
		{args: none + "--config-net --userns {user} --netns {net} -P {file}", end: "namespace", reason: watched},
		{args: none + "--config-net -P {file} -- sleep 1000", end: "TERM"},

		{args: none + "--runas 0 --config-net --netns {name} -P {file}", root: true, end: "TERM"},
		{args: none + "--runas 0 --config-net --netns {name} -P {file}", root: true, end: "namespace"},
		{args: none + "--runas 0 --config-net --netns /run/netns/{name} -P {file}", root: true, end: "namespace"},
		{args: none + "--runas 0 --config-net --netns /run/netns/{name} --no-netns-quit -P {file}", root: true, end: "TERM"},
		{args: none + "--runas 0 --config-net --netns-only --netns {name} -P {file}", root: true, end: "TERM"},

		{args: none + "--config-net --netns {net} -P {file}"},
		{args: none + "--config-net --netns-only --netns {net} -P {file}"},
		{args: none + "--userns {user} -P {file} --netns nosuchname"},
		{args: none + "--userns /nonexistent -P {file} --netns {net}"},
		{args: none + "--userns {net} -P {file} --netns {net}"},
		{args: none + "--userns {user} -P {file} --netns {user}"},
		{args: none + "--userns {user} -P {file} --netns /etc/passwd"},
		{args: none + "-P {file} --netns {net} {pid}"},
		{args: none + "{pid} {pid}"},
		{args: none + "-P {file} 4194303"},
		{args: none + "-P {file} 2147483648"},
		{args: none + "-P /nonexistent/file {pid}"},
		{args: none + "-P /dev/full {pid}"},
		{args: none + "-f -P /dev/full {pid}"},
		{args: none + "-P / {pid}"},
		{args: none + "-P {file} -I lo --config-net {pid}"},
	} {
		t.Run(tt.args+" "+tt.end, func(t *testing.T) {
			t.Parallel()
			run := func(program string, within time.Duration) attached {
				end := ending{tt.end, within}
				if tt.root {
					return attachNamed(t, b, program, tt.args, end)
				}
				return attach(t, b, program, tt.args, end, tt.old)
			}
			compare(t, run(other, theirTime(tt.reason)), run("pasta", limit), tt.reason)
		})
	}
}

// compare fails if the outcomes of the other implementation and of this one differ, but for a
// reason.
func compare[T any](t *testing.T, theirs, ours T, reason string) {
	t.Helper()
	diff := cmp.Diff(theirs, ours)
	switch {
	case diff == "" && reason != "":
		t.Errorf("no difference, though %s", reason)
	case diff != "" && reason == "":
		t.Errorf("Debian's - ours +:\n%s", diff)
	}
}

// attach runs pasta with a new namespace of the user's.
func attach(t *testing.T, b *bed.Bed, program, args string, end ending, old string) attached {
	t.Helper()
	target, err := b.Target(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := room(t)
	pidFile := filepath.Join(dir, "pid")
	if old != "" {
		if err := os.WriteFile(pidFile, []byte(old), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(pidFile, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	pid := strconv.Itoa(target.PID)
	args = strings.NewReplacer("{pid}", pid, "{file}", pidFile, "{net}", "/proc/"+pid+"/ns/net", "{user}", "/proc/"+pid+"/ns/user").Replace(args)
	s := begin(t, b, bed.Nobody, pidFile, nil, append([]string{program}, strings.Fields(args)...)...)
	o := attached{Run: s.ready(t)}
	if s.pid == 0 {
		return o
	}
	if !strings.Contains(args, " -- ") {
		o.Inside = inside(t, b, bed.Nobody, "nsenter", "-t", pid, "-U", "-n", "--preserve-credentials", "--")
	}
	s.finish(t, &o.Run, end, func() { target.Close() })
	return o
}

// attachNamed is attach as root, with a namespace that has a name.
func attachNamed(t *testing.T, b *bed.Bed, program, args string, end ending) attached {
	t.Helper()
	dir := room(t)
	name, pidFile := filepath.Base(dir), filepath.Join(dir, "pid")
	if err := b.Host.IP("netns add " + name); err != nil {
		t.Fatal(err)
	}
	remove := func() { b.Host.IP("netns delete " + name) }
	t.Cleanup(remove)
	args = strings.NewReplacer("{name}", name, "{file}", pidFile).Replace(args)
	s := begin(t, b, bed.Root, pidFile, nil, append([]string{program}, strings.Fields(args)...)...)
	o := attached{Run: s.ready(t)}
	if s.pid == 0 {
		return o
	}
	o.Inside = inside(t, b, bed.Root, "ip", "netns", "exec", name)
	s.finish(t, &o.Run, end, remove)
	return o
}

// finish ends s as end says and notes what becomes of it.
func (s *started) finish(t *testing.T, o *outcome, end ending, leave func()) {
	t.Helper()
	if end.by == "namespace" {
		leave()
	} else {
		unix.Kill(s.pid, unix.SignalNum("SIG"+end.by))
	}
	s.gone(t, o, end.within)
}

// inside looks around in a namespace that enter enters.
func inside(t *testing.T, b *bed.Bed, user bed.User, enter ...string) (f found) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	words := onHost(b.Host, user, append(enter, "sh", "-c", show)...)
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.read(string(out)); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	f.Ping = "" // not changed in a namespace that was there, and the kernel's matter
	return f
}

// room makes a directory that everybody may write to.
func room(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "form")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("room: %w", err))
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
