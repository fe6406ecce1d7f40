package autodetect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// Guest is what the kernel of a guest's network namespace says about its end of the link.
type Guest struct {
	MAC [6]byte
	// Addrs are the addresses of the interface, or of the bridge (or another master) that it is a
	// port of, the best first: those that last before temporary and deprecated ones. Others are
	// those of other interfaces. Neither has loopback addresses, or ones that are not known to be
	// the guest's alone yet.
	Addrs, Others []netip.Addr
}

// GuestMonitor watches one interface of a guest's network namespace, and the addresses there. All
// it needs is opened by MonitorGuest: a sandbox may close the doors behind it.
type GuestMonitor struct {
	index   int
	conn    *rtnl.Conn
	monitor *monitor
}

const (
	// guestPause is how long changes gather before all is listed again. A list that takes long is
	// rarer still: a guest with a hundred thousand addresses costs a tenth of a CPU at most.
	guestPause = 20 * time.Millisecond
	guestShare = 10

	// maxGuestAddrs bounds the addresses of each list.
	maxGuestAddrs = 1024
)

// MonitorGuest opens what is needed to watch the interface of that name in the calling thread's
// network namespace. No privilege is needed. The caller closes it.
func MonitorGuest(name string) (*GuestMonitor, error) {
	g := &GuestMonitor{}
	var err error
	if g.monitor, err = openMonitor(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR); err == nil {
		g.conn, err = rtnl.Open()
	}
	var link rtnl.Link
	if err == nil {
		link, err = g.conn.LinkByName(name)
	}
	if err != nil {
		g.Close()
		return nil, fmt.Errorf("watch the addresses of %s: %w", name, err)
	}
	g.index = link.Index
	return g, nil
}

// Close gives the sockets back. Nil has none.
func (g *GuestMonitor) Close() {
	if g == nil {
		return
	}
	g.monitor.close()
	if g.conn != nil {
		g.conn.Close()
	}
}

// Run calls changed with what there is at first and whenever it may have changed, until ctx ends;
// nil if the interface is not in the namespace any more. The lists are changed's.
func (g *GuestMonitor) Run(ctx context.Context, changed func(*Guest)) error {
	defer g.monitor.until(ctx)()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for ctx.Err() == nil {
		begin := time.Now()
		if err := g.monitor.drain(); err != nil {
			return fmt.Errorf("watch the guest's addresses: %w", err)
		}
		now, err := g.list()
		if err != nil {
			return fmt.Errorf("list the guest's addresses: %w", err)
		}
		changed(now)
		next := begin.Add(max(guestPause, guestShare*time.Since(begin)))
		_, err = g.monitor.next()
		if err != nil && !errors.Is(err, errLost) && ctx.Err() == nil {
			return fmt.Errorf("watch the guest's addresses: %w", err)
		}
		pause.Reset(time.Until(next))
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// list asks the kernel.
func (g *GuestMonitor) list() (*Guest, error) {
	link, err := g.conn.LinkByIndex(g.index)
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var now Guest
	if len(link.MAC) == len(now.MAC) {
		now.MAC = [6]byte(link.MAC)
	}
	type ranked struct {
		addr netip.Addr
		bad  int
	}
	var addrs []ranked
	err = g.conn.EachAddress(func(a *rtnl.Address) {
		switch {
		case a.Local.IsLoopback(), a.Flags&unix.IFA_F_DADFAILED != 0, a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0:
		case a.Index == g.index || link.Master != 0 && a.Index == link.Master:
			bad := 0
			if a.Flags&unix.IFA_F_DEPRECATED != 0 {
				bad += 2
			}
			// the same bit says "secondary" of IPv4
			if a.Family == unix.AF_INET6 && a.Flags&unix.IFA_F_TEMPORARY != 0 {
				bad++
			}
			if len(addrs) < maxGuestAddrs {
				addrs = append(addrs, ranked{a.Local, bad})
			}
		case !a.Local.IsLinkLocalUnicast() && len(now.Others) < maxGuestAddrs:
			now.Others = append(now.Others, a.Local)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(addrs, func(a, b ranked) int { return cmp.Compare(a.bad, b.bad) })
	for _, a := range addrs {
		now.Addrs = append(now.Addrs, a.addr)
	}
	return &now, nil
}
