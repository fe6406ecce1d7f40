package netconf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"fusilli/autodetect/rtnl"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// attr is one attribute of a message made by hand.
type attr struct {
	Type  uint16
	Value []byte
}

func routeMessage(flags uint32, attrs ...attr) []byte {
	b := rtnl.RouteHeader{
		Family: unix.AF_INET, DstLen: 8, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC,
		Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST, Flags: flags,
	}.Body()
	return appendAttrs(b, attrs...)
}

func addressMessage(flags uint8, attrs ...attr) []byte {
	return appendAttrs(rtnl.AddressBody(unix.AF_INET, 3, 24, flags, unix.RT_SCOPE_UNIVERSE), attrs...)
}

func appendAttrs(b []byte, attrs ...attr) []byte {
	for _, a := range attrs {
		b = rtnl.AppendAttr(b, a.Type, a.Value)
	}
	return b
}

func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func hop(flags, weight uint8, index uint32, attrs ...attr) []byte {
	b := make([]byte, unix.SizeofRtNexthop)
	b[2], b[3] = flags, weight
	binary.NativeEndian.PutUint32(b[4:], index)
	b = appendAttrs(b, attrs...)
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	return b
}

func join(list ...[]byte) []byte {
	var b []byte
	for _, l := range list {
		b = append(b, l...)
	}
	return b
}

func TestCopyRoute(t *testing.T) {
	dst := attr{unix.RTA_DST, []byte{10, 0, 0, 0}}
	gw := attr{unix.RTA_GATEWAY, []byte{192, 0, 2, 1}}
	unknown := attr{77, []byte("kept")}
	metrics := attr{unix.RTA_METRICS, rtnl.AppendUint32(nil, unix.RTAX_MTU, 1400)}
	for _, tt := range []struct {
		name     string
		in, want []byte
	}{
		{"plain",
			routeMessage(0, dst, attr{unix.RTA_OIF, number(3)}, gw, metrics, unknown),
			routeMessage(0, dst, attr{unix.RTA_OIF, number(9)}, gw, metrics, unknown)},
		{"what a guest lacks is gone",
			routeMessage(0, dst, attr{unix.RTA_PREFSRC, []byte{192, 0, 2, 2}}, attr{rtaNextHopID, number(5)},
				attr{unix.RTA_CACHEINFO, make([]byte, 32)}, attr{unix.RTA_OIF, number(3)}),
			routeMessage(0, dst, attr{unix.RTA_OIF, number(9)})},
		{"flags of state are cleared",
			routeMessage(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN|unix.RTNH_F_ONLINK|unix.RTM_F_OFFLOAD, gw),
			routeMessage(unix.RTNH_F_ONLINK, gw)},
		{"multipath",
			routeMessage(0, dst, attr{unix.RTA_MULTIPATH, join(
				hop(unix.RTNH_F_ONLINK|unix.RTNH_F_LINKDOWN, 6, 3, gw),
				hop(unix.RTNH_F_DEAD, 0, 3, gw, unknown))}),
			routeMessage(0, dst, attr{unix.RTA_MULTIPATH, join(
				hop(unix.RTNH_F_ONLINK, 6, 9, gw),
				hop(0, 0, 9, gw, unknown))})},
		{"nothing but a header", routeMessage(0), routeMessage(0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := append([]byte(nil), tt.in...)
			got, err := copyRoute(tt.in, 9)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(before, tt.in); diff != "" {
				t.Error("message was written to:\n", diff)
			}
		})
	}
}

func TestCopyAddress(t *testing.T) {
	local := attr{unix.IFA_LOCAL, []byte{192, 0, 2, 2}}
	peer := attr{unix.IFA_ADDRESS, []byte{192, 0, 2, 3}}
	in := addressMessage(unix.IFA_F_SECONDARY|unix.IFA_F_PERMANENT, peer, local,
		attr{unix.IFA_LABEL, []byte("e0\x00")}, attr{unix.IFA_CACHEINFO, make([]byte, 16)},
		attr{unix.IFA_FLAGS, number(unix.IFA_F_PERMANENT | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MANAGETEMPADDR)},
		attr{unix.IFA_RT_PRIORITY, number(7)})
	got, err := copyAddress(in, unix.AF_INET, 9)
	if err != nil {
		t.Fatal(err)
	}
	const flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	want := appendAttrs(rtnl.AddressBody(unix.AF_INET, 9, 24, flags&0xff, unix.RT_SCOPE_UNIVERSE),
		peer, local, attr{unix.IFA_RT_PRIORITY, number(7)}, attr{unix.IFA_FLAGS, number(flags)})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCopyMalformed(t *testing.T) {
	long := rtnl.AppendAttr(routeMessage(0), unix.RTA_GATEWAY, []byte{1, 2, 3, 4})
	binary.NativeEndian.PutUint16(long[unix.SizeofRtMsg:], 9)
	short := rtnl.AppendAttr(routeMessage(0), unix.RTA_GATEWAY, []byte{1, 2, 3, 4})
	binary.NativeEndian.PutUint16(short[unix.SizeofRtMsg:], 3)
	endless := hop(0, 0, 3)
	binary.NativeEndian.PutUint16(endless, 0)
	beyond := hop(0, 0, 3)
	binary.NativeEndian.PutUint16(beyond, 12)
	inHop := hop(0, 0, 3, attr{unix.RTA_GATEWAY, []byte{1, 2, 3, 4}})
	binary.NativeEndian.PutUint16(inHop[unix.SizeofRtNexthop:], 99)
	for _, tt := range []struct {
		name string
		in   []byte
	}{
		{"empty", nil},
		{"short header", make([]byte, unix.SizeofRtMsg-1)},
		{"attribute beyond the end", long},
		{"attribute shorter than its header", short},
		{"hop of no length", routeMessage(0, attr{unix.RTA_MULTIPATH, endless})},
		{"hop beyond the end", routeMessage(0, attr{unix.RTA_MULTIPATH, beyond})},
		{"attribute beyond the hop", routeMessage(0, attr{unix.RTA_MULTIPATH, inHop})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := copyRoute(tt.in, 9); !errors.Is(err, rtnl.ErrMalformed) {
				t.Errorf("copyRoute = %v, want ErrMalformed", err)
			}
		})
	}
}

// What is copied parses, and leads through the new interface in every hop.
func FuzzCopyRoute(f *testing.F) {
	gw := attr{unix.RTA_GATEWAY, []byte{192, 0, 2, 1}}
	f.Add(routeMessage(0, attr{unix.RTA_OIF, number(3)}, gw))
	f.Add(routeMessage(0, attr{unix.RTA_MULTIPATH, join(hop(0, 6, 3, gw), hop(0, 0, 3))}))
	f.Add(routeMessage(0, attr{unix.RTA_MULTIPATH, hop(0, 6, 3, gw)})[:30])
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := append([]byte(nil), msg...)
		got, err := copyRoute(msg, 9)
		if string(before) != string(msg) {
			t.Fatal("message was written to")
		}
		if err != nil {
			return
		}
		r, err := rtnl.ParseRoute(msg)
		if err != nil {
			return
		}
		c, err := rtnl.ParseRoute(got)
		if err != nil {
			t.Fatalf("copy %x of %x: %v", got, msg, err)
		}
		for _, h := range c.Hops {
			if h.Index != 9 {
				t.Fatalf("copy leads through %d: %x", h.Index, got)
			}
		}
		for i := range r.Hops {
			r.Hops[i].Index = 9
		}
		// A plain route through interface 0 is one without an interface.
		if r.Hops == nil && len(c.Hops) == 1 {
			c.Hops = nil
		}
		r.Flags &= keepRouteFlags
		if diff := cmp.Diff(r, c, cmp.Comparer(func(a, b rtnl.Hop) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzCopyAddress(f *testing.F) {
	f.Add(addressMessage(0, attr{unix.IFA_LOCAL, []byte{192, 0, 2, 2}}, attr{unix.IFA_FLAGS, number(0x80)}))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		got, err := copyAddress(msg, unix.AF_INET, 9)
		if err != nil {
			return
		}
		a, err := rtnl.ParseAddress(got)
		if err != nil || a.Index != 9 || a.Flags&unix.IFA_F_NODAD == 0 {
			t.Fatalf("copy %x: %+v, %v", got, a, err)
		}
	})
}
