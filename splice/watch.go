package splice

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
)

// past is a deadline that has passed whenever it is set.
var past = time.Unix(1, 0)

// wanted are the events a watch is told of, each once when it happens (EPOLLET, epoll(7)). Errors
// and hang-ups are always among them.
const wanted = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff

// watch waits for a pair of sockets on behalf of the goroutine that holds it. Only ring may be
// called by others.
type watch struct {
	ep   int
	file *os.File
	raw  syscall.RawConn
	step func(uintptr) bool

	got [2]unix.EpollEvent
	n   int // events in got

	alarm flow.Time // when the read deadline is; 0 if there is none
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
	if err := flow.Watched(w.file); err != nil {
		w.close()
		return nil, err
	}
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

// look reports whether something has happened, without waiting. What it was is for take to say.
func (w *watch) look() bool {
	n, e := events(w.ep, w.got[:])
	if e != 0 {
		n = 0 // cannot be, with an instance of ours
	}
	w.n = n
	return n > 0
}

// take returns, once, what the last look or wait has found.
func (w *watch) take() []unix.EpollEvent {
	got := w.got[:w.n]
	w.n = 0
	return got
}

// each looks and calls f, and again whenever something happens, until f returns true. What
// happens while f runs has it called once more, so that f need not look for it before it returns.
// each also returns when somebody has rung.
func (w *watch) each(f func() bool) {
	w.raw.Read(func(uintptr) bool {
		w.look()
		return f()
	})
}

// wait sleeps until something happens or somebody rings.
func (w *watch) wait() error { return w.raw.Read(w.step) }

// waitUntil is wait, but sleeps until t at the latest, or a time that was given before and is
// sooner: to move the end of a wait further away, again and again, costs nothing. It returns false
// if the time is over; t need not have come then. It does not sleep when stopping says so.
func (w *watch) waitUntil(t flow.Time, stopping func() bool) bool {
	if w.alarm == 0 || t < w.alarm {
		w.alarm = t
		w.file.SetReadDeadline(time.Now().Add(time.Duration(t - flow.Now())))
		if stopping() {
			return true // the ring may have come before the deadline
		}
	}
	if err := w.wait(); errors.Is(err, os.ErrDeadlineExceeded) {
		w.alarm = 0
		return false
	}
	return true
}

// idle makes the watch ready for its next holder, who must not find a deadline that has passed. Its
// sockets are closed.
func (w *watch) idle() {
	w.file.SetReadDeadline(time.Time{})
	w.alarm = 0
}

// ring wakes who waits, now and whenever it waits again. It is for the end of everything.
func (w *watch) ring() { w.file.SetReadDeadline(past) }
