package app

import (
	"context"
	"net/netip"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors"
	"fusilli/autodetect"
	"fusilli/autodetect/rtnl"
	"fusilli/internal/process"
	"fusilli/tapio"
)

// guestWatch tells an engine what the kernel of the guest's namespace says about the guest's
// addresses. A nil one has nothing to tell.
type guestWatch struct {
	monitor *autodetect.GuestMonitor
	log     *zap.Logger
}

// openGuestWatch opens what the guest's addresses are watched with, before that is forbidden; nil
// for a guest that is no namespace.
func openGuestWatch(env *process.Env, link tapio.Link, log *zap.Logger) *guestWatch {
	tap, ok := link.(*tapio.Tap)
	if !ok || env.NetNS == nil {
		return nil
	}
	w := &guestWatch{log: log}
	err := env.NetNS.Do(func() (err error) {
		w.monitor, err = autodetect.MonitorGuest(tap.Name())
		return err
	})
	if err != nil {
		log.Warn("The guest is asked for its addresses on its link, not its kernel", zap.Error(err))
		return nil
	}
	return w
}

// close gives back what w has opened.
func (w *guestWatch) close() {
	if w != nil {
		w.monitor.Close()
	}
}

// run watches until ctx ends.
func (w *guestWatch) run(ctx context.Context, e *actors.Engine) {
	if w == nil {
		return
	}
	err := w.monitor.Run(ctx, func(g *autodetect.Guest) {
		if g == nil {
			e.GuestInterface(nil)
			return
		}
		e.GuestInterface(&actors.Interface{MAC: g.MAC, Addrs: g.Addrs, Others: g.Others})
	})
	if err != nil {
		e.GuestInterface(nil)
		w.log.Warn("The guest is asked for its addresses on its link from now on, not its kernel", zap.Error(err))
	}
}

// hostAddrs knows the host's addresses as they are at the moment.
type hostAddrs struct {
	conn *rtnl.Conn
	not  []netip.Addr // the guest's, which the host usually has too
}

// openHostAddrs opens what they are asked for with, before that is forbidden.
func openHostAddrs(host *autodetect.Host, log *zap.Logger) *hostAddrs {
	conn, err := rtnl.Open()
	if err != nil {
		log.Debug("The host's addresses are not known", zap.Error(err))
	}
	return &hostAddrs{conn, []netip.Addr{host.V4.Address, host.V6.Address}}
}

func (h *hostAddrs) close() {
	if h.conn != nil {
		h.conn.Close()
	}
}

// has reports whether a is one of the host's addresses and not meant to be the guest's. Link-local
// ones count on their own link only.
func (h *hostAddrs) has(a netip.Addr) bool {
	if h.conn == nil || a.IsLinkLocalUnicast() && a.Is6() {
		return false
	}
	for _, guest := range h.not {
		if a == guest {
			return false
		}
	}
	r, err := h.conn.RouteTo(a)
	return err == nil && r.Type == unix.RTN_LOCAL
}
