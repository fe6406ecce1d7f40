package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fusilli/tests/bed"
)

// ipJSON runs ip -j with args in n.
func ipJSON(t *testing.T, n *bed.NS, into any, args ...string) {
	t.Helper()
	out, err := n.Output(t.Context(), bed.Root, "ip", append([]string{"-j"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("ip %v: %v in %q", args, err, out)
	}
}

// addresses lists the addresses of wide scope of dev, sorted.
func addresses(t *testing.T, n *bed.NS, dev string) []string {
	t.Helper()
	var links []struct {
		Addrs []struct {
			Family, Local, Address, Scope string
			Prefixlen                     int
			Tentative                     bool
		} `json:"addr_info"`
	}
	ipJSON(t, n, &links, "address", "show", "dev", dev)
	var list []string
	tentative, wide6 := "", false
	for _, l := range links {
		for _, a := range l.Addrs {
			if a.Tentative {
				tentative = a.Local
			}
			if a.Scope != "link" {
				wide6 = wide6 || a.Family == "inet6"
				list = append(list, fmt.Sprintf("%s %s peer %s/%d scope %s", a.Family, a.Local, a.Address, a.Prefixlen, a.Scope))
			}
		}
	}
	if tentative != "" && wide6 { // the kernel's own link-local address is no matter without IPv6
		t.Errorf("address %s is tentative", tentative)
	}
	slices.Sort(list)
	return list
}

// routes lists the unicast routes of the main table through dev, sorted. Link-local
// prefixes and the preferred source are left out: the latter is not copied.
func routes(t *testing.T, n *bed.NS, dev string) []string {
	t.Helper()
	type hop struct {
		Gateway, Dev string
		Weight       int
		Via          struct{ Family, Host string }
	}
	var list []string
	for _, family := range []string{"-4", "-6"} {
		var found []struct {
			hop
			Type, Dst, Protocol, Scope string
			Metric                     int
			Nexthops                   []hop
		}
		ipJSON(t, n, &found, family, "-details", "route", "show")
		for _, r := range found {
			hops := r.Nexthops
			if len(hops) == 0 {
				hops = []hop{r.hop}
			}
			if r.Type != "unicast" || strings.HasPrefix(r.Dst, "fe80:") ||
				slices.ContainsFunc(hops, func(h hop) bool { return h.Dev != dev }) {
				continue
			}
			line := fmt.Sprintf("%s %s proto %s metric %d", family, r.Dst, r.Protocol, r.Metric)
			for _, h := range hops {
				line += fmt.Sprintf(" via %s%s weight %d", h.Gateway, h.Via.Host, h.Weight)
			}
			list = append(list, line)
		}
	}
	slices.Sort(list)
	return list
}

func TestAddressesAndRoutesAreCopied(t *testing.T) {
	for _, tc := range []struct {
		name, setup string
	}{
		{"one of each", ""},
		{"many addresses", `
			address add 192.168.7.9/28 dev h0
			address add 192.168.7.10/28 dev h0
			address add 172.16.0.1/12 dev h0
			address add 10.1.2.3/32 dev h0
			address add 2001:db8:5::1/64 dev h0 nodad
			address add 2001:db8:5::2/64 dev h0 nodad
			address add 2001:db8:6::1/128 dev h0 nodad`},
		{"many routes", `
			route add 198.51.100.0/24 via 10.77.0.1 dev h0
			route add 198.51.100.128/25 via 10.77.0.3 dev h0 metric 50
			route add 203.0.113.7/32 dev h0 scope link
			route add 192.0.2.0/24 via 203.0.113.7 dev h0 onlink
			route add default via 10.77.0.9 dev h0 metric 700
			route add 2001:db8:7::/48 via fd77::1 dev h0
			route add 2001:db8:8::/48 via fd77::9 dev h0 metric 77
			route add 2001:db8:9::/64 dev h0`},
		{"several next hops", `
			route add 198.51.100.0/24 nexthop via 10.77.0.1 dev h0 weight 1 nexthop via 10.77.0.3 dev h0 weight 5
			route add 2001:db8:7::/48 nexthop via fd77::1 dev h0 weight 1 nexthop via fd77::3 dev h0 weight 2`},
		{"other interfaces", `
			link add x0 type veth peer name x1
			link set x0 up
			link set x1 up
			address add 192.168.9.1/24 dev x0
			address add 2001:db8:10::1/64 dev x0 nodad
			route add 198.51.100.0/24 via 192.168.9.2 dev x0
			route add 192.0.2.0/24 nexthop via 10.77.0.1 dev h0 nexthop via 192.168.9.2 dev x0
			route add blackhole 203.0.113.0/24
			route add default via 192.168.9.3 dev x0 metric 1000`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, defaultBed)
			if err := b.Host.IP(strings.ReplaceAll(tc.setup, "\t", "")); err != nil {
				t.Fatal(err)
			}
			c := connect(t, b)
			if diff := cmp.Diff(addresses(t, b.Host, "h0"), addresses(t, c.target.NS, "h0")); diff != "" {
				t.Errorf("addresses, host - target +:\n%s", diff)
			}
			if diff := cmp.Diff(routes(t, b.Host, "h0"), routes(t, c.target.NS, "h0")); diff != "" {
				t.Errorf("routes, host - target +:\n%s", diff)
			}
			var links []struct {
				Ifname string
				Flags  []string
				MTU    int
			}
			ipJSON(t, c.target.NS, &links, "link")
			if len(links) != 2 {
				t.Fatalf("links %+v, want lo and h0", links)
			}
			for _, l := range links {
				if !slices.Contains(l.Flags, "UP") {
					t.Errorf("%s is not up: %v", l.Ifname, l.Flags)
				}
				if l.Ifname == "h0" && l.MTU != 65520 {
					t.Errorf("MTU %d, want 65520", l.MTU)
				}
			}
			c.transfer(t, bed.FarAddr4, out, 1, 1<<20)
			c.transfer(t, bed.FarAddr6, in, 1, 1<<20)
		})
	}
}

func TestGuestSettingsAreTheOnesAskedFor(t *testing.T) {
	for _, tc := range []struct {
		name      string
		args      []string
		dev       string
		mtu       int
		addresses []string
		routes    []string
	}{
		{"interface name and MTU", []string{"-I", "eth7", "-m", "1400"}, "eth7", 1400,
			[]string{"inet 10.77.0.2 peer /24 scope global", "inet6 fd77::2 peer /64 scope global"},
			[]string{"-4 10.77.0.0/24", "-4 default via 10.77.0.1", "-6 default via fd77::1", "-6 fd77::/64"}},
		{"IPv4 only", []string{"-4"}, "h0", 65520,
			[]string{"inet 10.77.0.2 peer /24 scope global"},
			[]string{"-4 10.77.0.0/24", "-4 default via 10.77.0.1"}},
		{"IPv6 only", []string{"-6"}, "h0", 65520,
			[]string{"inet6 fd77::2 peer /64 scope global"},
			[]string{"-6 default via fd77::1", "-6 fd77::/64"}},
		{"address and gateway", []string{"-4", "-a", "192.0.2.9", "-n", "28", "-g", "192.0.2.1"}, "h0", 65520,
			[]string{"inet 192.0.2.9 peer /28 scope global"},
			[]string{"-4 192.0.2.0/28", "-4 default via 192.0.2.1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, newBed(t, defaultBed), tc.args...)
			if diff := cmp.Diff(tc.addresses, addresses(t, c.target.NS, tc.dev)); diff != "" {
				t.Errorf("addresses, want - got +:\n%s", diff)
			}
			var got []string
			for _, r := range routes(t, c.target.NS, tc.dev) {
				// family, destination, proto, P, metric, M, via, [gateway,] ...
				f := strings.Fields(r)
				line := f[0] + " " + f[1]
				if f[7] != "weight" {
					line += " via " + f[7]
				}
				got = append(got, line)
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.routes, got); diff != "" {
				t.Errorf("routes, want - got +:\n%s", diff)
			}
			var links []struct{ MTU int }
			ipJSON(t, c.target.NS, &links, "link", "show", "dev", tc.dev)
			if len(links) != 1 || links[0].MTU != tc.mtu {
				t.Errorf("links %+v, want MTU %d", links, tc.mtu)
			}
			far := bed.FarAddr4
			if tc.name == "IPv6 only" {
				far = bed.FarAddr6
			}
			c.transfer(t, far, out, 1, 1<<20)
		})
	}
}

// A host without a route, or without any interface, still gets its namespaces made.
func TestHostWithoutANetwork(t *testing.T) {
	for _, tc := range []struct{ name, setup string }{
		{"no default route", "route del default\nroute del ::/0"},
		{"no interface", "link set h0 down"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, defaultBed)
			if err := b.Host.IP(tc.setup); err != nil {
				t.Fatal(err)
			}
			c := connect(t, b)
			var links []struct{ Ifname string }
			ipJSON(t, c.target.NS, &links, "link", "show", "up")
			if len(links) != 2 {
				t.Errorf("links %+v, want lo and a tap", links)
			}
		})
	}
}

// A namespace on a host without a network reaches the host itself, in both IP versions, and is
// reached.
func TestHostWithoutANetworkIsReached(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	if err := b.Host.IP("link set h0 down"); err != nil {
		t.Fatal(err)
	}
	c := attach(t, b, "-q", "--config-net", "-t", "8080", "-T", "none", "-u", "none", "-U", "none", "--no-splice")
	for from, to := range map[string]string{"169.254.2.2": "127.0.0.1", "fe80::1%tap0": "::1"} {
		l, err := b.Host.Listen("tcp", net.JoinHostPort(to, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		conn, err := c.target.Dial(patience(t, limit), "tcp", net.JoinHostPort(from, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)))
		if err != nil {
			t.Errorf("%s: %v", from, err)
			continue
		}
		conn.Close()
		// The target's link-local address is known from what it has sent.
		in, err := c.target.Listen("tcp", "[::]:8080")
		if err != nil {
			t.Fatal(err)
		}
		back, err := b.Host.Dial(patience(t, limit), "tcp", net.JoinHostPort(to, "8080"))
		if err != nil {
			t.Errorf("%s: %v", to, err)
		} else {
			in.(*net.TCPListener).SetDeadline(time.Now().Add(limit))
			peer, err := in.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if got := peer.RemoteAddr().(*net.TCPAddr); got.IP.String() != strings.TrimSuffix(from, "%tap0") {
				t.Errorf("from %v, want %s", got, from)
			}
			peer.Close()
			back.Close()
		}
		in.Close()
	}
}

func TestLoopbackOfTheHost(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "--map-host-loopback", "192.0.2.77", "--map-host-loopback", "2001:db8::77")
	for at, on := range map[string]string{"192.0.2.77": "127.0.0.1", "2001:db8::77": "::1"} {
		l, err := b.Host.Listen("tcp", net.JoinHostPort(on, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at = net.JoinHostPort(at, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
		conn, err := c.target.Dial(patience(t, limit), "tcp", at)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		conn.Close()
	}
}

// The host's own address is the guest's, too: an alias reaches it, and not the loopback address.
func TestAliasOfTheGuestsAddressOnTheHost(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "--map-guest-addr", "192.0.2.78", "--map-guest-addr", "2001:db8::78")
	for at, on := range map[string]string{"192.0.2.78": bed.HostAddr4, "2001:db8::78": bed.HostAddr6} {
		l, err := b.Host.Listen("tcp", net.JoinHostPort(on, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at = net.JoinHostPort(at, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
		conn, err := c.target.Dial(patience(t, limit), "tcp", at)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		conn.Close()
	}
}
