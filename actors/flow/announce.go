package flow

import (
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"fusilli/tapio/frame"
)

// Sides of a flow, as logs name them.
const (
	sideTap       = "TAP"
	sideHost      = "HOST"
	sideNamespace = "SPLICE" // socket to socket
)

// Announcer logs the flows that begin and end, at debug level, in a form that people know, and
// numbers them. It costs nothing at other levels, and a nil one is silent. Its methods may be
// called side by side.
type Announcer struct {
	log    *zap.Logger
	number atomic.Uint64
}

// Announced is a flow whose beginning was logged; nil is one of those that are not. It belongs to
// the flow.
type Announced struct {
	log  *zap.Logger
	name string
	at   time.Time
}

// End tells of the flow's end.
func (f *Announced) End() {
	if f != nil {
		f.log.Debug(f.name + ": ended after " + time.Since(f.at).Round(time.Microsecond).String())
	}
}

// NewAnnouncer returns an announcer that logs to log.
func NewAnnouncer(log *zap.Logger) *Announcer { return &Announcer{log: log} }

// On reports whether anything would be logged.
func (a *Announcer) On() bool { return a != nil && a.log.Core().Enabled(zap.DebugLevel) }

// FromGuest tells of the flow k, as the guest sees it, that goes to host.
func (a *Announcer) FromGuest(k *Key, host netip.AddrPort) *Announced {
	if !a.On() {
		return nil
	}
	guest, remote := ofGuest(k)
	return a.tell(typeOf(k), ends(sideTap, guest, remote), ends(sideHost, unspecified(host), host))
}

// FromHost tells of the flow k, as the guest sees it, that peer has begun with our address local.
func (a *Announcer) FromHost(k *Key, peer, local netip.AddrPort) *Announced {
	if !a.On() {
		return nil
	}
	guest, remote := ofGuest(k)
	return a.tell(typeOf(k), ends(sideHost, peer, local), ends(sideTap, remote, guest))
}

// Spliced tells of a flow from socket to socket that peer has begun with our address local, and
// that goes to dst: into the namespace, or out of it. proto is frame.ProtoTCP or frame.ProtoUDP.
func (a *Announcer) Spliced(proto uint16, inwards bool, peer, local, dst netip.AddrPort) *Announced {
	if !a.On() {
		return nil
	}
	kind := typeOf(&Key{Proto: proto})
	if proto == frame.ProtoTCP {
		kind += " (spliced)"
	}
	from, to := sideNamespace, sideHost
	if inwards {
		from, to = to, from
	}
	return a.tell(kind, ends(from, peer, local), ends(to, unspecified(dst), dst))
}

func (a *Announcer) tell(kind, from, to string) *Announced {
	f := &Announced{log: a.log, at: time.Now()}
	f.name = "Flow " + strconv.FormatUint(a.number.Add(1)-1, 10) + " (" + kind + ")"
	a.log.Debug(f.name + ": " + from + " => " + to)
	return f
}

// ofGuest returns both ends of a flow as the guest sees them.
func ofGuest(k *Key) (guest, remote netip.AddrPort) {
	return netip.AddrPortFrom(frame.NetIP(k.Guest), k.GuestPort), netip.AddrPortFrom(frame.NetIP(k.Remote), k.RemotePort)
}

// unspecified is the address of a socket that is not bound yet and will be used with a.
func unspecified(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
}

// ends writes one side of a flow.
func ends(side string, src, dst netip.AddrPort) string {
	return side + " " + endpoint(src) + " -> " + endpoint(dst)
}

func endpoint(a netip.AddrPort) string {
	return "[" + a.Addr().String() + "]:" + strconv.Itoa(int(a.Port()))
}

// typeOf names the kind of a flow.
func typeOf(k *Key) string {
	switch k.Proto {
	case frame.ProtoTCP:
		return "TCP connection"
	case frame.ProtoUDP:
		return "UDP flow"
	case frame.ProtoICMP:
		return "ICMP ping sequence"
	}
	return "ICMPv6 ping sequence"
}
