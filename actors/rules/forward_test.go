package rules

import (
	"net/netip"
	"testing"
)

// show writes a route down.
func show(r Route) string {
	text := [...]string{"nowhere", "tap", "namespace", "host"}[r.Place]
	if r.Place == Nowhere {
		return text
	}
	return text + " " + r.Src.String() + " > " + r.Dst.String()
}

func TestInbound(t *testing.T) {
	var (
		splice   = Policy{Splice: true}
		loopback = Policy{Splice: true, KeepLoopback: true}
		only     = Policy{Splice: true, SpliceOnly: true, KeepLoopback: true}
		tap      = Policy{} // passt, or pasta without splicing
	)
	for _, tt := range []struct {
		name   string
		rules  Rules
		policy Policy
		guest  Guest
		from   string
		at     string
		target string
		want   string
	}{
		{"loopback", usual, splice, guest, "127.0.0.1:4000", "127.0.0.1", "",
			"namespace 0.0.0.0:4000 > 192.0.2.10:80"},
		{"IPv6 loopback", usual, splice, guest, "[::1]:4000", "::1", "",
			"namespace [::]:4000 > [2001:db8::10]:80"},
		{"the rest of 127/8", usual, splice, guest, "127.0.0.2:4000", "127.0.0.53", "",
			"namespace 0.0.0.0:4000 > 192.0.2.10:80"},
		{"loopback to the address the guest was seen with", usual, splice, moved, "127.0.0.1:4000", "127.0.0.1", "",
			"namespace 0.0.0.0:4000 > 192.0.2.20:80"},
		{"loopback to an address not known yet", usual, splice, Guest{V4: guest.V4}, "[::1]:4000", "::1", "", "nowhere"},
		{"loopback source, other destination", usual, splice, guest, "127.0.0.1:4000", "192.0.2.10", "",
			"namespace 0.0.0.0:4000 > 192.0.2.10:80"},
		{"loopback kept", usual, loopback, guest, "127.0.0.1:4000", "127.0.0.1", "",
			"namespace 0.0.0.0:4000 > 127.0.0.1:80"},
		{"loopback kept, exact address", usual, loopback, guest, "127.0.0.1:4000", "127.0.0.53", "",
			"namespace 0.0.0.0:4000 > 127.0.0.53:80"},
		{"IPv6 loopback kept", usual, loopback, guest, "[::1]:4000", "::1", "",
			"namespace [::]:4000 > [::1]:80"},
		{"loopback kept, source only", usual, loopback, guest, "127.0.0.1:4000", "192.0.2.10", "",
			"namespace 0.0.0.0:4000 > 192.0.2.10:80"},
		{"loopback kept has no effect on others", usual, loopback, guest, "198.51.100.7:4000", "192.0.2.10", "",
			"tap 198.51.100.7:4000 > 192.0.2.10:80"},
		{"target address, from loopback", usual, splice, guest, "127.0.0.1:4000", "127.0.0.1", "192.0.2.30",
			"tap 192.0.2.1:4000 > 192.0.2.30:80"},
		{"target address, loopback kept", usual, loopback, guest, "127.0.0.1:4000", "127.0.0.1", "192.0.2.30",
			"tap 192.0.2.1:4000 > 192.0.2.30:80"},
		{"target address, remote", usual, splice, guest, "[2001:db8::7]:4000", "2001:db8::10", "2001:db8::30",
			"tap [2001:db8::7]:4000 > [2001:db8::30]:80"},
		{"target address of the other family", usual, splice, guest, "198.51.100.7:4000", "192.0.2.10", "2001:db8::30", "nowhere"},
		{"no tap, loopback", usual, only, Guest{}, "127.0.0.1:4000", "127.0.0.1", "",
			"namespace 0.0.0.0:4000 > 127.0.0.1:80"},
		{"no tap, remote", usual, only, Guest{}, "198.51.100.7:4000", "192.0.2.10", "", "nowhere"},
		{"no tap, target address", usual, only, Guest{}, "127.0.0.1:4000", "127.0.0.1", "192.0.2.30", "nowhere"},
		{"no splicing, loopback", usual, tap, guest, "127.0.0.1:4000", "127.0.0.1", "",
			"tap 192.0.2.1:4000 > 192.0.2.10:80"},
		{"no splicing, IPv6 loopback goes to the link-local address", usual, tap, guest, "[::1]:4000", "::1", "",
			"tap [fe80::1]:4000 > [fe80::99]:80"},
		{"no splicing, the rest of 127/8", usual, tap, guest, "127.0.0.2:4000", "127.0.0.2", "",
			"tap 192.0.2.1:4000 > 192.0.2.10:80"},
		{"no splicing, no alias", aliased, tap, guest, "127.0.0.1:4000", "127.0.0.1", "",
			"tap 192.0.2.1:4000 > 192.0.2.10:80"},
		{"the host's own address", usual, splice, guest, "192.0.2.10:4000", "192.0.2.10", "",
			"tap 192.0.2.1:4000 > 192.0.2.10:80"},
		{"the host's own address with an alias", aliased, splice, guest, "192.0.2.10:4000", "192.0.2.10", "",
			"tap 169.254.1.2:4000 > 192.0.2.10:80"},
		{"the host's own IPv6 address", usual, splice, guest, "[2001:db8::10]:4000", "2001:db8::10", "",
			"tap [fe80::1]:4000 > [fe80::99]:80"},
		{"the host's own IPv6 address with an alias", aliased, splice, guest, "[2001:db8::10]:4000", "2001:db8::10", "",
			"tap [2001:db8:1::2]:4000 > [2001:db8::10]:80"},
		{"remote", usual, splice, guest, "198.51.100.7:4000", "192.0.2.10", "",
			"tap 198.51.100.7:4000 > 192.0.2.10:80"},
		{"remote, the guest has moved", usual, splice, moved, "198.51.100.7:4000", "192.0.2.10", "",
			"tap 198.51.100.7:4000 > 192.0.2.20:80"},
		{"remote, IPv6", usual, splice, guest, "[2001:db8::7]:4000", "2001:db8::10", "",
			"tap [2001:db8::7]:4000 > [2001:db8::10]:80"},
		{"remote, link-local", usual, splice, guest, "[fe80::7]:4000", "fe80::10", "",
			"tap [fe80::7]:4000 > [fe80::99]:80"},
		{"remote, link-local, the guest's is not known", usual, splice, Guest{V6: guest.V6}, "[fe80::7]:4000", "fe80::10", "", "nowhere"},
		{"remote, IPv6, the guest's is not known", usual, splice, Guest{LinkLocal: guest.LinkLocal}, "[2001:db8::7]:4000", "2001:db8::10", "", "nowhere"},
		{"no address of ours on the link", Rules{}, tap, guest, "127.0.0.1:4000", "127.0.0.1", "", "nowhere"},
		{"multicast", usual, splice, guest, "198.51.100.7:4000", "224.0.0.251", "",
			"tap 198.51.100.7:4000 > 224.0.0.251:80"},
		{"IPv6 multicast", usual, splice, guest, "[fe80::7]:4000", "ff02::fb", "",
			"tap [fe80::7]:4000 > [ff02::fb]:80"},
		{"broadcast", usual, splice, guest, "198.51.100.7:4000", "255.255.255.255", "",
			"tap 198.51.100.7:4000 > 255.255.255.255:80"},
		{"multicast with a target address", usual, splice, guest, "198.51.100.7:4000", "224.0.0.251", "192.0.2.30",
			"tap 198.51.100.7:4000 > 192.0.2.30:80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.rules.Inbound(tt.policy, tt.guest, netip.MustParseAddrPort(tt.from), addr(tt.at), addr(tt.target), 80)
			if show(got) != tt.want {
				t.Errorf("got  %s\nwant %s", show(got), tt.want)
			}
		})
	}
}

func TestOutbound(t *testing.T) {
	for _, tt := range []struct {
		name     string
		from, at string
		want     string
	}{
		{"loopback", "127.0.0.1:4000", "127.0.0.1", "host 127.0.0.1:4000 > 127.0.0.1:80"},
		{"the rest of 127/8", "127.0.0.1:4000", "127.0.0.53", "host 127.0.0.1:4000 > 127.0.0.53:80"},
		{"IPv6", "[::1]:4000", "::1", "host [::1]:4000 > [::1]:80"},
		{"the namespace's own address over lo", "192.0.2.10:4000", "192.0.2.10", "nowhere"},
		{"source is not loopback", "192.0.2.10:4000", "127.0.0.1", "nowhere"},
		{"destination is not loopback", "127.0.0.1:4000", "192.0.2.10", "nowhere"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := show(Outbound(netip.MustParseAddrPort(tt.from), addr(tt.at), 80)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
