package actors

import (
	"net/netip"
	"strconv"
	"sync/atomic"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// Sides of a flow, as logs name them.
const (
	sideTap  = "TAP"
	sideHost = "HOST"
)

// announcer logs the flows that begin, at debug level. It costs nothing at others.
type announcer struct {
	log    *zap.Logger
	number atomic.Uint64
}

// fromGuest tells of the flow k, as the guest sees it, that goes to host. The forms of these lines
// are ones that people know.
func (a *announcer) fromGuest(k *flow.Key, host netip.AddrPort) {
	if !a.log.Core().Enabled(zap.DebugLevel) {
		return
	}
	text := a.head(k)
	text = ends(text, sideTap, addrPort(k.Guest, k.GuestPort), addrPort(k.Remote, k.RemotePort))
	text = append(text, " => "...)
	text = ends(text, sideHost, unspecified(host), host)
	a.log.Debug(string(text))
}

// fromHost tells of the flow k, as the guest sees it, that peer has begun with the socket fd.
func (a *announcer) fromHost(k *flow.Key, peer netip.AddrPort, fd int) {
	if !a.log.Core().Enabled(zap.DebugLevel) {
		return
	}
	local, ok := sock.Local(fd)
	if !ok {
		local = unspecified(peer)
	}
	text := a.head(k)
	text = ends(text, sideHost, peer, local)
	text = append(text, " => "...)
	text = ends(text, sideTap, addrPort(k.Remote, k.RemotePort), addrPort(k.Guest, k.GuestPort))
	a.log.Debug(string(text))
}

func (a *announcer) head(k *flow.Key) []byte {
	text := strconv.AppendUint([]byte("Flow "), a.number.Add(1)-1, 10)
	text = append(text, " ("...)
	text = append(text, typeOf(k)...)
	return append(text, "): "...)
}

// unspecified is the address of a socket that is not bound yet and will be used with a.
func unspecified(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
}

// ends appends one side of a flow.
func ends(text []byte, side string, src, dst netip.AddrPort) []byte {
	text = append(text, side...)
	text = endpoint(append(text, ' '), src)
	return endpoint(append(text, " -> "...), dst)
}

func endpoint(text []byte, a netip.AddrPort) []byte {
	text = a.Addr().AppendTo(append(text, '['))
	return strconv.AppendUint(append(text, "]:"...), uint64(a.Port()), 10)
}

// typeOf names the kind of a flow as logs do.
func typeOf(k *flow.Key) string {
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
