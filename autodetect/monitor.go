package autodetect

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// monitor hears what the kernel announces about one network namespace. One goroutine uses it.
type monitor struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

// monitorBuffer holds what the kernel puts into one datagram of notifications.
const monitorBuffer = 64 << 10

// errLost tells that notifications were lost: what there is has to be listed again.
var errLost = errors.New("notifications were lost")

// openMonitor makes a socket for those groups (RTMGRP_*), in the calling thread's network
// namespace. No privilege is needed. The caller closes it.
func openMonitor(groups uint32) (*monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	m := &monitor{file: os.NewFile(uintptr(fd), "monitor")}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	if err == nil {
		m.raw, err = m.file.SyscallConn()
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) close() {
	if m != nil {
		m.file.Close()
	}
}

// until makes next return when ctx ends, and stop takes that back.
func (m *monitor) until(ctx context.Context) (stop func() bool) {
	m.buf = make([]byte, monitorBuffer)
	return context.AfterFunc(ctx, func() { m.file.SetReadDeadline(time.Unix(1, 0)) })
}

// drain forgets what waits. Until its queue is empty, the kernel does not say that it has lost
// more.
func (m *monitor) drain() error {
	return m.raw.Control(func(fd uintptr) {
		for {
			_, _, err := unix.Recvfrom(int(fd), m.buf, unix.MSG_DONTWAIT)
			if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
				return // EAGAIN; what else there is the next call finds
			}
		}
	})
}

// next waits for messages from the kernel, which are valid until the next call. Errors are errLost
// and what ends all of it, ctx's end among them.
func (m *monitor) next() ([]byte, error) {
	for {
		var got int
		var from unix.Sockaddr
		var failure error
		err := m.raw.Read(func(fd uintptr) bool {
			for {
				got, from, failure = unix.Recvfrom(int(fd), m.buf, unix.MSG_DONTWAIT)
				if failure != unix.EINTR {
					return failure != unix.EAGAIN
				}
			}
		})
		switch {
		case err != nil:
			return nil, err
		case failure == unix.ENOBUFS:
			return nil, errLost
		case failure != nil:
			return nil, failure
		}
		if a, ok := from.(*unix.SockaddrNetlink); ok && a.Pid == 0 {
			return m.buf[:got], nil
		} // else not from the kernel
	}
}
