package autodetect

import (
	"net/netip"
	"testing"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// route makes one; gateway "" is none, several interfaces are hops of rising weight.
func route(dst, gateway string, via ...int) rtnl.Route {
	r := rtnl.Route{Dst: netip.MustParsePrefix(dst), Family: unix.AF_INET6}
	if r.Dst.Addr().Is4() {
		r.Family = unix.AF_INET
	}
	for i, index := range via {
		h := rtnl.Hop{Index: index, Weight: i + 1}
		if gateway != "" {
			h.Gateway = netip.MustParseAddr(gateway)
			for range i {
				h.Gateway = h.Gateway.Next()
			}
		}
		r.Hops = append(r.Hops, h)
	}
	return r
}

func TestTemplate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		routes []rtnl.Route
		index  int
		notice string
	}{
		{"none", nil, 0, "No interfaces with usable IPvX routes"},
		{"one default", []rtnl.Route{route("10.0.0.0/24", "", 2), route("0.0.0.0/0", "10.0.0.1", 3)}, 3, ""},
		{"several defaults", []rtnl.Route{route("0.0.0.0/0", "10.0.0.1", 4), route("0.0.0.0/0", "10.0.0.1", 3)}, 4,
			"Multiple default IPvX routes, picked first"},
		{"multipath takes the first hop", []rtnl.Route{route("::/0", "fe80::1", 5, 6)}, 5, ""},
		{"no default", []rtnl.Route{route("10.0.0.0/24", "", 2)}, 2, ""},
		{"no default, several routes", []rtnl.Route{route("10.0.0.0/24", "", 2), route("10.0.1.0/24", "", 2)}, 2, ""},
		{"no default, several interfaces", []rtnl.Route{route("10.0.0.0/24", "", 3), route("10.0.1.0/24", "", 2)}, 3,
			"Multiple interfaces with IPvX routes, picked first"},
		{"link-local routes", []rtnl.Route{
			route("169.254.0.0/16", "", 2), route("169.254.169.254/32", "10.0.0.1", 2),
			route("fe80::/64", "", 2), route("fe80::/10", "", 2), route("10.0.0.0/8", "", 3)}, 3, ""},
		{"wider than link-local", []rtnl.Route{route("169.0.0.0/8", "", 2)}, 2, ""},
		{"wider than IPv6 link-local", []rtnl.Route{route("fe80::/9", "", 2)}, 2, ""},
		{"loopback", []rtnl.Route{route("0.0.0.0/0", "", 1), route("10.0.0.0/8", "", 1)}, 0, "No interfaces with usable IPvX routes"},
		{"no output interface", []rtnl.Route{route("0.0.0.0/0", "")}, 0, "No interfaces with usable IPvX routes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			index, notice := template(tt.routes, "IPvX")
			if index != tt.index || notice != tt.notice {
				t.Errorf("template = %d %q, want %d %q", index, notice, tt.index, tt.notice)
			}
		})
	}
}

func TestGateway(t *testing.T) {
	for _, tt := range []struct {
		name   string
		routes []rtnl.Route
		want   string
	}{
		{"none", []rtnl.Route{route("10.0.0.0/8", "10.0.0.1", 3)}, "invalid IP"},
		{"first on the interface", []rtnl.Route{
			route("0.0.0.0/0", "10.0.0.1", 2), route("0.0.0.0/0", "10.0.0.5", 3), route("0.0.0.0/0", "10.0.0.6", 3)}, "10.0.0.5"},
		{"point-to-point", []rtnl.Route{route("::/0", "", 3), route("::/0", "fe80::1", 3)}, "invalid IP"},
		{"heaviest hop", []rtnl.Route{route("0.0.0.0/0", "10.0.0.1", 3, 3)}, "10.0.0.2"},
		{"heaviest hop on the interface", []rtnl.Route{route("0.0.0.0/0", "10.0.0.1", 3, 3, 4)}, "10.0.0.2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := gateway(tt.routes, 3).String(); got != tt.want {
				t.Errorf("gateway = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestPrefixLen(t *testing.T) {
	for _, tt := range []struct {
		name, address string
		given, found  int
		fam           family
		want          int
	}{
		{"found", "", 0, 25, ipv4, 25},
		{"given", "10.0.0.1", 26, 25, ipv4, 26},
		{"given without an address", "", 26, 25, ipv4, 26},
		{"class A", "10.0.0.1", 0, 25, ipv4, 8},
		{"class B", "172.16.0.1", 0, 25, ipv4, 16},
		{"class C", "192.0.2.1", 0, 25, ipv4, 24},
		{"no class", "240.0.0.1", 0, 25, ipv4, 32},
		{"IPv6", "2001:db8::1", 48, 128, ipv6, 64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := FamilyOptions{PrefixLen: tt.given}
			if tt.address != "" {
				o.Address = netip.MustParseAddr(tt.address)
			}
			if got := prefixLen(tt.fam, o, tt.found); got != tt.want {
				t.Errorf("prefixLen = %d, want %d", got, tt.want)
			}
		})
	}
}
