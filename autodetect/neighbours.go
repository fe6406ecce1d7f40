package autodetect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// Neighbour is what the host's kernel knows of another station on the link of the template
// interface.
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
	heard *monitor
}

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
	var err error
	if n.heard, err = openMonitor(unix.RTMGRP_NEIGH); err == nil {
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
	n.heard.close()
}

// Run calls changed with all neighbours there are at first (all is true: there are no others), and
// then with those that have changed, until ctx ends. When changes were lost it begins again. The
// list is valid for the call.
func (n *Neighbours) Run(ctx context.Context, changed func(list []Neighbour, all bool)) error {
	defer n.heard.until(ctx)()
	lost := true
	for ctx.Err() == nil {
		if lost {
			// What waits is older than the list.
			if err := n.heard.drain(); err != nil {
				return fmt.Errorf("watch neighbours: %w", err)
			}
			list, err := n.all()
			if err != nil {
				return fmt.Errorf("list neighbours: %w", err)
			}
			changed(list, true)
		}
		b, err := n.heard.next()
		lost = errors.Is(err, errLost)
		switch {
		case lost || ctx.Err() != nil:
			continue
		case err != nil:
			return fmt.Errorf("watch neighbours: %w", err)
		}
		if list := n.parse(b); len(list) > 0 {
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
