package autodetect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// Neighbour is what the host's kernel knows of another station on the link of the template interface.
type Neighbour struct {
	Addr netip.Addr
	// MAC is its Ethernet address, zero if it is not known, or not any more.
	MAC [6]byte
}

// Neighbours watches the host's neighbours on the template interfaces. It has two sockets, since
// answers and notifications on one socket get mixed up. All it needs is opened by OpenNeighbours: a
// sandbox may close the doors behind it.
type Neighbours struct {
	index map[uint8]int // of the interface by family
	conn  *rtnl.Conn    // for dumps
	file  *os.File      // notifications
}

// neighbourBuffer holds what the kernel puts into one datagram of notifications.
const neighbourBuffer = 64 << 10

// OpenNeighbours opens what is needed to watch the neighbours of h. Without a template there is
// nobody to watch: then it returns nil. No privilege is needed. The caller closes it.
func OpenNeighbours(h *Host) (*Neighbours, error) {
	n := &Neighbours{index: map[uint8]int{}}
	for family, f := range map[uint8]*Family{unix.AF_INET: &h.V4, unix.AF_INET6: &h.V6} {
		if f.Index > 0 {
			n.index[family] = f.Index
		}
	}
	if len(n.index) == 0 {
		return nil, nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		n.file = os.NewFile(uintptr(fd), "neighbours")
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_NEIGH})
	}
	if err == nil {
		n.conn, err = rtnl.Open()
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("watch neighbours: %w", err)
	}
	return n, nil
}

// Close gives the sockets back. Nil has none.
func (n *Neighbours) Close() {
	if n == nil {
		return
	}
	if n.conn != nil {
		n.conn.Close()
	}
	if n.file != nil {
		n.file.Close()
	}
}

// Run calls changed with all neighbours there are at first (all is true: there are no others), and
// then with those that have changed, until ctx ends. When changes were lost it begins again. The list
// is valid for the call.
func (n *Neighbours) Run(ctx context.Context, changed func(list []Neighbour, all bool)) error {
	defer context.AfterFunc(ctx, func() { n.file.SetReadDeadline(time.Unix(1, 0)) })()
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, neighbourBuffer)
	lost := true
	for ctx.Err() == nil {
		if lost {
			// Until its queue is empty, the kernel does not say that it has lost more; and what is in there
			// is older than the list.
			err := raw.Control(func(fd uintptr) {
				for {
					_, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
					if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
						return // EAGAIN; what else there is the next call finds
					}
				}
			})
			if err != nil {
				return fmt.Errorf("watch neighbours: %w", err)
			}
			list, err := n.all()
			if err != nil {
				return fmt.Errorf("list neighbours: %w", err)
			}
			changed(list, true)
		}
		var got int
		var from unix.Sockaddr
		var failure error
		err := raw.Read(func(fd uintptr) bool {
			for {
				got, from, failure = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
				if failure != unix.EINTR {
					return failure != unix.EAGAIN
				}
			}
		})
		lost = failure == unix.ENOBUFS
		switch {
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("watch neighbours: %w", err)
		case err != nil || lost:
			continue
		case failure != nil:
			return fmt.Errorf("watch neighbours: %w", failure)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not from the kernel
		}
		if list := n.parse(buf[:got]); len(list) > 0 {
			changed(list, false)
		}
	}
	return nil
}

// all dumps what the kernel knows.
func (n *Neighbours) all() ([]Neighbour, error) {
	var list []Neighbour
	for family, index := range n.index {
		found, err := n.conn.Neighbours(family, index)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
		for _, f := range found {
			if f.MAC != nil {
				list = append(list, Neighbour{f.Addr, [6]byte(f.MAC)})
			}
		}
	}
	return list, nil
}

// parse returns what the notifications in b say about the neighbours that are watched.
func (n *Neighbours) parse(b []byte) []Neighbour {
	var list []Neighbour
	for len(b) >= unix.SizeofNlMsghdr {
		size, typ := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
		if size < unix.SizeofNlMsghdr || uint64(size) > uint64(len(b)) {
			break
		}
		body := b[unix.SizeofNlMsghdr:size]
		b = b[min((int(size)+3)&^3, len(b)):]
		if typ != unix.RTM_NEWNEIGH && typ != unix.RTM_DELNEIGH {
			continue
		}
		f, err := rtnl.ParseNeighbour(body)
		if index, ok := n.index[f.Family]; err != nil || !ok || f.Index != index {
			continue
		}
		it := Neighbour{Addr: f.Addr}
		if f.MAC != nil && typ == unix.RTM_NEWNEIGH {
			it.MAC = [6]byte(f.MAC)
		}
		list = append(list, it)
	}
	return list
}
