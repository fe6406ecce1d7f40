package unixsock

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// The file is for the user alone, whatever the umask, which stays as it was.
func TestModeOfSocket(t *testing.T) {
	dir := t.TempDir()
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		unix.Umask(umask)
		path := filepath.Join(dir, "s")
		f, err := Listen("guest", path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := unix.Umask(umask); got != umask {
			t.Errorf("the umask is %#o afterwards, was %#o", got, umask)
		}
		if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("umask %#o: mode %v, %v", umask, st.Mode(), err)
		}
		f.Close()
	}
}

// guarded is a listener for the user at a path, and its file.
func guarded(t *testing.T) (l *forUser, path string, logs *observer.ObservedLogs) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	f, err := Listen("control", path, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file, err := File("control-file", path)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	l = ForUser(inner, file, zap.New(core)).(*forUser)
	t.Cleanup(func() { l.Close() })
	return l, path, logs
}

func TestForUser(t *testing.T) {
	l, path, logs := guarded(t)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if peer, err := Peer(got); err != nil || int(peer.Uid) != os.Geteuid() || int(peer.Pid) != os.Getpid() {
		t.Errorf("peer %+v, %v", peer, err)
	}
	// One of another user is hung up on, and the next one is served.
	uid := uint32(os.Geteuid() + 1)
	l.peer = func(net.Conn) (*unix.Ucred, error) {
		uid--
		return &unix.Ucred{Uid: uid + 1}, nil
	}
	refused, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	next, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	for _, c := range []net.Conn{refused, next} {
		c.SetDeadline(time.Now().Add(5 * time.Second))
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	if n, err := refused.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the one that is refused reads %d, %v", n, err)
	}
	served.Write([]byte{7})
	if n, err := next.Read(make([]byte, 1)); n != 1 {
		t.Errorf("the next one reads %d, %v", n, err)
	}
	if logs.FilterMessage("Refused a client of another user").Len() != 1 || logs.Len() != 1 {
		t.Errorf("log: %v", logs.All())
	}
}

func TestAdmits(t *testing.T) {
	const own, overflow = 1000, 65534
	l, path, _ := guarded(t)
	l.own, l.overflow = own, overflow
	for _, tt := range []struct {
		name string
		mode os.FileMode
		uid  uint32
		want bool
	}{
		{"the user", 0o600, own, true},
		{"the user, open to all", 0o666, own, true},
		{"root", 0o666, 0, true},
		{"another user", 0o600, 1001, false},
		{"who is not mapped, and has passed the mode", 0o600, overflow, true},
		{"who is not mapped, open to all", 0o602, overflow, false},
		{"who is not mapped, open to a group", 0o660, overflow, false},
	} {
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		if got := l.admits(tt.uid); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	// Without a map of users all of them are the same one.
	l.own = overflow
	for mode, want := range map[os.FileMode]bool{0o600: true, 0o666: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if got := l.admits(overflow); got != want {
			t.Errorf("without a map, mode %v: %v", mode, got)
		}
	}
	// That of another socket in its place does not count.
	os.Remove(path)
	other, err := Listen("other", path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if l.admits(overflow) {
		t.Error("the mode of another file counts")
	}
	l.Close()
	if l.admits(overflow) {
		t.Error("admits somebody when closed")
	}
	if _, err := Peer(&net.TCPConn{}); err == nil {
		t.Error("TCP has a peer with credentials")
	}
}

func TestFile(t *testing.T) {
	if f, err := File("x", filepath.Join(t.TempDir(), "nothing")); err == nil {
		t.Errorf("%v", f)
	}
}
