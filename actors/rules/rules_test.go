package rules

import (
	"net/netip"
	"testing"
)

func TestOut(t *testing.T) {
	a := netip.MustParseAddr
	mapped := Rules{HostLoopback4: a("192.0.2.1"), HostLoopback6: a("fe80::1")}
	for _, tt := range []struct {
		name  string
		rules Rules
		dst   string
		want  string
	}{
		{"IPv4 alias of the loopback address", mapped, "192.0.2.1", "127.0.0.1"},
		{"IPv6 alias of the loopback address", mapped, "fe80::1", "::1"},
		{"any other IPv4 address", mapped, "198.51.100.7", "198.51.100.7"},
		{"any other IPv6 address", mapped, "2001:db8::7", "2001:db8::7"},
		{"multicast", mapped, "224.0.0.251", "224.0.0.251"},
		{"no alias, IPv4", Rules{}, "192.0.2.1", "192.0.2.1"},
		{"no alias, IPv6", Rules{}, "fe80::1", "fe80::1"},
		{"no alias, unspecified", Rules{}, "0.0.0.0", "0.0.0.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.rules.Out(a(tt.dst)); got != a(tt.want) {
				t.Errorf("Out(%s) = %s, want %s", tt.dst, got, tt.want)
			}
		})
	}
}
