package autodetect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"fusilli/autodetect/rtnl/nstest"

	"github.com/google/go-cmp/cmp"
)

// three makes interfaces e0 to e2, up, with no address but those a test adds.
const three = `
link add e0 type veth peer name p0
link add e1 type veth peer name p1
link add e2 type veth peer name p2
link set p0 up
link set p1 up
link set p2 up
link set e0 up addrgenmode none mtu 9000
link set e1 up addrgenmode none
link set e2 up addrgenmode none
`

// summary is the part of a Family that tells what was chosen.
func summary(f Family) string {
	if f.Index == 0 {
		return "disabled"
	}
	name := f.Name
	if f.Index == Local {
		name = "local"
	}
	s := fmt.Sprintf("%s %s/%d via %s", name, f.Address, f.PrefixLen, f.Gateway)
	if f.LinkLocal.IsValid() {
		s += " from " + f.LinkLocal.String()
	}
	return fmt.Sprintf("%s mtu %d copy %d %v %d %v", s, f.MTU, len(f.Addresses), f.CopyAddresses, len(f.Routes), f.CopyRoutes)
}

const (
	none4  = "No interfaces with usable IPv4 routes"
	none6  = "No interfaces with usable IPv6 routes"
	nolan4 = "IPv4: no external interface as template, use local mode"
	nolan6 = "IPv6: no external interface as template, use local mode"
	local4 = "local 169.254.2.1/16 via 169.254.2.2 mtu 0 copy 0 false 0 false"
	local6 = "local invalid IP/64 via fe80::1 from fe80::1 mtu 0 copy 0 false 0 false"
)

func TestDetect(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		name    string
		host    string
		options Options
		v4, v6  string
		notices []string
		tap     string
	}{
		{name: "nothing at all", v4: local4, v6: local6, notices: []string{none4, nolan4, none6, nolan6}, tap: "tap0"},
		{name: "a family each",
			host: three + `
				addr add 192.0.2.2/24 dev e0
				route add default via 192.0.2.1
				addr add 2001:db8::2/64 dev e1 nodad
				addr add fe80::5/64 dev e1 nodad
				route add default via 2001:db8::1 dev e1`,
			v4:  "e0 192.0.2.2/24 via 192.0.2.1 mtu 9000 copy 1 true 2 true",
			v6:  "e1 2001:db8::2/64 via 2001:db8::1 from fe80::5 mtu 1500 copy 1 true 3 true",
			tap: "e0"},
		{name: "link-local gateway is our address",
			host: three + `
				addr add 2001:db8::2/64 dev e1 nodad
				addr add fe80::5/64 dev e1 nodad
				route add default via fe80::1 dev e1`,
			v4: local4, v6: "e1 2001:db8::2/64 via fe80::1 from fe80::1 mtu 1500 copy 1 true 3 true",
			notices: []string{none4, nolan4}, tap: "e1"},
		{name: "most specific address that is not deprecated",
			host: three + `
				addr add 10.0.0.2/8 dev e0
				addr add 192.0.2.2/25 dev e0
				addr add 192.0.2.200/26 dev e0 preferred_lft 0 valid_lft 1000
				route add default via 192.0.2.1
				addr add 2001:db8::3/96 dev e0 nodad
				addr add 2001:db8::2/64 dev e0 nodad
				addr add 2001:db8::4/128 dev e0 nodad preferred_lft 0
				addr add fe80::5/64 dev e0 nodad
				addr add fe80::6/128 dev e0 nodad
				route add ::/0 dev e0`,
			v4:  "e0 192.0.2.2/25 via 192.0.2.1 mtu 9000 copy 2 true 4 true",
			v6:  "e0 2001:db8::3/64 via invalid IP from fe80::6 mtu 9000 copy 2 true 6 true",
			tap: "e0"},
		{name: "site-local address will do",
			host: three + `
				addr add fec0::2/64 dev e0 nodad
				addr add fe80::5/64 dev e0 nodad
				route add default via fe80::1 dev e0`,
			options: Options{V4: FamilyOptions{Disabled: true}},
			v4:      "disabled", v6: "e0 fec0::2/64 via fe80::1 from fe80::1 mtu 9000 copy 1 true 3 true", tap: "e0"},
		{name: "link-local addresses and routes only",
			host: three + `
				addr add 169.254.7.7/16 dev e0 scope link
				route add 169.254.0.0/17 dev e0
				addr add fe80::5/64 dev e0 nodad`,
			v4: local4, v6: local6, notices: []string{none4, nolan4, none6, nolan6}, tap: "tap0"},
		{name: "deprecated addresses only",
			host: three + `
				addr add 192.0.2.2/24 dev e0 preferred_lft 0 valid_lft 1000
				route add default via 192.0.2.1
				addr add 2001:db8::2/64 dev e0 nodad preferred_lft 0
				addr add fe80::5/64 dev e0 nodad
				route add default via fe80::1 dev e0`,
			v4: local4, v6: local6, notices: []string{nolan4, nolan6}, tap: "tap0"},
		{name: "prefix length given without an address",
			host: three + `
				addr add 192.0.2.2/24 dev e0
				route add default via 192.0.2.1`,
			options: Options{V4: FamilyOptions{PrefixLen: 26}, V6: FamilyOptions{Disabled: true}},
			v4:      "e0 192.0.2.2/26 via 192.0.2.1 mtu 9000 copy 1 true 2 true", v6: "disabled", tap: "e0"},
		{name: "IPv6 without link-local address",
			host: three + `
				addr add 2001:db8::2/64 dev e0 nodad
				route add default via 2001:db8::1 dev e0`,
			options: Options{V4: FamilyOptions{Disabled: true}},
			v4:      "disabled", v6: local6, notices: []string{nolan6}, tap: "tap0"},
		{name: "several defaults",
			host: three + `
				addr add 192.0.2.2/24 dev e0
				addr add 198.51.100.2/24 dev e1
				route add default via 192.0.2.1 metric 20
				route add default via 198.51.100.1 metric 10`,
			options: Options{V6: FamilyOptions{Disabled: true}},
			v4:      "e1 198.51.100.2/24 via 198.51.100.1 mtu 1500 copy 1 true 2 true", v6: "disabled",
			notices: []string{"Multiple default IPv4 routes, picked first"}, tap: "e1"},
		{name: "interface given",
			host: three + `
				addr add 192.0.2.2/24 dev e0
				addr add 198.51.100.2/24 dev e1
				route add default via 192.0.2.1`,
			options: Options{Interface: "e1"},
			v4:      "e1 198.51.100.2/24 via invalid IP mtu 1500 copy 1 true 1 true", v6: local6,
			notices: []string{nolan6}, tap: "e1"},
		{name: "outbound interface",
			host: three + `
				addr add 192.0.2.2/24 dev e0
				addr add 198.51.100.2/24 dev e1
				route add default via 192.0.2.1`,
			options: Options{V4: FamilyOptions{Outbound: "e1"}, V6: FamilyOptions{Disabled: true}},
			v4:      "e1 198.51.100.2/24 via invalid IP mtu 1500 copy 1 true 1 true", v6: "disabled", tap: "e1"},
		{name: "address and gateway given",
			host: three + `
				addr add 192.0.2.2/24 dev e0
				route add default via 192.0.2.1
				addr add fe80::5/64 dev e0 nodad
				route add default via fe80::1 dev e0`,
			options: Options{V4: FamilyOptions{Address: addr("10.0.2.100"), Gateway: addr("10.0.2.2")},
				V6: FamilyOptions{Address: addr("2001:db8::100"), Gateway: addr("2001:db8::1")}},
			v4:  "e0 10.0.2.100/8 via 10.0.2.2 mtu 9000 copy 1 false 2 false",
			v6:  "e0 2001:db8::100/64 via 2001:db8::1 from fe80::5 mtu 9000 copy 0 false 2 false",
			tap: "e0"},
		{name: "given, without a template",
			options: Options{V4: FamilyOptions{Address: addr("10.0.2.100"), PrefixLen: 24, Gateway: addr("10.0.2.2")},
				V6: FamilyOptions{Address: addr("2001:db8::100"), Gateway: addr("fe80::9")}},
			v4:      "local 10.0.2.100/24 via 10.0.2.2 mtu 0 copy 0 false 0 false",
			v6:      "local 2001:db8::100/64 via fe80::9 from fe80::9 mtu 0 copy 0 false 0 false",
			notices: []string{none4, nolan4, none6, nolan6}, tap: "tap0"},
		{name: "blackhole default",
			host:    three + "route add blackhole default",
			options: Options{V6: FamilyOptions{Disabled: true}},
			v4:      local4, v6: "disabled", notices: []string{none4, nolan4}, tap: "tap0"},
		{name: "mixed multipath is not copied",
			host: three + `
				addr add 192.0.2.2/24 dev e0
				addr add 198.51.100.2/24 dev e1
				route add default nexthop via 192.0.2.1 weight 2 nexthop via 198.51.100.1 weight 5`,
			options: Options{V6: FamilyOptions{Disabled: true}},
			v4:      "e0 192.0.2.2/24 via 192.0.2.1 mtu 9000 copy 1 true 1 true", v6: "disabled", tap: "e0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nstest.Enter(t)
			nstest.IP(t, "link set lo up\n"+tt.host)
			h, err := Detect(tt.options)
			if err != nil {
				t.Fatal(err)
			}
			got := []string{summary(h.V4), summary(h.V6), h.TapName()}
			if diff := cmp.Diff([]string{tt.v4, tt.v6, tt.tap}, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.notices, h.Notices); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDetectErrors(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, three)
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"no such interface", Options{Interface: "eth77"}, "Invalid interface name eth77: No such device"},
		{"name too long", Options{Interface: "a-name-too-long-for-it"}, "Invalid interface name a-name-too-long-for-it: No such device"},
	} {
		if _, err := Detect(tt.o); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	for name, o := range map[string]Options{
		"an interface without an address": {V4: FamilyOptions{Outbound: "e0"}},
		"a disabled family":               {V4: FamilyOptions{Outbound: "e2", Disabled: true}},
		"no such interface, disabled":     {V6: FamilyOptions{Outbound: "eth77", Disabled: true}},
		"a template, disabled":            {Interface: "e2", V6: FamilyOptions{Outbound: "eth77", Disabled: true}},
	} {
		if _, err := Detect(o); !errors.Is(err, ErrUnusable) {
			t.Errorf("outbound, %s: %v, want ErrUnusable", name, err)
		}
	}
}

// An outbound interface that is not there leaves the template to the default route, and is told.
func TestDetectWithoutOutbound(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, three+`
address add 192.0.2.2/24 dev e1
route add default via 192.0.2.1 dev e1
address add 2001:db8::2/64 dev e1 nodad
route add default via 2001:db8::1 dev e1
`)
	want, err := Detect(Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Detect(Options{V4: FamilyOptions{Outbound: "eth77"}, V6: FamilyOptions{Outbound: "eth77"}})
	if err != nil {
		t.Fatal(err)
	}
	if got.V4.Name == "" || got.V4.Name != want.V4.Name || got.V6.Name != want.V6.Name {
		t.Errorf("templates %q and %q, want %q and %q", got.V4.Name, got.V6.Name, want.V4.Name, want.V6.Name)
	}
	if !slices.Equal(got.Warnings, []string{"Outbound interface eth77 (IPv4): No such device", "Outbound interface eth77 (IPv6): No such device"}) {
		t.Errorf("warnings %q", got.Warnings)
	}
	if got, err = Detect(Options{Interface: want.V4.Name, V4: FamilyOptions{Outbound: "eth77"}}); err != nil || len(got.Warnings) > 0 {
		t.Errorf("with a template: %v, %q", err, got.Warnings)
	}
}

// Start-up time counts: a command in a fresh namespace waits for this.
func BenchmarkDetect(b *testing.B) {
	nstest.Enter(b)
	nstest.IP(b, three+`
		addr add 192.0.2.2/24 dev e0
		route add default via 192.0.2.1
		addr add 2001:db8::2/64 dev e0 nodad
		addr add fe80::5/64 dev e0 nodad
		route add default via fe80::1 dev e0`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Detect(Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
