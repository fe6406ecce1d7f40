package forward

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// unreachable has the host hear that a datagram of its own from port, to a peer whose flow has
// ended, has found nobody.
func (p *place) unreachable(t *testing.T, addr netip.Addr, port uint16) {
	t.Helper()
	a := frame.AddrOf(addr)
	quote := make([]byte, frame.IPv6Len+8)
	ip := frame.IP{Src: a, Dst: a, Proto: frame.ProtoUDP, TTL: 64, Len: 8}
	n := frame.PutIP(quote, &ip)
	binary.BigEndian.PutUint16(quote[n:], port)
	binary.BigEndian.PutUint16(quote[n+2:], 9)
	binary.BigEndian.PutUint16(quote[n+4:], 8)
	quote = quote[:n+8]
	m, proto := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quote...), unix.IPPROTO_ICMP
	if addr.Is6() {
		m[0], m[1], proto = 1, 4, unix.IPPROTO_ICMPV6 // whose checksum the kernel puts in
	} else {
		binary.BigEndian.PutUint16(m[2:], frame.Checksum(m, 0))
	}
	err := p.host.Do(func() error {
		raw, err := unix.Socket(familyOf(addr), unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		defer unix.Close(raw)
		return unix.Sendto(raw, m, 0, sockaddr(netip.AddrPortFrom(addr, 0), 0))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestErrorOnAListenerLeavesIt: a client that has gone away, whose flow has ended, has the host's
// kernel report an error on the listening socket: the next client is served all the same.
func TestErrorOnAListenerLeavesIt(t *testing.T) {
	// else an actor reads it
	p := newPlace(t, func(c *Config) { c.Policy.SpliceOnly, c.Policy.KeepLoopback, c.Tap = true, true, nil })
	p.add(t, "-u 80")
	for i, addr := range []string{"127.0.0.1", "::1"} {
		a := netip.MustParseAddr(addr)
		for round := range 2 { // four errors in all: more are not logged in one second
			said := func() int { return p.logs.FilterMessage("Ignoring UDP error without flow").Len() }
			before := said()
			p.unreachable(t, a, 80)
			await(t, "the error to be read", func() bool { return said() > before })
			from := netip.AddrPortFrom(a, uint16(5000+10*i+round))
			fmt.Fprint(dial(t, p.host, "udp", from.String(), netip.AddrPortFrom(a, 80).String()), "hello")
			if b, _ := p.twin.take(); len(b.First) != 1 || b.First[0] != "hello" {
				t.Errorf("%s: %+v", addr, b)
			}
		}
	}
	p.twin.none()
	if n := p.logs.FilterMessageSnippet("Unrecoverable").Len(); n != 0 {
		t.Errorf("%d errors are taken for more than they are", n)
	}
}
