package rules

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// The host is 192.0.2.10 and 2001:db8::10, and so is the guest; the gateway is 192.0.2.1 and
// fe80::1, the alias of the host's loopback addresses.
var (
	usual = Rules{
		HostLoopback4: addr("192.0.2.1"), HostLoopback6: addr("fe80::1"),
		Assigned4: addr("192.0.2.10"), Assigned6: addr("2001:db8::10"),
		OurTap4: addr("192.0.2.1"), OurLinkLocal: addr("fe80::1"),
	}
	// As Podman has it.
	aliased = Rules{
		HostGuest4: addr("169.254.1.2"), HostGuest6: addr("2001:db8:1::2"),
		DNSMatch4: addr("169.254.1.1"), DNSHost4: addr("198.51.100.53"),
		DNSMatch6: addr("2001:db8:1::1"), DNSHost6: addr("2001:db8:2::53"),
		Assigned4: addr("192.0.2.10"), Assigned6: addr("2001:db8::10"),
		OurTap4: addr("192.0.2.1"), OurLinkLocal: addr("fe80::1"),
	}
	guest = Guest{V4: addr("192.0.2.10"), V6: addr("2001:db8::10"), LinkLocal: addr("fe80::99")}
	moved = Guest{V4: addr("192.0.2.20"), V6: addr("2001:db8::20"), LinkLocal: addr("fe80::99")}
)

// resolving has the gateway as resolver too.
func resolving() Rules {
	r := usual
	r.DNSMatch4, r.DNSHost4 = addr("192.0.2.1"), addr("127.0.0.53")
	r.DNSMatch6, r.DNSHost6 = addr("fe80::1"), addr("2001:db8:2::53")
	return r
}

func TestOut(t *testing.T) {
	const tcp, udp, icmp, icmp6 = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	for _, tt := range []struct {
		name  string
		rules Rules
		proto uint16
		dst   string
		want  string
	}{
		{"DNS over UDP, IPv4", aliased, udp, "169.254.1.1:53", "198.51.100.53:53"},
		{"DNS over TCP, IPv4", aliased, tcp, "169.254.1.1:53", "198.51.100.53:53"},
		{"DNS over TLS, IPv4", aliased, tcp, "169.254.1.1:853", "198.51.100.53:853"},
		{"DNS over DTLS, IPv4", aliased, udp, "169.254.1.1:853", "198.51.100.53:853"},
		{"DNS over UDP, IPv6", aliased, udp, "[2001:db8:1::1]:53", "[2001:db8:2::53]:53"},
		{"DNS over TLS, IPv6", aliased, tcp, "[2001:db8:1::1]:853", "[2001:db8:2::53]:853"},
		{"another port of the resolver's alias", aliased, tcp, "169.254.1.1:54", "169.254.1.1:54"},
		{"echo to the resolver's alias has an identifier, not a port", aliased, icmp, "169.254.1.1:53", "169.254.1.1:53"},
		{"DNS to another resolver", aliased, udp, "198.51.100.1:53", "198.51.100.1:53"},
		{"alias of resolver and loopback, DNS, IPv4", resolving(), udp, "192.0.2.1:53", "127.0.0.53:53"},
		{"alias of resolver and loopback, DNS over TLS, IPv4", resolving(), tcp, "192.0.2.1:853", "127.0.0.53:853"},
		{"alias of resolver and loopback, DNS, IPv6", resolving(), udp, "[fe80::1]:53", "[2001:db8:2::53]:53"},
		{"alias of resolver and loopback, other port, IPv4", resolving(), tcp, "192.0.2.1:80", "127.0.0.1:80"},
		{"alias of resolver and loopback, other port, IPv6", resolving(), tcp, "[fe80::1]:80", "[::1]:80"},
		{"alias of resolver and loopback, echo", resolving(), icmp, "192.0.2.1:53", "127.0.0.1:53"},
		{"alias of a resolver there is none for", Rules{DNSMatch4: addr("192.0.2.3")}, udp, "192.0.2.3:53", "192.0.2.3:53"},
		{"IPv4 alias of the loopback address", usual, tcp, "192.0.2.1:80", "127.0.0.1:80"},
		{"IPv6 alias of the loopback address", usual, udp, "[fe80::1]:80", "[::1]:80"},
		{"IPv4 alias of the loopback address, echo", usual, icmp, "192.0.2.1:7", "127.0.0.1:7"},
		{"IPv6 alias of the loopback address, echo", usual, icmp6, "[fe80::1]:7", "[::1]:7"},
		{"IPv4 alias of the guest's address", aliased, tcp, "169.254.1.2:8080", "192.0.2.10:8080"},
		{"IPv6 alias of the guest's address", aliased, udp, "[2001:db8:1::2]:8080", "[2001:db8::10]:8080"},
		{"alias of the guest's address when it has none", Rules{HostGuest4: addr("169.254.1.2")}, tcp, "169.254.1.2:1", "169.254.1.2:1"},
		{"gateway that is no alias", aliased, tcp, "192.0.2.1:80", "192.0.2.1:80"},
		{"any other IPv4 address", usual, tcp, "198.51.100.7:443", "198.51.100.7:443"},
		{"any other IPv6 address", usual, tcp, "[2001:db8::7]:443", "[2001:db8::7]:443"},
		{"multicast", usual, udp, "224.0.0.251:5353", "224.0.0.251:5353"},
		{"broadcast", usual, udp, "255.255.255.255:9", "255.255.255.255:9"},
		{"no alias, IPv4", Rules{}, tcp, "192.0.2.1:80", "192.0.2.1:80"},
		{"no alias, IPv6", Rules{}, tcp, "[fe80::1]:80", "[fe80::1]:80"},
		{"no alias, unspecified", Rules{}, udp, "0.0.0.0:80", "0.0.0.0:80"},
		{"no alias, unspecified, IPv6", Rules{}, udp, "[::]:53", "[::]:53"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst, want := netip.MustParseAddrPort(tt.dst), netip.MustParseAddrPort(tt.want)
			if got := tt.rules.Out(tt.proto, dst); got != want {
				t.Errorf("Out(%d, %s) = %s, want %s", tt.proto, dst, got, want)
			}
		})
	}
}

func TestIn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rules Rules
		guest Guest
		src   string
		want  string // "": there is no translation
		from  string // of a flow, if there is none
	}{
		{"127.0.0.1", usual, guest, "127.0.0.1", "192.0.2.1", ""},
		{"::1", usual, guest, "::1", "fe80::1", ""},
		{"the rest of 127/8", usual, guest, "127.0.0.2", "", "192.0.2.1"},
		{"127.0.0.1 without an alias", aliased, guest, "127.0.0.1", "", "192.0.2.1"},
		{"::1 without an alias", aliased, guest, "::1", "", "fe80::1"},
		{"assigned IPv4 address with an alias", aliased, guest, "192.0.2.10", "169.254.1.2", ""},
		{"assigned IPv6 address with an alias", aliased, guest, "2001:db8::10", "2001:db8:1::2", ""},
		{"assigned IPv4 address without an alias", usual, moved, "192.0.2.10", "", "192.0.2.1"},
		{"assigned IPv6 address without an alias", usual, moved, "2001:db8::10", "", "fe80::1"},
		{"IPv4 address the guest was seen with", usual, moved, "192.0.2.20", "", "192.0.2.1"},
		{"IPv6 address the guest was seen with", usual, moved, "2001:db8::20", "", "fe80::1"},
		{"0.0.0.0", usual, guest, "0.0.0.0", "", "192.0.2.1"},
		{"::", usual, guest, "::", "", "fe80::1"},
		{"a remote IPv4 address", usual, guest, "198.51.100.7", "198.51.100.7", ""},
		{"a remote IPv6 address", usual, guest, "2001:db8::7", "2001:db8::7", ""},
		{"a link-local address", usual, guest, "fe80::7", "fe80::7", ""},
		{"a remote IPv6 address while the guest's is not known", usual, Guest{}, "2001:db8::7", "2001:db8::7", ""},
		{"no address on the link, IPv4", Rules{}, guest, "127.0.0.1", "", ""},
		{"no address on the link, IPv6", Rules{}, guest, "::1", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src, want := addr(tt.src), addr(tt.want)
			got, ok := tt.rules.In(src, tt.guest)
			if got != want || ok != want.IsValid() {
				t.Errorf("In(%s) = %s, %v, want %s", src, got, ok, want)
			}
			if !want.IsValid() {
				want = addr(tt.from)
			}
			if got := tt.rules.Source(src, tt.guest); got != want {
				t.Errorf("Source(%s) = %s, want %s", src, got, want)
			}
		})
	}
}

// TestGate: a network that exists on the guest's link only has a gateway, a resolver, and nobody
// else.
func TestGate(t *testing.T) {
	addr := netip.MustParseAddr
	r := Rules{
		Link4: netip.MustParsePrefix("10.0.2.0/24"), Link6: netip.MustParsePrefix("fd00::/64"),
		Echo4: addr("10.0.2.2"), Echo6: addr("fd00::2"),
		DNSMatch4: addr("10.0.2.3"), DNSHost4: addr("192.0.2.53"),
	}
	mapped := r
	mapped.HostLoopback4, mapped.HostLoopback6 = r.Echo4, r.Echo6
	const tcp, udp, icmp, icmp6 = 6, 17, 1, 58
	for _, row := range []struct {
		name  string
		rules *Rules
		proto uint16
		dst   string
		want  Verdict
	}{
		{"outside", &r, tcp, "198.51.100.7:80", Open},
		{"outside, IPv6", &r, tcp, "[2001:db8::7]:80", Open},
		{"the gateway", &r, tcp, "10.0.2.2:80", Refused},
		{"the gateway, datagrams", &r, udp, "10.0.2.2:80", Refused},
		{"the gateway, IPv6", &r, tcp, "[fd00::2]:80", Refused},
		{"the gateway, echo", &r, icmp, "10.0.2.2:0", Answered},
		{"the gateway, echo, IPv6", &r, icmp6, "[fd00::2]:0", Answered},
		{"the gateway that leads to the host", &mapped, tcp, "10.0.2.2:80", Open},
		{"the gateway that leads to the host, IPv6", &mapped, tcp, "[fd00::2]:80", Open},
		{"the gateway that leads to the host, echo", &mapped, icmp, "10.0.2.2:0", Answered},
		{"the resolver", &r, udp, "10.0.2.3:53", Open},
		{"the resolver, another port", &r, tcp, "10.0.2.3:80", Silent},
		{"nobody", &r, tcp, "10.0.2.77:80", Silent},
		{"nobody, echo", &r, icmp, "10.0.2.77:0", Silent},
		{"nobody, IPv6", &r, tcp, "[fd00::77]:80", Silent},
		{"no such network", &Rules{}, tcp, "10.0.2.77:80", Open},
	} {
		if got := row.rules.Verdict(row.proto, netip.MustParseAddrPort(row.dst)); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}
}

func TestNames(t *testing.T) {
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	for _, tt := range []struct {
		name  string
		rules Rules
		host  string
		want  string
	}{
		{"an ordinary host", usual, "198.51.100.7:53", "198.51.100.7"},
		{"an ordinary host, IPv6", usual, "[2001:db8::7]:53", "2001:db8::7"},
		{"the resolver", aliased, "198.51.100.53:53", "198.51.100.53 169.254.1.1"},
		{"the resolver, IPv6", aliased, "[2001:db8:2::53]:853", "2001:db8:2::53 2001:db8:1::1"},
		{"the resolver, another port", aliased, "198.51.100.53:80", "198.51.100.53"},
		{"the host", aliased, "192.0.2.10:53", "192.0.2.10 169.254.1.2"},
		{"loopback", usual, "127.0.0.1:53", "127.0.0.1 192.0.2.1"},
		{"loopback, and another resolver", resolving(), "127.0.0.1:53", "127.0.0.1"},
		{"loopback, IPv6", usual, "[::1]:9", "::1 fe80::1"},
		{"a resolver on the gateway, whose name is taken", Rules{
			DNSMatch4: addr("10.0.2.3"), DNSHost4: addr("10.0.2.2"), HostLoopback4: addr("10.0.2.2")}, "10.0.2.2:53", "10.0.2.3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, proto := range []uint16{tcp, udp} {
				got := ""
				for _, a := range tt.rules.Names(proto, netip.MustParseAddrPort(tt.host)) {
					if a.IsValid() {
						got += " " + a.String()
					}
				}
				if got != " "+tt.want {
					t.Errorf("%s: names%s, want %s", tt.host, got, tt.want)
				}
			}
		})
	}
}
