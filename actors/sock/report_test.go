package sock

import (
	"bytes"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message returns a control message.
func message(level, typ int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func TestParseReport(t *testing.T) {
	head := []byte{byte(unix.EHOSTUNREACH), 0, 0, 0, unix.SO_EE_ORIGIN_ICMP, 3, 13, 0, 0x78, 5, 0, 0, 0, 0, 0, 0}
	v4 := append(bytes.Clone(head), unix.AF_INET, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0)
	v6 := append(bytes.Clone(head), unix.AF_INET6, 0, 0, 0, 0, 0, 0, 0)
	a := netip.MustParseAddr("2001:db8::1").As16()
	v6 = append(append(v6, a[:]...), 0, 0, 0, 0)
	want := Report{Err: unix.EHOSTUNREACH, Origin: unix.SO_EE_ORIGIN_ICMP, Type: 3, Code: 13, Info: 0x578}
	for _, tt := range []struct {
		name string
		b    []byte
		from netip.Addr
	}{
		{"IPv4", v4, netip.MustParseAddr("192.0.2.1")},
		{"IPv6", v6, netip.MustParseAddr("2001:db8::1")},
		{"nobody", head, netip.Addr{}},
		{"address cut off", v6[:40], netip.Addr{}},
	} {
		want := want
		want.From = tt.from
		if got := parseReport(tt.b); got != want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, want)
		}
	}
	if got := parseReport(head[:15]); got != (Report{}) {
		t.Errorf("cut off: %+v", got)
	}
}

func FuzzControlMessages(f *testing.F) {
	f.Add(message(unix.SOL_IP, unix.IP_RECVERR, make([]byte, 32)))
	f.Add(append(message(unix.SOL_IP, unix.IP_TTL, make([]byte, 4)), message(unix.SOL_IPV6, unix.IPV6_RECVERR, make([]byte, 44))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		each(b, func(_, _ int32, data []byte) bool {
			n += unix.SizeofCmsghdr + len(data)
			parseReport(data)
			return true
		})
		var c Control
		c.Parse(copy(c[:], b))
		if n > len(b) {
			t.Errorf("%d bytes of messages in %d", n, len(b))
		}
	})
}
