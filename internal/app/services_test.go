package app

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/internal/netconf"
	"fusilli/tapio/frame"
)

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// commandLineOf is the configuration that argv makes.
func commandLineOf(t *testing.T, argv string) *config.Config {
	t.Helper()
	cfg, err := config.Parse(strings.Fields(argv))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// hosts returns hosts with both IP versions, with one of them, and without a network.
func hosts() (both, v4, v6, local *autodetect.Host) {
	both, v4, v6 = example().host, example().host, example().host
	v4.V6, v6.V4 = autodetect.Family{}, autodetect.Family{}
	addr := netip.MustParseAddr
	local = &autodetect.Host{
		V4: autodetect.Family{Index: autodetect.Local, Address: addr("169.254.2.1"), PrefixLen: 16, Gateway: addr("169.254.2.2")},
		V6: autodetect.Family{Index: autodetect.Local, PrefixLen: 64, Gateway: addr("fe80::1"), LinkLocal: addr("fe80::1")},
	}
	return both, v4, v6, local
}

// TestServicesOfTheLink: which services the guest's link has, by the options and by what the host
// has.
func TestServicesOfTheLink(t *testing.T) {
	both, v4, v6, local := hosts()
	pointToPoint := example().host
	pointToPoint.V4.Gateway, pointToPoint.V6.Gateway = netip.Addr{}, netip.Addr{}
	type services struct{ DHCP, DHCPv6, NDP, RA, Aliases bool }
	all := services{true, true, true, true, true}
	for _, tt := range []struct {
		name, argv string
		host       *autodetect.Host
		want       services
	}{
		{"all", "passt", both, all},
		{"pasta", "pasta --netns n", both, all},
		{"pasta that configures its namespace", "pasta --config-net --netns n", both, services{true, true, true, false, true}},
		{"no DHCP", "passt --no-dhcp", both, services{false, true, true, true, true}},
		{"no DHCPv6", "passt --no-dhcpv6", both, services{true, false, true, true, true}},
		{"no NDP", "passt --no-ndp", both, services{true, true, false, false, true}},
		{"no advertisements", "passt --no-ra", both, services{true, true, true, false, true}},
		{"no ICMP", "passt --no-icmp", both, services{true, true, false, false, true}},
		{"IPv4 only", "passt -4", v4, services{true, false, false, false, true}},
		{"IPv6 only", "passt -6", v6, services{false, true, true, true, false}},
		{"no gateway", "passt", pointToPoint, services{false, true, true, true, false}},
		{"no network: no IPv6 address to assign", "passt", local, services{true, false, true, true, true}},
		{"no alias", "passt --no-map-gw", both, services{true, true, true, true, false}},
		{"no alias, in other words", "passt --map-host-loopback none", both, services{true, true, true, true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := commandLineOf(t, tt.argv)
			dns := &autodetect.DNS{}
			s4, s6 := dhcpServers(cfg, tt.host, dns, zap.NewNop())
			r := responder(cfg, tt.host, dns)
			ndp := r.LinkLocal != (frame.Addr{})
			got := services{s4 != nil, s6 != nil, ndp, ndp && !r.NoRA, hostAlias(cfg, &cfg.IPv4, &tt.host.V4).IsValid()}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestWhatIsAnnouncedAboutNames: to machines all, to namespaces what is asked for; the search list
// with and without resolvers.
func TestWhatIsAnnouncedAboutNames(t *testing.T) {
	dns := example().dns
	v4, v6 := dns.V4.Resolvers, dns.V6.Resolvers
	const search = "\x07example\x03org\x00"
	for _, tt := range []struct {
		argv   string
		v4, v6 []netip.Addr
		search bool
	}{
		{"passt", v4, v6, true},
		{"passt --no-dhcp-dns", nil, nil, true},
		{"passt --no-dhcp-search", v4, v6, false},
		{"passt --no-dhcp-dns --no-dhcp-search", nil, nil, false},
		{"pasta --netns n", nil, nil, false},
		{"pasta --dhcp-dns --netns n", v4, v6, false},
		{"pasta --dhcp-search --netns n", nil, nil, true},
		{"pasta --dhcp-dns --dhcp-search --netns n", v4, v6, true},
	} {
		t.Run(tt.argv, func(t *testing.T) {
			cfg := commandLineOf(t, tt.argv)
			got4, got6, list := announced(cfg, dns)
			if !slices.Equal(got4, tt.v4) || !slices.Equal(got6, tt.v6) || (len(list) == 1) != tt.search {
				t.Errorf("announced %v, %v, %q", got4, got6, list)
			}
			r := responder(cfg, example().host, dns)
			want := ""
			if tt.search {
				want = search
			}
			if !slices.Equal(r.Resolvers, tt.v6) || string(r.Search) != want {
				t.Errorf("router advertisements: %v, %q", r.Resolvers, r.Search)
			}
		})
	}
}

// TestSearchListOfAdvertisements: what is no name, and what has no room, is left out.
func TestSearchListOfAdvertisements(t *testing.T) {
	long := strings.Repeat("a23456789.", 24) + "end" // 245 bytes on the wire
	got := searchList([]string{"a.example", ".", strings.Repeat("x", 64), long, long, long, long, long, "b.example."})
	name := "\x09" + strings.Repeat("a23456789\x09", 23) + "a23456789\x03end\x00"
	want := "\x01a\x07example\x00" + strings.Repeat(name, 4) + "\x01b\x07example\x00"
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestAddressesOnTheLink: what the engine is told of the guest's addresses and of ours.
func TestAddressesOnTheLink(t *testing.T) {
	addr := netip.MustParseAddr
	both, _, _, local := hosts()
	given := example().host
	given.V4.Address, given.V6.Address = addr("192.0.2.9"), addr("2001:db8::9")
	farGateway := example().host
	farGateway.V6.Gateway, farGateway.V6.LinkLocal = addr("2001:db8::1"), addr("fe80::5")
	var none netip.Addr
	for _, tt := range []struct {
		name, argv string
		host       *autodetect.Host
		guest      [3]netip.Addr // IPv4, IPv6, link-local
		frozen     [2]bool
		loopback   [2]netip.Addr
		ours       [2]netip.Addr
		mac        frame.MAC
	}{
		{"machine", "passt", both, [3]netip.Addr{addr("192.0.2.2"), addr("2001:db8::2"), none}, [2]bool{},
			[2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, [2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, frame.Broadcast},
		{"address given", "passt -a 192.0.2.9 -a 2001:db8::9", given, [3]netip.Addr{addr("192.0.2.9"), addr("2001:db8::9"), none}, [2]bool{true, true},
			[2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, [2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, frame.Broadcast},
		{"no alias", "passt --no-map-gw", both, [3]netip.Addr{addr("192.0.2.2"), addr("2001:db8::2"), none}, [2]bool{},
			[2]netip.Addr{}, [2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, frame.Broadcast},
		{"another alias", "passt --map-host-loopback 192.0.2.77", both, [3]netip.Addr{addr("192.0.2.2"), addr("2001:db8::2"), none}, [2]bool{},
			[2]netip.Addr{addr("192.0.2.77"), addr("fe80::1")}, [2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, frame.Broadcast},
		{"alias in one family only", "passt --map-host-loopback none --map-host-loopback 192.0.2.77", both,
			[3]netip.Addr{addr("192.0.2.2"), addr("2001:db8::2"), none}, [2]bool{},
			[2]netip.Addr{addr("192.0.2.77"), none}, [2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, frame.Broadcast},
		{"global gateway", "passt", farGateway, [3]netip.Addr{addr("192.0.2.2"), addr("2001:db8::2"), none}, [2]bool{},
			[2]netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}, [2]netip.Addr{addr("192.0.2.1"), addr("fe80::5")}, frame.Broadcast},
		{"no network", "passt", local, [3]netip.Addr{addr("169.254.2.1"), none, none}, [2]bool{},
			[2]netip.Addr{addr("169.254.2.2"), addr("fe80::1")}, [2]netip.Addr{addr("169.254.2.2"), addr("fe80::1")}, frame.Broadcast},
		{"namespace", "pasta --netns n", both, [3]netip.Addr{addr("192.0.2.2"), addr("2001:db8::2"), addr("fe80::99")}, [2]bool{},
			[2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, [2]netip.Addr{addr("192.0.2.1"), addr("fe80::1")}, frame.MAC{2, 0, 0, 0, 0, 9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := commandLineOf(t, tt.argv)
			var guest netconf.Result
			if cfg.Mode == config.Pasta {
				guest = netconf.Result{MAC: []byte{2, 0, 0, 0, 0, 9}, LinkLocal: addr("fe80::99")}
			}
			c := engineConfig(cfg, tt.host, &autodetect.DNS{}, &guest, nil, zap.NewNop())
			if d := cmp.Diff(tt.guest, [3]netip.Addr{c.Guest.V4, c.Guest.V6, c.Guest.LinkLocal}, sameAddr); d != "" {
				t.Errorf("guest, -want +got:\n%s", d)
			}
			if got := [2]bool{c.Frozen4, c.Frozen6}; got != tt.frozen {
				t.Errorf("frozen %v, want %v", got, tt.frozen)
			}
			if d := cmp.Diff(tt.loopback, [2]netip.Addr{c.Rules.HostLoopback4, c.Rules.HostLoopback6}, sameAddr); d != "" {
				t.Errorf("alias, -want +got:\n%s", d)
			}
			if d := cmp.Diff(tt.ours, [2]netip.Addr{c.Rules.OurTap4, c.Rules.OurLinkLocal}, sameAddr); d != "" {
				t.Errorf("ours, -want +got:\n%s", d)
			}
			if c.GuestMAC != tt.mac || c.OurMAC != (frame.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}) {
				t.Errorf("MAC %v of the guest, %v of ours", c.GuestMAC, c.OurMAC)
			}
		})
	}
}

// TestAddressesThatNoNeighbourTakesOver: whoever on the host's network has the address of an alias,
// or ours, the guest finds us there. The gateway is one of them unless it is no alias.
func TestAddressesThatNoNeighbourTakesOver(t *testing.T) {
	both, _, _, _ := hosts()
	theirs := frame.MAC{2, 0, 0, 0, 0, 0xa}
	for _, tt := range []struct {
		name, argv   string
		ours, theirs []string
	}{
		{"the gateway is an alias", "passt", []string{"192.0.2.1", "fe80::1"}, []string{"192.0.2.7", "2001:db8::7"}},
		{"the gateway is itself", "passt --no-map-gw", nil, []string{"192.0.2.1", "fe80::1"}},
		{"other aliases", "passt --map-host-loopback 192.0.2.77 --map-host-loopback fe80::77 --map-guest-addr 192.0.2.78 --map-guest-addr fe80::78",
			[]string{"192.0.2.77", "fe80::77", "192.0.2.78", "fe80::78"}, []string{"192.0.2.1", "fe80::1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := neighbourTable(commandLineOf(t, tt.argv), both)
			for _, list := range [][]string{tt.ours, tt.theirs} {
				for _, s := range list {
					a := frame.AddrOf(netip.MustParseAddr(s))
					table.Set(&a, theirs)
				}
			}
			for _, s := range tt.ours {
				if a := frame.AddrOf(netip.MustParseAddr(s)); table.Lookup(&a) == theirs {
					t.Errorf("%s is taken over", s)
				}
			}
			for _, s := range tt.theirs {
				if a := frame.AddrOf(netip.MustParseAddr(s)); table.Lookup(&a) != theirs {
					t.Errorf("%s is not its owner's", s)
				}
			}
		})
	}
}
