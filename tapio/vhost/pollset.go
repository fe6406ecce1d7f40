package vhost

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollSet wakes the reader: for the descriptors that the guest rings, and by wake. It is an epoll
// set that is itself in Go's poller. Descriptors are edge-triggered in it and never read: each ring
// is one more edge (epoll(7)).
type pollSet struct {
	set  *os.File
	raw  syscall.RawConn
	epfd int
	bell int // an eventfd
}

func newPollSet() (*pollSet, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	p := &pollSet{epfd: epfd, bell: -1}
	if err = unix.SetNonblock(epfd, true); err == nil { // for os.NewFile
		p.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		unix.Close(epfd)
		return nil, err
	}
	p.set = os.NewFile(uintptr(epfd), "kicks")
	if err = p.add(p.bell); err == nil {
		err = p.set.SetReadDeadline(time.Time{}) // can it be waited for?
	}
	if err == nil {
		p.raw, err = p.set.SyscallConn()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// add adds fd, which stays the caller's and is removed before it is closed.
func (p *pollSet) add(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, fd, &ev))
}

// remove removes fd, if it is there.
func (p *pollSet) remove(fd int) {
	if fd >= 0 {
		unix.EpollCtl(p.epfd, unix.EPOLL_CTL_DEL, fd, nil)
	}
}

// wake ends a wait, so that try is called once more.
func (p *pollSet) wake() { ringFD(p.bell) }

// wait calls try at first and after each ring, until it returns true. It fails after close.
func (p *pollSet) wait(try func(uintptr) bool) error { return p.raw.Read(try) }

func (p *pollSet) close() {
	p.set.Close()
	unix.Close(p.bell)
}
