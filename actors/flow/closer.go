package flow

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// closeBatch is how many files of closed sockets are kept to be closed together, closeDelay how
	// long.
	closeBatch = 64
	closeDelay = 100 * time.Millisecond
	// closeScarce is how long files are not kept once descriptors were short.
	closeScarce = Time(time.Second)
)

// Closer closes the sockets of flows. A socket is closed at once, but by a call that Go's scheduler
// does not hear of: dup3(2) of another descriptor over it. The os.File that was around it is closed
// with others later. The runtime takes each such closing for a call that may block, and wakes a
// thread for it that looks every 20 µs what has become of it: a quarter of the CPU time of short
// connections.
//
// Its methods may be called by anyone; a nil Closer closes everything at once.
type Closer struct {
	mu     sync.Mutex
	spare  int // an eventfd, which takes the place of closed sockets; -1 for none
	files  []*os.File
	timer  *time.Timer
	scarce Time // until then nothing is kept
}

// NewCloser returns a Closer that takes one descriptor, until End, and up to closeBatch more while
// flows end.
func NewCloser() *Closer {
	c := &Closer{files: make([]*os.File, 0, closeBatch)}
	var err error
	if c.spare, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		c.spare = -1
	}
	return c
}

// close closes the socket fd of f.
func (c *Closer) close(f *os.File, fd int) {
	if c == nil || !c.keep(f, fd) {
		f.Close()
	}
}

// keep closes fd and keeps f; false if f is to be closed instead.
func (c *Closer) keep(f *os.File, fd int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spare < 0 || c.scarce != 0 && Now() < c.scarce {
		return false
	}
	if _, _, e := unix.RawSyscall(unix.SYS_DUP3, uintptr(c.spare), uintptr(fd), unix.O_CLOEXEC); e != 0 {
		return false
	}
	c.files = append(c.files, f)
	switch len(c.files) {
	case 1:
		if c.timer == nil {
			c.timer = time.AfterFunc(closeDelay, c.flush)
		} else {
			c.timer.Reset(closeDelay)
		}
	case closeBatch:
		c.release()
	}
	return true
}

func (c *Closer) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release()
}

// release closes what is kept. The caller holds mu.
func (c *Closer) release() {
	if len(c.files) == 0 {
		return
	}
	c.timer.Stop()
	for i, f := range c.files {
		f.Close()
		c.files[i] = nil
	}
	c.files = c.files[:0]
}

// Scarce says that somebody was short of descriptors.
func (c *Closer) Scarce() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scarce = Now() + closeScarce
	c.release()
}

// End closes what is kept, and has all that comes later closed at once.
func (c *Closer) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release()
	if c.spare >= 0 {
		unix.Close(c.spare)
		c.spare = -1
	}
}
