package splice

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// past is a deadline that has passed whenever it is set.
var past = time.Unix(1, 0)

// wanted are the events a watch is told of, each once when it happens (EPOLLET, epoll(7)). Errors and
// hang-ups are always among them.
const wanted = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff

// watch waits for a pair of sockets on behalf of the goroutine that holds it. Only ring may be called
// by others.
type watch struct {
	ep   int
	file *os.File
	raw  syscall.RawConn
	step func(uintptr) bool

	got   [2]unix.EpollEvent
	n     int  // events in got
	dirty bool // a deadline is set
}

// newWatch returns a watch of nothing. Errors are those of epoll_create1(2).
func newWatch() (*watch, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // or Go does not put it into its poller
		unix.Close(ep)
		return nil, os.NewSyscallError("fcntl", err)
	}
	w := &watch{ep: ep, file: os.NewFile(uintptr(ep), "epoll")}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		w.close()
		return nil, err
	}
	w.step = func(uintptr) bool { return w.look() }
	return w, nil
}

// close frees the watch.
func (w *watch) close() { w.file.Close() }

// add has w watch fd as number i, 0 or 1. It does so until fd is closed.
func (w *watch) add(i, fd int) error {
	ev := unix.EpollEvent{Events: wanted, Fd: int32(i)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(w.ep, unix.EPOLL_CTL_ADD, fd, &ev))
}

// look reports whether something has happened, without waiting. What it was is in seen.
func (w *watch) look() bool {
	n, e := events(w.ep, w.got[:])
	if e != 0 {
		n = 0 // cannot be, with an instance of ours
	}
	w.n = n
	return n > 0
}

// seen returns what the last look, or wait, has found.
func (w *watch) seen() []unix.EpollEvent { return w.got[:w.n] }

// wait sleeps until something happens, somebody rings, or limit has passed, if that is not 0. It
// reports false only for the limit.
func (w *watch) wait(limit time.Duration) bool {
	if limit > 0 {
		w.file.SetReadDeadline(time.Now().Add(limit))
		w.dirty = true
	}
	w.n = 0
	err := w.raw.Read(w.step)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// idle makes the watch ready for its next holder. Its sockets are closed.
func (w *watch) idle() {
	if w.dirty {
		w.file.SetReadDeadline(time.Time{})
		w.dirty = false
	}
}

// ring wakes who waits, now and whenever it waits again. It is for the end of everything.
func (w *watch) ring() { w.file.SetReadDeadline(past) }
