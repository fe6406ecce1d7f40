package sock

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzDestination reads any control messages; and what a Source has set is read as what it was.
func FuzzDestination(f *testing.F) {
	f.Add(message(unix.SOL_IP, unix.IP_PKTINFO, make([]byte, unix.SizeofInet4Pktinfo)), uint32(0))
	f.Add(message(unix.SOL_IPV6, unix.IPV6_PKTINFO, make([]byte, unix.SizeofInet6Pktinfo)), uint32(7))
	f.Add(append(message(unix.SOL_IP, unix.IP_TTL, make([]byte, 4)), message(unix.SOL_IPV6, unix.IPV6_PKTINFO, make([]byte, 19))...), uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, iface uint32) {
		var c Control
		at, _, _, ok := c.Destination(copy(c[:], b))
		if !ok && at != [16]byte{} {
			t.Errorf("destination %v that there is none of", at)
		}
		if len(b) < 16 {
			return
		}
		a := netip.AddrFrom16([16]byte(b)).Unmap()
		var s Source
		s.Set(a, iface)
		c = Control{}
		n := copy(c[:], s.b[:s.n])
		at, got, _, ok := c.Destination(n)
		if a.Is4() {
			// What is sent from is ipi_spec_dst, which is not where a datagram has come to.
			a = netip.IPv4Unspecified()
		}
		if !ok || netip.AddrFrom16(at).Unmap() != a || got != iface {
			t.Errorf("%v by %d, %v, want %v by %d", at, got, ok, a, iface)
		}
	})
}
