package tapio

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollSet waits for some of a descriptor's events. Go's poller asks for all there are, and a UNIX
// socket reports room for each message that the other side has taken: threads would be woken as
// often as that. So an epoll set stands between the two, which lets pass what is asked for: the
// poller waits until the set can be read (epoll(7)). Nothing is ever taken out of the set.
type pollSet struct {
	set  *os.File
	raw  syscall.RawConn
	epfd int
	fd   int
}

// newPollSet returns a gate for fd, which stays the caller's and has to outlive it.
func newPollSet(fd int, events uint32) (*pollSet, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(epfd, true); err != nil { // for os.NewFile
		unix.Close(epfd)
		return nil, err
	}
	g := &pollSet{set: os.NewFile(uintptr(epfd), "events"), epfd: epfd, fd: fd}
	if err = g.ctl(unix.EPOLL_CTL_ADD, events); err == nil {
		err = g.set.SetReadDeadline(time.Time{}) // can it be waited for?
	}
	if err == nil {
		g.raw, err = g.set.SyscallConn()
	}
	if err != nil {
		g.set.Close()
		return nil, err
	}
	return g, nil
}

func (g *pollSet) ctl(op int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(g.fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(g.epfd, op, g.fd, &ev))
}

// ask has the gate open for other events than so far, even if they are there already.
func (g *pollSet) ask(events uint32) error { return g.ctl(unix.EPOLL_CTL_MOD, events) }

// wait calls try at first and at each opening until it returns true. It fails after wake.
func (g *pollSet) wait(try func(uintptr) bool) error { return g.raw.Read(try) }

// wake ends each wait, now and later.
func (g *pollSet) wake() { g.set.SetReadDeadline(time.Unix(1, 0)) }

func (g *pollSet) close() { g.set.Close() }
