package process

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func event(mask uint32, name string) []byte {
	size := (len(name) + 16) &^ 15 // as the kernel pads
	if name == "" {
		size = 0
	}
	b := make([]byte, unix.SizeofInotifyEvent+size)
	binary.NativeEndian.PutUint32(b[4:], mask)
	binary.NativeEndian.PutUint32(b[12:], uint32(size))
	copy(b[unix.SizeofInotifyEvent:], name)
	return b
}

func join(events ...[]byte) (all []byte) {
	for _, e := range events {
		all = append(all, e...)
	}
	return all
}

func TestDeleted(t *testing.T) {
	tests := []struct {
		name   string
		events []byte
		want   bool
	}{
		{"nothing", nil, false},
		{"ours", event(unix.IN_DELETE, "ns"), true},
		{"another", event(unix.IN_DELETE, "other"), false},
		{"a longer name", event(unix.IN_DELETE, "ns2"), false},
		{"ours behind others", join(event(unix.IN_DELETE, "a"), event(unix.IN_DELETE, "b"), event(unix.IN_DELETE, "ns")), true},
		{"directory deleted", event(unix.IN_DELETE_SELF, ""), true},
		{"unmounted", event(unix.IN_UNMOUNT, ""), true},
		{"some lost", event(unix.IN_Q_OVERFLOW, ""), false},
		{"ours behind a loss", join(event(unix.IN_Q_OVERFLOW, ""), event(unix.IN_DELETE, "ns")), true},
		{"cut short", event(unix.IN_DELETE, "ns")[:unix.SizeofInotifyEvent+3], false},
		{"header cut short", event(unix.IN_DELETE, "ns")[:7], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := deleted(tt.events, "/nonexistent/ns"); got != tt.want {
				t.Errorf("deleted = %v, want %v", got, tt.want)
			}
		})
	}
}

func FuzzDeleted(f *testing.F) {
	f.Add(event(unix.IN_DELETE, "ns"))
	f.Add(join(event(unix.IN_DELETE, "a"), event(unix.IN_IGNORED, "")))
	f.Fuzz(func(t *testing.T, b []byte) { deleted(b, "/nonexistent/ns") })
}

func TestProcessOf(t *testing.T) {
	tests := []struct {
		path string
		want int
	}{
		{"/proc/12/ns/net", 12},
		{"/proc//12/root/run/netns", 12},
		{"/proc/self/ns/net", 0},
		{"/proc/-1/ns/net", 0},
		{"/proc/0/ns/net", 0},
		{"/run/netns/12", 0},
		{"/proc", 0},
	}
	for _, tt := range tests {
		if got := processOf(tt.path); got != tt.want {
			t.Errorf("processOf(%q) = %d, want %d", tt.path, got, tt.want)
		}
	}
}

// await starts awaitGone and returns its result.
func await(ctx context.Context, kind string, fd int, path string) <-chan bool {
	result := make(chan bool, 1)
	go func() {
		reported := false
		awaitGone(ctx, kind, fd, path, func() { reported = true })
		result <- reported
	}()
	return result
}

func TestAwaitGoneByPath(t *testing.T) {
	for _, kind := range []string{fdInotify, fdDir} {
		t.Run(kind, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ns")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			open := func() int {
				fd, err := inotify(filepath.Dir(path))
				if kind == fdDir {
					fd, err = unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_CLOEXEC, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
				return fd
			}
			ctx, cancel := context.WithCancel(t.Context())
			stopped := await(ctx, kind, open(), path)
			cancel()
			if <-stopped {
				t.Error("awaitGone reports the end for an ended context")
			}
			gone := await(t.Context(), kind, open(), path)
			os.Remove(path)
			if !<-gone {
				t.Error("awaitGone reports nothing for a removed path")
			}
		})
	}
}

func TestOpenWatch(t *testing.T) {
	kinds := func(path string) (names []string) {
		files, err := openWatch(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			names = append(names, f.Name())
			f.Close()
		}
		return names
	}
	if got := kinds(filepath.Join(t.TempDir(), "ns")); len(got) != 1 || got[0] != fdInotify {
		t.Errorf("watches of a file: %v, want %s", got, fdInotify)
	}
	self := "/proc/" + link(t, "/proc/self")
	if got := kinds(self + "/ns/net"); len(got) != 1 || got[0] != fdProcess {
		t.Errorf("watches of a process: %v, want %s", got, fdProcess)
	}
	if got := kinds("/proc/self/ns/net"); len(got) != 1 || got[0] != fdDir {
		t.Errorf("watches of another path in /proc: %v, want %s", got, fdDir)
	}
	if got := kinds(self + "/root/tmp/ns"); len(got) != 2 {
		t.Errorf("watches of a path by way of a process: %v, want two", got)
	}
	if _, err := openWatch("/nonexistent/ns"); err == nil ||
		err.Error() != "netns dir open: No such file or directory, exiting" {
		t.Errorf("openWatch of no directory: %v", err)
	}
}

func link(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReason(t *testing.T) {
	if got := Reason(&os.PathError{Op: "open", Path: "x", Err: unix.EPERM}); got != "Operation not permitted" {
		t.Errorf("reason = %q", got)
	}
	if got := Reason(errors.New("plain")); got != "plain" {
		t.Errorf("reason = %q", got)
	}
}

// newNetNS returns a descriptor of a fresh network namespace.
func newNetNS(t *testing.T) int {
	t.Helper()
	type opened struct {
		fd  int
		err error
	}
	c := make(chan opened)
	go offMainThread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			c <- opened{err: err}
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		c <- opened{fd, err}
	})
	o := <-c
	if errors.Is(o.err, unix.EPERM) {
		t.Skip("needs root")
	}
	if o.err != nil {
		t.Fatal(o.err)
	}
	t.Cleanup(func() { unix.Close(o.fd) })
	return o.fd
}

func TestThread(t *testing.T) {
	thread, err := StartThread(newNetNS(t))
	if err != nil {
		t.Fatal(err)
	}
	inside := ""
	err = thread.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if outside := link(t, "/proc/self/ns/net"); err != nil || inside == "" || inside == outside {
		t.Errorf("namespace %q (%v), want another than %q", inside, err, outside)
	}
	want := errors.New("mine")
	if err := thread.Do(func() error { return want }); err != want {
		t.Errorf("Do = %v, want the function's error", err)
	}
	thread.Close()
	thread.Close()
	if err := thread.Do(func() error { return nil }); err != os.ErrClosed {
		t.Errorf("Do after Close = %v, want os.ErrClosed", err)
	}
}

// The main thread must stay where it is, whichever thread calls.
func TestThreadIsNotTheMainOne(t *testing.T) {
	fd := newNetNS(t)
	before := link(t, "/proc/self/ns/net")
	for range 50 {
		thread, err := StartThread(fd)
		if err != nil {
			t.Fatal(err)
		}
		main := false
		if err := thread.Do(func() error { main = unix.Gettid() == unix.Getpid(); return nil }); err != nil || main {
			t.Fatalf("on the main thread: %v, %v", main, err)
		}
		thread.Close()
	}
	if after := link(t, "/proc/self/ns/net"); after != before {
		t.Errorf("namespace %q, was %q", after, before)
	}
}

func TestStartThreadRefusesOtherFiles(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := StartThread(int(f.Fd())); !errors.Is(err, unix.EINVAL) {
		t.Errorf("StartThread = %v, want EINVAL", err)
	}
}

func TestLinkTellsMessagesAndEnd(t *testing.T) {
	ours, theirs, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	want := hello{Role: Translator, Origin: time.Second.Nanoseconds()}
	if err := sendHello(ours, want, file); err != nil {
		t.Fatal(err)
	}
	got, files, err := receiveHello(int(theirs.Fd()))
	if err != nil || got.Role != want.Role || got.Origin != want.Origin || len(files) != 1 {
		t.Errorf("receiveHello = %+v, %v, %v", got, files, err)
	}
	fd, ok := files[file.Name()]
	if !ok {
		t.Fatal("the file did not arrive")
	}
	unix.Close(fd)

	send(int(theirs.Fd()), answerFail+"why")
	if a := receiveAnswer(int(ours.Fd())); a != (answer{fail: "why"}) {
		t.Errorf("receiveAnswer = %+v", a)
	}
	send(int(theirs.Fd()), answerReady)
	if a := receiveAnswer(int(ours.Fd())); a != (answer{ready: true}) {
		t.Errorf("receiveAnswer = %+v", a)
	}
	theirs.Close()
	if a := receiveAnswer(int(ours.Fd())); a != (answer{}) {
		t.Errorf("receiveAnswer at the end = %+v", a)
	}
	if err := send(int(ours.Fd()), release); !errors.Is(err, unix.EPIPE) {
		t.Errorf("send without a receiver = %v, want EPIPE", err)
	}
}
