package autodetect

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResolve(t *testing.T) {
	gw, forward := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	gw6 := netip.MustParseAddr("fe80::1")
	one := func(resolvers []netip.Addr, match, host string) DNSFamily {
		f := DNSFamily{Resolvers: resolvers}
		if match != "" {
			f.Match = netip.MustParseAddr(match)
		}
		if host != "" {
			f.Host = netip.MustParseAddr(host)
		}
		return f
	}
	for _, tt := range []struct {
		name string
		o    DNSOptions
		rc   Resolv
		want DNS
	}{
		{"nothing at all", DNSOptions{}, Resolv{}, DNS{NoneFound: true}},
		{"from the file", DNSOptions{},
			Resolv{addrs("192.0.2.53"), addrs("2001:db8::53"), []string{"a.example"}},
			DNS{V4: one(addrs("192.0.2.53"), "", "192.0.2.53"), V6: one(addrs("2001:db8::53"), "", "2001:db8::53"), Search: []string{"a.example"}}},
		{"three of a family", DNSOptions{}, Resolv{V4: addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")},
			DNS{V4: one(addrs("192.0.2.1", "192.0.2.2", "192.0.2.3"), "", "192.0.2.1")}},
		{"loopback resolver becomes the alias", DNSOptions{V4: DNSFamilyOptions{Loopback: gw}, V6: DNSFamilyOptions{Loopback: gw6}},
			Resolv{V4: addrs("127.0.0.53", "192.0.2.53"), V6: addrs("::1")},
			DNS{V4: one(addrs("192.0.2.1", "192.0.2.53"), "192.0.2.1", "127.0.0.53"), V6: one(addrs("fe80::1"), "fe80::1", "::1")}},
		{"two loopback resolvers are announced once", DNSOptions{V4: DNSFamilyOptions{Loopback: gw}},
			Resolv{V4: addrs("127.0.0.53", "127.0.0.1")}, DNS{V4: one(addrs("192.0.2.1"), "192.0.2.1", "127.0.0.53")}},
		{"the unspecified address is the host itself", DNSOptions{V4: DNSFamilyOptions{Loopback: gw}},
			Resolv{V4: addrs("0.0.0.0")}, DNS{V4: one(addrs("192.0.2.1"), "192.0.2.1", "0.0.0.0")}},
		{"a resolver that is the alias", DNSOptions{V4: DNSFamilyOptions{Loopback: gw}},
			Resolv{V4: addrs("192.0.2.1")}, DNS{V4: one(addrs("192.0.2.1"), "192.0.2.1", "192.0.2.1")}},
		{"loopback resolver without alias is out of reach", DNSOptions{}, Resolv{V4: addrs("127.0.0.53", "192.0.2.53")},
			DNS{V4: one(addrs("192.0.2.53"), "", "127.0.0.53")}},
		{"one out of reach takes no place", DNSOptions{}, Resolv{V4: addrs("127.0.0.53", "192.0.2.1", "192.0.2.2", "192.0.2.3")},
			DNS{V4: one(addrs("192.0.2.1", "192.0.2.2", "192.0.2.3"), "", "127.0.0.53")}},
		{"only loopback without alias", DNSOptions{}, Resolv{V4: addrs("127.0.0.53")},
			DNS{V4: one(nil, "", "127.0.0.53"), NoneFound: true}},
		{"--dns-forward and a loopback resolver", DNSOptions{V4: DNSFamilyOptions{Forward: forward, Loopback: gw}}, Resolv{V4: addrs("127.0.0.53")},
			DNS{V4: one(addrs("198.51.100.1"), "198.51.100.1", "127.0.0.53")}},
		{"--dns-forward without alias", DNSOptions{V4: DNSFamilyOptions{Forward: forward}}, Resolv{V4: addrs("127.0.0.53")},
			DNS{V4: one(addrs("198.51.100.1"), "198.51.100.1", "127.0.0.53")}},
		{"--dns-forward and another resolver", DNSOptions{V4: DNSFamilyOptions{Forward: forward, Loopback: gw}}, Resolv{V4: addrs("192.0.2.53")},
			DNS{V4: one(addrs("192.0.2.53"), "198.51.100.1", "192.0.2.53")}},
		{"--dns-host", DNSOptions{V4: DNSFamilyOptions{Forward: forward, Host: netip.MustParseAddr("127.0.0.99")}}, Resolv{V4: addrs("192.0.2.53")},
			DNS{V4: one(addrs("192.0.2.53"), "198.51.100.1", "127.0.0.99")}},
		{"-D of one family", DNSOptions{V4: DNSFamilyOptions{Resolvers: addrs("203.0.113.53"), Loopback: gw}},
			Resolv{V4: addrs("127.0.0.53"), V6: addrs("2001:db8::53")},
			DNS{V4: one(addrs("203.0.113.53"), "", "127.0.0.53"), V6: one(addrs("2001:db8::53"), "", "2001:db8::53")}},
		{"-D with a loopback address", DNSOptions{V4: DNSFamilyOptions{Resolvers: addrs("127.0.0.1"), Loopback: gw}, V6: DNSFamilyOptions{Disabled: true}}, Resolv{},
			DNS{V4: one(addrs("127.0.0.1"), "", "")}},
		{"-D none", DNSOptions{NoResolvers: true}, Resolv{addrs("192.0.2.53"), addrs("2001:db8::53"), []string{"a.example"}},
			DNS{Search: []string{"a.example"}}},
		{"-S", DNSOptions{Search: []string{"b.example", "c.example"}, NoResolvers: true}, Resolv{Search: []string{"a.example"}},
			DNS{Search: []string{"b.example", "c.example"}}},
		{"-S none", DNSOptions{NoSearch: true, NoResolvers: true}, Resolv{Search: []string{"a.example"}}, DNS{}},
		{"one family only", DNSOptions{V6: DNSFamilyOptions{Disabled: true}}, Resolv{V4: addrs("192.0.2.53"), V6: addrs("2001:db8::53")},
			DNS{V4: one(addrs("192.0.2.53"), "", "192.0.2.53")}},
		{"resolvers of the other family only", DNSOptions{V6: DNSFamilyOptions{Disabled: true}}, Resolv{V6: addrs("2001:db8::53")},
			DNS{NoneFound: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.o.Resolve(&tt.rc), compareAddr); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNeedResolv(t *testing.T) {
	given := DNSFamilyOptions{Resolvers: addrs("192.0.2.53")}
	off := DNSFamilyOptions{Disabled: true}
	forward := given
	forward.Forward = netip.MustParseAddr("198.51.100.1")
	both := forward
	both.Host = netip.MustParseAddr("192.0.2.54")
	for _, tt := range []struct {
		name string
		o    DNSOptions
		want bool
	}{
		{"nothing given", DNSOptions{}, true},
		{"search list only", DNSOptions{NoResolvers: true}, true},
		{"all none", DNSOptions{NoResolvers: true, NoSearch: true}, false},
		{"search list and no resolvers", DNSOptions{NoResolvers: true, Search: []string{"a"}}, false},
		{"one family given", DNSOptions{V4: given, NoSearch: true}, true},
		{"one family given, the other off", DNSOptions{V4: given, V6: off, NoSearch: true}, false},
		{"both given", DNSOptions{V4: given, V6: given, NoSearch: true}, false},
		{"forward without host", DNSOptions{V4: forward, V6: off, NoSearch: true}, true},
		{"forward with host", DNSOptions{V4: both, V6: off, NoSearch: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.o.NeedResolv(); got != tt.want {
				t.Errorf("NeedResolv = %v", got)
			}
		})
	}
}
