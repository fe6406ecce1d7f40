package flow

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// closable returns a port with one end of a socket pair, which c closes, and the other end.
func closable(t *testing.T, c *Closer) (*Port, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	p := NewPort(Key{})
	p.CloseBy(c)
	if err := p.Open(fds[0], func() bool { return true }); err != nil {
		t.Fatal(err)
	}
	return p, fds[1]
}

// expectEnd waits until the other end of fd is closed: somebody who has just asked about its
// readiness may still hold it.
func expectEnd(t *testing.T, fd int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n, err := unix.Read(fd, make([]byte, 1))
		if n == 0 && err == nil {
			return
		}
		if err != unix.EAGAIN || time.Now().After(end) {
			t.Fatalf("the socket is still open: %v", err)
		}
	}
}

func kept(c *Closer) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.files)
}

// TestCloser: whoever is at the other end of a socket learns of its end at once, and its descriptor
// is free soon.
func TestCloser(t *testing.T) {
	c := NewCloser()
	defer c.End()
	var others []int
	began := time.Now()
	for i := 1; i < closeBatch; i++ {
		p, other := closable(t, c)
		if _, err := unix.Read(other, make([]byte, 1)); err != unix.EAGAIN {
			t.Fatalf("closed before the port was: %v", err)
		}
		p.Close()
		p.Close()
		others = append(others, other)
	}
	if n := kept(c); n == 0 && time.Since(began) < closeDelay {
		t.Error("no file was kept")
	}
	for _, other := range others {
		expectEnd(t, other)
	}
	for end := time.Now().Add(10 * time.Second); kept(c) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files are kept", kept(c))
		}
	}
}

func TestCloserThatIsFull(t *testing.T) {
	c := NewCloser()
	defer c.End()
	before := openFiles(t)
	for range 10 * closeBatch {
		p, _ := closable(t, c)
		p.Close()
	}
	if n := kept(c); n >= closeBatch {
		t.Errorf("%d files are kept, want less than %d", n, closeBatch)
	}
	c.End()
	// The other ends are open still; the closer's own descriptor is not.
	if n := openFiles(t) - before; n != 10*closeBatch-1 {
		t.Errorf("%d descriptors more than before, want %d", n, 10*closeBatch-1)
	}
}

// TestCloserWithoutDescriptors: what is closed while descriptors are short is free at once.
func TestCloserWithoutDescriptors(t *testing.T) {
	c := NewCloser()
	defer c.End()
	p, _ := closable(t, c)
	p.Close()
	c.Scarce()
	if n := kept(c); n != 0 {
		t.Errorf("%d files are kept when descriptors are short", n)
	}
	p, other := closable(t, c)
	p.Close()
	if n := kept(c); n != 0 {
		t.Errorf("%d files are kept while descriptors are short", n)
	}
	expectEnd(t, other)
	var none *Closer
	p, other = closable(t, none)
	p.Close()
	none.Scarce()
	expectEnd(t, other)
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
