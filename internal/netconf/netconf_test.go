package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"fusilli/autodetect"
	"fusilli/autodetect/rtnl/nstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// object is one element of what ip -j prints.
type object = map[string]any

func show(t *testing.T, drop []string, args ...string) []object {
	t.Helper()
	var list []object
	out := nstest.Show(t, append([]string{"-j"}, args...)...)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
	for _, o := range list {
		for _, key := range drop {
			delete(o, key)
		}
	}
	return list
}

// addresses lists those an interface has, but for link-local ones, which each kernel
// makes itself, and for what is not copied.
func addresses(t *testing.T, dev string) []object {
	t.Helper()
	var got []object
	for _, link := range show(t, nil, "-d", "addr", "show", "dev", dev) {
		for _, a := range link["addr_info"].([]any) {
			a := a.(object)
			if a["scope"] == "link" {
				continue
			}
			for _, key := range []string{"label", "valid_life_time", "preferred_life_time", "nodad", "dynamic", "mngtmpaddr"} {
				delete(a, key)
			}
			got = append(got, a)
		}
	}
	return got
}

func routes(t *testing.T, family string) []object {
	t.Helper()
	list := show(t, []string{"prefsrc", "expires", "nhid"}, "-d", family, "route")
	for _, r := range list {
		if r["dst"] != "default" { // of no meaning there, and shown or not as it likes
			delete(r, "pref")
		}
		hops, _ := r["nexthops"].([]any)
		for _, h := range append(hops, r) {
			h.(object)["flags"] = onlink(h.(object)["flags"])
		}
	}
	return list
}

func onlink(flags any) bool {
	list, _ := flags.([]any)
	for _, f := range list {
		if f == "onlink" {
			return true
		}
	}
	return false
}

func detect(t *testing.T, o autodetect.Options) *autodetect.Host {
	t.Helper()
	h, err := autodetect.Detect(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func plan(h *autodetect.Host) Plan {
	return Plan{Configure: true, MTU: 65520, TxQueueLen: 5000, V4: familyPlan(h.V4), V6: familyPlan(h.V6)}
}

func familyPlan(f autodetect.Family) Family {
	return Family{
		Enabled: f.Enabled(), Address: f.Address, PrefixLen: f.PrefixLen, Gateway: f.Gateway,
		CopyAddresses: f.CopyAddresses, CopyRoutes: f.CopyRoutes, Addresses: f.Addresses, Routes: f.Routes,
	}
}

// host makes four interfaces that are up: e0 to e3.
const host = `
link set lo up
link add e0 type veth peer name p0
link add e1 type veth peer name p1
link add e2 type veth peer name p2
link set p0 up
link set p1 up
link set p2 up
link set e0 up addrgenmode none
link set e1 up addrgenmode none
link set e2 up addrgenmode none
addr add fe80::e0/64 dev e0 nodad
addr add fe80::e1/64 dev e1 nodad
addr add fe80::e2/64 dev e2 nodad
`

func TestCopy(t *testing.T) {
	for _, tt := range []struct{ name, host string }{
		{"one of each", `
			addr add 192.0.2.2/24 dev e0
			route add default via 192.0.2.1 dev e0
			addr add 2001:db8::2/64 dev e0 nodad
			route add default via fe80::1 dev e0`},
		{"several addresses", `
			addr add 192.0.2.2/24 brd + dev e0 label e0:main
			addr add 192.0.2.3/24 dev e0
			addr add 198.51.100.1/25 dev e0 metric 77
			addr add 203.0.113.1 peer 203.0.113.2/32 dev e0
			addr add 203.0.113.9/32 dev e0
			addr add 10.9.0.1/16 dev e0 noprefixroute
			route add 10.9.0.0/16 dev e0 proto kernel scope link metric 100
			addr add 169.254.7.7/16 dev e0 scope link
			addr add 2001:db8::2/64 dev e0 nodad
			addr add 2001:db8::3/128 dev e0 nodad
			addr add 2001:db8:1::1/64 dev e0 nodad valid_lft 1000 preferred_lft 900
			addr add 2001:db8:2::1/64 dev e0 nodad noprefixroute
			addr add 2001:db8:3::1 peer 2001:db8:3::2/128 dev e0 nodad
			addr add fec0::7/64 dev e0 nodad
			route add default via 192.0.2.1
			route add default via 2001:db8::1 dev e0`},
		{"IPv4 routes", `
			addr add 2001:db8::2/64 dev e0 nodad
			addr add 192.0.2.2/24 dev e0
			addr add 198.51.100.2/24 dev e1
			route add default via 192.0.2.1 dev e0 metric 50 mtu 1400 advmss 1000 proto static
			route add default via 192.0.2.9 dev e0 metric 60 src 192.0.2.2
			route add default via 198.51.100.1 dev e1 metric 70
			route add 10.0.0.0/8 via 192.0.2.3 dev e0 tos 0x10
			route append 10.0.0.0/8 via 192.0.2.4 dev e0
			route append 10.0.0.0/8 via 192.0.2.5 dev e0
			route add 10.1.0.0/16 via 192.0.2.6 dev e0 metric 20
			route add 10.1.0.0/16 via 192.0.2.7 dev e0 metric 10 mtu lock 1300 window 9000 rtt 100ms quickack 1
			route add 10.2.0.0/16 nexthop via 192.0.2.6 dev e0 weight 3 nexthop via 192.0.2.7 dev e0 weight 7
			route add 10.4.0.0/16 via 172.30.0.1 dev e0 onlink
			route add 10.5.0.0/16 nexthop via 172.30.0.2 dev e0 onlink nexthop via 192.0.2.8 dev e0
			route add 172.31.0.1 dev e0 scope link
			route add 1.0.0.0/8 via 172.31.0.1 dev e0
			route add 10.6.0.0/16 via inet6 fe80::66 dev e0
			route add blackhole 10.7.0.0/16
			route add unreachable 10.8.0.0/16
			route add 10.9.0.0/16 dev e1
			route add 10.10.0.0/16 dev e0 table 77`},
		{"IPv6 routes", `
			addr add 2001:db8::2/64 dev e0 nodad
			addr add 2001:db8:f::2/64 dev e1 nodad
			route add default via fe80::1 dev e0 pref high metric 100
			route add default via fe80::2 dev e0 pref low metric 200 mtu 1400 hoplimit 12
			route add default via fe80::3 dev e1 pref medium metric 300
			route add 2001:db8:1::/48 via 2001:db8::7 dev e0 src 2001:db8::2 proto static
			route add 2001:db8:2::/48 nexthop via fe80::4 dev e0 weight 2 nexthop via fe80::5 dev e0 weight 9
			route add 2001:db8:4::/48 via 2001:db8:ffff::1 dev e0 onlink
			route add 2001:db8:5::5 dev e0
			route add 2001:db8:6::/48 via 2001:db8:5::5 dev e0
			route add 2001:db8:a::/48 dev e0 metric 7 proto ra
			route add blackhole 2001:db8:7::/48
			route add unreachable 2001:db8:8::/48
			route add 2001:db8:9::/48 dev e1
			addr add 192.0.2.2/24 dev e0
			route add 10.0.0.0/8 via inet6 2001:db8::5 dev e0`},
		{"cloud", `
			addr add 10.128.0.7/32 dev e0
			route add 10.128.0.1 dev e0 scope link
			route add default via 10.128.0.1 dev e0 proto dhcp src 10.128.0.7 metric 100
			route add 169.254.169.254 via 10.128.0.1 dev e0 metric 100
			addr add 2600:1900::7/128 dev e0 nodad
			route add default via fe80::1 dev e0 proto ra metric 100`},
		{"no gateway", `
			addr add 10.0.0.1 peer 10.0.0.2/32 dev e0
			route add default dev e0 scope link
			addr add 2001:db8::2/64 dev e0 nodad
			route add ::/0 dev e0`},
		{"no default route", `
			addr add 10.0.0.1/24 dev e0
			addr add 10.0.1.1/24 dev e1
			addr add 2001:db8::2/64 dev e0 nodad`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nstest.Enter(t)
			nstest.IP(t, host+tt.host)
			h := detect(t, autodetect.Options{})
			if h.V4.Name != "e0" || h.V6.Name != "e0" {
				t.Fatalf("templates %q and %q, want e0: %q", h.V4.Name, h.V6.Name, h.Notices)
			}
			wantAddresses := addresses(t, "e0")
			wantRoutes := [2][]object{own(routes(t, "-4")), own(routes(t, "-6"))}

			nstest.Enter(t)
			nstest.Tap(t, "e0")
			got, err := Configure("e0", plan(h))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Warnings) > 0 {
				t.Errorf("warnings %q", got.Warnings)
			}
			if diff := cmp.Diff(wantAddresses, addresses(t, "e0")); diff != "" {
				t.Error("addresses (-host +guest):\n", diff)
			}
			for i, f := range []string{"-4", "-6"} {
				if diff := cmp.Diff(wantRoutes[i], own(routes(t, f))); diff != "" {
					t.Errorf("routes %s (-host +guest):\n%s", f, diff)
				}
			}
		})
	}
}

// own picks the unicast routes that leave through e0 alone.
func own(list []object) []object {
	var kept []object
	for _, r := range list {
		hops, _ := r["nexthops"].([]any)
		if len(hops) == 0 {
			hops = []any{r}
		}
		all := r["type"] == "unicast" || r["type"] == nil
		for _, h := range hops {
			all = all && h.(object)["dev"] == "e0"
		}
		if all {
			kept = append(kept, r)
		}
	}
	return kept
}

// An address that the host has for a while, as of a lease, is the namespace's for as long as it
// lasts: nobody there renews it.
func TestCopiedAddressesDoNotExpire(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, host+`
		addr add 192.0.2.2/24 dev e0 valid_lft 1000 preferred_lft 900
		route add default via 192.0.2.1 dev e0
		addr add 2001:db8::2/64 dev e0 nodad valid_lft 1000 preferred_lft 900
		route add default via fe80::1 dev e0`)
	if text := nstest.Show(t, "addr", "show", "dev", "e0"); strings.Count(text, "sec preferred_lft ") != 2 {
		t.Fatalf("the host's addresses do not expire:\n%s", text)
	}
	h := detect(t, autodetect.Options{})

	nstest.Enter(t)
	nstest.Tap(t, "e0")
	if got, err := Configure("e0", plan(h)); err != nil || len(got.Warnings) > 0 {
		t.Fatal(err, got.Warnings)
	}
	text := nstest.Show(t, "addr", "show", "dev", "e0")
	if n := strings.Count(text, "valid_lft forever preferred_lft forever"); n != strings.Count(text, " inet") || n < 2 {
		t.Errorf("some expire:\n%s", text)
	}
}

func TestCopyKeepsBestOfWhatItCannotCopy(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, host+`
		addr add 192.0.2.2/24 dev e0
		addr add 198.51.100.2/24 dev e1
		route add default nexthop via 192.0.2.1 dev e0 nexthop via 198.51.100.1 dev e1`)
	h := detect(t, autodetect.Options{V6: autodetect.FamilyOptions{Disabled: true}})

	nstest.Enter(t)
	nstest.Tap(t, "e0")
	got, err := Configure("e0", plan(h))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"Couldn't copy IPv4 default route to namespace, using one via 192.0.2.1"}
	if diff := cmp.Diff(want, got.Warnings); diff != "" {
		t.Error(diff)
	}
	if r := nstest.Show(t, "route", "get", "8.8.8.8"); !strings.Contains(r, "via 192.0.2.1 dev e0") {
		t.Error(r)
	}
}

func TestNextHopObjects(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, host+`
		addr add 192.0.2.2/24 dev e0
		addr add 2001:db8::2/64 dev e0 nodad
		nexthop add id 1 via 192.0.2.1 dev e0
		nexthop add id 2 via 192.0.2.9 dev e0
		nexthop add id 3 group 1/2
		nexthop add id 4 via fe80::1 dev e0
		route add default nhid 1
		route add 10.0.0.0/8 nhid 3
		route add ::/0 nhid 4`)
	h := detect(t, autodetect.Options{})

	nstest.Enter(t)
	nstest.Tap(t, "e0")
	got, err := Configure("e0", plan(h))
	if err != nil || len(got.Warnings) > 0 {
		t.Fatal(err, got.Warnings)
	}
	text := nstest.Show(t, "-4", "route") + nstest.Show(t, "-6", "route")
	for _, want := range []string{"default via 192.0.2.1 dev e0", "nexthop via 192.0.2.9 dev e0", "default via fe80::1 dev e0"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// Nothing may be tentative: a command started at once would not get to use it.
func TestAddressesAreUsableAtOnce(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, host+`
		addr add 2001:db8::2/64 dev e0 nodad
		route add default via fe80::1 dev e0`)
	h := detect(t, autodetect.Options{})

	nstest.Enter(t)
	nstest.Tap(t, "tap7")
	got, err := Configure("tap7", plan(h))
	if err != nil {
		t.Fatal(err)
	}
	text := nstest.Show(t, "-6", "addr", "show", "dev", "tap7")
	if strings.Contains(text, "tentative") {
		t.Error(text)
	}
	if !got.LinkLocal.IsValid() || !strings.Contains(text, got.LinkLocal.String()) {
		t.Errorf("link-local address %v not in\n%s", got.LinkLocal, text)
	}
	if r := nstest.Show(t, "-6", "route"); strings.Count(r, "fe80::/64") != 1 {
		t.Error(r)
	}
	address := netip.MustParseAddr("2001:db8::2")
	if !AwaitLocal(address, 5*time.Second) {
		t.Error("address is not delivered to")
	}
	if r := nstest.Show(t, "-6", "route", "get", address.String()); !strings.HasPrefix(r, "local") {
		t.Error(r)
	}
	if AwaitLocal(address.Next(), 0) {
		t.Error("an address that nobody has is delivered to")
	}
	link := nstest.Show(t, "link", "show", "dev", "tap7")
	for _, want := range []string{"mtu 65520", "qlen 5000", "UP", got.MAC.String()} {
		if !strings.Contains(link, want) {
			t.Errorf("no %q in\n%s", want, link)
		}
	}
	if strings.Contains(link, "NOARP") {
		t.Error(link)
	}
	if lo := nstest.Show(t, "link", "show", "dev", "lo"); !strings.Contains(lo, "LOWER_UP") {
		t.Error(lo)
	}
}

func TestSingleAddressAndRoute(t *testing.T) {
	address := netip.MustParseAddr
	for _, tt := range []struct {
		name   string
		v4, v6 autodetect.FamilyOptions
		want   []string
	}{
		{name: "local mode", want: []string{
			"inet 169.254.2.1/16", "default via 169.254.2.2 dev tap0", "default via fe80::1 dev tap0"}},
		{name: "given",
			v4: autodetect.FamilyOptions{Address: address("10.0.2.100"), PrefixLen: 24, Gateway: address("10.0.2.2")},
			v6: autodetect.FamilyOptions{Address: address("2001:db8::100"), Gateway: address("2001:db8::1")},
			want: []string{"inet 10.0.2.100/24 brd", "default via 10.0.2.2 dev tap0",
				"inet6 2001:db8::100/64", "default via 2001:db8::1 dev tap0"}},
		{name: "gateway outside the prefix",
			v4: autodetect.FamilyOptions{Address: address("10.1.1.2"), PrefixLen: 24, Gateway: address("10.9.9.9")},
			v6: autodetect.FamilyOptions{Address: address("2001:db8::100"), Gateway: address("2001:db8:1::1")},
			want: []string{"inet 10.1.1.2/24", "default via 10.9.9.9 dev tap0 onlink",
				"default via 2001:db8:1::1 dev tap0 metric 1024 onlink"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nstest.Enter(t)
			nstest.Tap(t, "tap0")
			got, err := Configure("tap0", plan(detect(t, autodetect.Options{V4: tt.v4, V6: tt.v6})))
			if err != nil || len(got.Warnings) > 0 {
				t.Fatal(err, got.Warnings)
			}
			text := nstest.Show(t, "addr") + nstest.Show(t, "route") + nstest.Show(t, "-6", "route")
			for _, want := range tt.want {
				// ip shows the broadcast address only if there is one.
				if !strings.Contains(text, strings.TrimSuffix(want, " brd")) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
		})
	}
}

// With an address of the user's, the host's routes are copied although their preferred
// sources do not exist.
func TestGivenAddressWithCopiedRoutes(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, host+`
		addr add 192.0.2.2/24 dev e0
		route add default via 192.0.2.1 dev e0 src 192.0.2.2`)
	h := detect(t, autodetect.Options{
		V4: autodetect.FamilyOptions{Address: netip.MustParseAddr("10.0.2.100"), PrefixLen: 24},
		V6: autodetect.FamilyOptions{Disabled: true},
	})
	nstest.Enter(t)
	nstest.Tap(t, "e0")
	got, err := Configure("e0", plan(h))
	if err != nil || len(got.Warnings) > 0 {
		t.Fatal(err, got.Warnings)
	}
	if r := nstest.Show(t, "route", "get", "8.8.8.8"); !strings.Contains(r, "via 192.0.2.1 dev e0 src 10.0.2.100") {
		t.Error(r)
	}
}

func TestWithoutConfigNet(t *testing.T) {
	nstest.Enter(t)
	nstest.Tap(t, "tap0")
	mac := net.HardwareAddr{2, 0, 0, 1, 2, 3}
	got, err := Configure("tap0", Plan{MAC: mac, MTU: 1400, V4: Family{Enabled: true}, V6: Family{Enabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mac, got.MAC); diff != "" {
		t.Error(diff)
	}
	link := nstest.Show(t, "link")
	if !strings.Contains(link, mac.String()) || !strings.Contains(link, "state DOWN") || !strings.Contains(link, "mtu 1500") {
		t.Error(link)
	}
	if !strings.Contains(link, "LOOPBACK,UP") {
		t.Error(link)
	}
}

func TestLoopbackOnly(t *testing.T) {
	nstest.Enter(t)
	if got, err := Configure("", Plan{Configure: true}); err != nil || got.MAC != nil {
		t.Fatal(got, err)
	}
	if link := nstest.Show(t, "link"); !strings.Contains(link, "LOOPBACK,UP") {
		t.Error(link)
	}
}

func TestErrors(t *testing.T) {
	family := func(a string, n int, gw string) Family {
		return Family{Enabled: true, Address: netip.MustParseAddr(a), PrefixLen: n, Gateway: netip.MustParseAddr(gw)}
	}
	for _, tt := range []struct {
		name string
		plan Plan
		want string
		is   error
	}{
		{"multicast MAC", Plan{MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}, "Couldn't set MAC address in namespace: Cannot assign requested address", unix.EADDRNOTAVAIL},
		{"impossible prefix", Plan{Configure: true, V4: family("10.0.0.1", 33, "10.0.0.2")}, "Couldn't set IPv4 address(es) in namespace: Invalid argument", unix.EINVAL},
		{"multicast gateway", Plan{Configure: true, V4: family("10.0.0.1", 24, "224.0.0.1")}, "Couldn't set IPv4 route(s) in guest: Invalid argument", unix.EINVAL},
		{"impossible prefix of IPv6", Plan{Configure: true, V6: family("2001:db8::1", 129, "fe80::1")}, "Couldn't set IPv6 address(es) in namespace: Invalid argument", unix.EINVAL},
		{"multicast address of IPv6", Plan{Configure: true, V6: family("ff02::1", 64, "fe80::1")}, "Couldn't set IPv6 address(es) in namespace: Cannot assign requested address", unix.EADDRNOTAVAIL},
		{"multicast gateway of IPv6", Plan{Configure: true, V6: family("2001:db8::1", 64, "ff02::1")}, "Couldn't set IPv6 route(s) in guest: Invalid argument", unix.EINVAL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nstest.Enter(t)
			nstest.Tap(t, "tap0")
			_, err := Configure("tap0", tt.plan)
			if err == nil || err.Error() != tt.want || !errors.Is(err, tt.is) {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	t.Run("no such interface", func(t *testing.T) {
		nstest.Enter(t)
		if _, err := Configure("tap0", Plan{}); !errors.Is(err, unix.ENODEV) {
			t.Error(err)
		}
	})
}

func TestIPv6NotSupported(t *testing.T) {
	for _, tt := range []struct {
		name     string
		mtu      int
		disabled string
	}{
		{"link too small", 1200, "0"},
		{"disabled in the namespace", 1500, "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nstest.Enter(t)
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte(tt.disabled), 0); err != nil {
				t.Skip(err)
			}
			nstest.Tap(t, "tap0")
			v6 := Family{Enabled: true, Address: netip.MustParseAddr("2001:db8::1"), PrefixLen: 64, Gateway: netip.MustParseAddr("fe80::1")}
			got, err := Configure("tap0", Plan{Configure: true, MTU: tt.mtu, V6: v6})
			if err != nil || !got.NoV6 {
				t.Fatal(got, err)
			}
			if diff := cmp.Diff([]string{"IPv6 not supported, disabling"}, got.Warnings); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// IPv6 that is not to be had must not cost the guest its IPv4, in local mode either, where
// there is no IPv6 address to be refused.
func TestLocalModeWithoutIPv6(t *testing.T) {
	for _, tt := range []struct {
		name     string
		mtu      int
		disabled string
	}{
		{"link too small", 1200, "0"},
		{"disabled in the namespace", 1500, "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nstest.Enter(t)
			p := plan(detect(t, autodetect.Options{}))
			p.MTU = tt.mtu
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte(tt.disabled), 0); err != nil {
				t.Skip(err)
			}
			nstest.Tap(t, "tap0")
			got, err := Configure("tap0", p)
			if err != nil || !got.NoV6 || got.NoV4 {
				t.Fatal(got, err)
			}
			if r := nstest.Show(t, "route"); !strings.Contains(r, "default via 169.254.2.2 dev tap0") {
				t.Error(r)
			}
		})
	}
}

// More routes than one answer of the kernel holds, in an order in which each depends on
// the next.
func TestManyRoutes(t *testing.T) {
	var script strings.Builder
	fmt.Fprintf(&script, "%s\naddr add 192.0.2.2/24 dev e0\n", host)
	const n = 3000
	for i := range n {
		fmt.Fprintf(&script, "route add 10.%d.%d.0/24 via 192.0.2.%d dev e0 metric %d\n", i/256, i%256, 3+i%200, i)
	}
	nstest.Enter(t)
	nstest.IP(t, script.String())
	h := detect(t, autodetect.Options{V6: autodetect.FamilyOptions{Disabled: true}})
	if len(h.V4.Routes) != n+1 {
		t.Fatalf("%d routes found", len(h.V4.Routes))
	}
	want := own(routes(t, "-4"))

	nstest.Enter(t)
	nstest.Tap(t, "e0")
	slices.Reverse(h.V4.Routes)
	got, err := Configure("e0", plan(h))
	if err != nil || len(got.Warnings) > 0 {
		t.Fatal(err, got.Warnings)
	}
	if diff := cmp.Diff(want, own(routes(t, "-4"))); diff != "" {
		t.Error(diff)
	}
}

// Start-up time counts: a command in a fresh namespace waits for this.
func BenchmarkConfigure(b *testing.B) {
	nstest.Enter(b)
	nstest.IP(b, host+`
		addr add 192.0.2.2/24 dev e0
		route add default via 192.0.2.1
		addr add 2001:db8::2/64 dev e0 nodad
		route add default via fe80::1 dev e0`)
	h, err := autodetect.Detect(autodetect.Options{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		nstest.Enter(b)
		nstest.Tap(b, "e0")
		b.StartTimer()
		if _, err := Configure("e0", plan(h)); err != nil {
			b.Fatal(err)
		}
	}
}
