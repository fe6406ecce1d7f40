package rtnl

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseRouteOfOddTables(t *testing.T) {
	b := RouteHeader{Family: unix.AF_INET, DstLen: 24, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}.Body()
	b = AppendUint32(b, unix.RTA_TABLE, 100000)
	b = AppendAttr(b, unix.RTA_DST, []byte{192, 0, 2, 77})
	b = AppendUint32(b, unix.RTA_OIF, 4)
	r, err := ParseRoute(b)
	if err != nil || r.Table != 100000 || r.Dst != netip.MustParsePrefix("192.0.2.0/24") || r.Hops[0].Index != 4 {
		t.Error(r, err)
	}
}

func TestParseMalformed(t *testing.T) {
	v4 := RouteHeader{Family: unix.AF_INET}.Body()
	a4 := AddressBody(unix.AF_INET, 1, 24, 0, 0)
	for _, tt := range []struct {
		name  string
		parse func([]byte) error
		in    []byte
	}{
		{"no route", parseRoute, nil},
		{"other family", parseRoute, RouteHeader{Family: unix.AF_BRIDGE}.Body()},
		{"prefix too long", parseRoute, RouteHeader{Family: unix.AF_INET, DstLen: 33}.Body()},
		{"address of the other family", parseRoute, AppendAttr(v4, unix.RTA_GATEWAY, make([]byte, 16))},
		{"short number", parseRoute, AppendAttr(v4, unix.RTA_OIF, []byte{1})},
		{"no address", parseAddress, a4},
		{"short header", parseAddress, a4[:7]},
		{"address too short", parseAddress, AppendAttr(a4, unix.IFA_LOCAL, []byte{1, 2, 3})},
		{"no neighbour", parseNeighbour, nil},
		{"neighbour without an address", parseNeighbour, NeighbourBody(unix.AF_INET, 1)},
		{"neighbour of a bridge", parseNeighbour, AppendAttr(NeighbourBody(unix.AF_BRIDGE, 1), unix.NDA_DST, make([]byte, 4))},
		{"neighbour's address of the other family", parseNeighbour, AppendAttr(NeighbourBody(unix.AF_INET, 1), unix.NDA_DST, make([]byte, 16))},
		{"no link", parseLink, nil},
		{"short index of the master", parseLink, AppendAttr(LinkBody(1, 0, 0), unix.IFLA_MASTER, []byte{1})},
		{"short MTU", parseLink, AppendAttr(LinkBody(1, 0, 0), unix.IFLA_MTU, []byte{1})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.parse(tt.in); err != ErrMalformed {
				t.Errorf("%v, want ErrMalformed", err)
			}
		})
	}
}

// A neighbour's hardware address counts in the states in which the kernel sends to it.
func TestStatesOfNeighbours(t *testing.T) {
	mac := []byte{2, 0, 0, 0, 0, 1}
	for _, tt := range []struct {
		name  string
		state uint16
		mac   []byte
		known bool
	}{
		{"permanent", unix.NUD_PERMANENT, mac, true},
		{"noarp", unix.NUD_NOARP, mac, true},
		{"reachable", unix.NUD_REACHABLE, mac, true},
		{"probe", unix.NUD_PROBE, mac, true},
		{"stale", unix.NUD_STALE, mac, true},
		{"delay", unix.NUD_DELAY, mac, true},
		{"incomplete", unix.NUD_INCOMPLETE, mac, false},
		{"failed", unix.NUD_FAILED, mac, false},
		{"none", unix.NUD_NONE, mac, false},
		{"no address", unix.NUD_REACHABLE, nil, false},
		{"not of Ethernet", unix.NUD_REACHABLE, make([]byte, 20), false},
		{"of a group", unix.NUD_NOARP, []byte{1, 0, 0x5e, 0, 0, 1}, false},
		{"zero, as on the loopback interface", unix.NUD_NOARP, make([]byte, 6), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NeighbourBody(unix.AF_INET, 3)
			binary.NativeEndian.PutUint16(b[8:], tt.state)
			b = AppendAttr(b, unix.NDA_DST, []byte{192, 0, 2, 1})
			if tt.mac != nil {
				b = AppendAttr(b, unix.NDA_LLADDR, tt.mac)
			}
			n, err := ParseNeighbour(b)
			if err != nil || n.Addr != netip.MustParseAddr("192.0.2.1") || n.Index != 3 || (n.MAC != nil) != tt.known {
				t.Errorf("%+v, %v", n, err)
			}
			b[10] = unix.NTF_PROXY
			if _, err := ParseNeighbour(b); err != ErrMalformed {
				t.Errorf("proxy: %v", err)
			}
		})
	}
}

func parseRoute(b []byte) error   { _, err := ParseRoute(b); return err }
func parseAddress(b []byte) error { _, err := ParseAddress(b); return err }
func parseNeighbour(b []byte) error {
	_, err := ParseNeighbour(b)
	return err
}
func parseLink(b []byte) error { _, err := ParseLink(b); return err }

// An attribute's padding may be missing at the very end of a message.
func TestEachAttrWithoutPadding(t *testing.T) {
	b := binary.NativeEndian.AppendUint16(nil, 5)
	b = append(binary.NativeEndian.AppendUint16(b, 1|unix.NLA_F_NESTED), 'x')
	n := 0
	err := EachAttr(b, func(typ uint16, val []byte) error {
		n++
		if typ != 1 || string(val) != "x" {
			t.Error(typ, val)
		}
		return nil
	})
	if err != nil || n != 1 {
		t.Error(n, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(AppendAttr(RouteHeader{Family: unix.AF_INET6}.Body(), unix.RTA_GATEWAY, make([]byte, 16)))
	f.Add(AppendAttr(AddressBody(unix.AF_INET, 1, 24, 0, 0), unix.IFA_LOCAL, make([]byte, 4)))
	f.Add(AppendAttr(LinkBody(1, 0, 0), unix.IFLA_IFNAME, []byte("lo\x00")))
	f.Add(AppendAttr(AppendAttr(NeighbourBody(unix.AF_INET, 1), unix.NDA_DST, make([]byte, 4)), unix.NDA_LLADDR, make([]byte, 6)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ParseRoute(b); err == nil && !r.Dst.IsValid() {
			t.Error(r)
		}
		if a, err := ParseAddress(b); err == nil && !a.Local.IsValid() {
			t.Error(a)
		}
		_, _ = ParseLink(b)
		if n, err := ParseNeighbour(b); err == nil && (!n.Addr.IsValid() || n.MAC != nil && len(n.MAC) != 6) {
			t.Error(n)
		}
	})
}
