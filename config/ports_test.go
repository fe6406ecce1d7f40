package config

import (
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func TestParsePorts(t *testing.T) {
	one := func(p uint16) PortRange { return PortRange{p, p} }
	plain := func(ps ...uint16) []PortMap {
		var l []PortMap
		for _, p := range ps {
			l = append(l, PortMap{Ports: one(p), To: p})
		}
		return l
	}
	for _, tt := range []struct {
		value string
		want  PortSpec
	}{
		{"none", PortSpec{None: true}},
		{"all", PortSpec{}},
		{"auto", PortSpec{Auto: true}},
		{"22", PortSpec{Map: plain(22)}},
		{"/80", PortSpec{Map: plain(80)}},
		{"*/80", PortSpec{Map: plain(80)}},
		{"22:23", PortSpec{Map: []PortMap{{Ports: one(22), To: 23}}}},
		{"22,25", PortSpec{Map: plain(22, 25)}},
		{"22-80", PortSpec{Map: []PortMap{{Ports: PortRange{22, 80}, To: 22}}}},
		{"22-80:32-90", PortSpec{Map: []PortMap{{Ports: PortRange{22, 80}, To: 32}}}},
		{"80-80:60-60", PortSpec{Map: []PortMap{{Ports: one(80), To: 60}}}},
		{" 22-+80", PortSpec{Map: []PortMap{{Ports: PortRange{22, 80}, To: 22}}}},
		{"0", PortSpec{Map: plain(0)}},
		{"65535", PortSpec{Map: plain(65535)}},
		{"022", PortSpec{Map: plain(22)}},
		{"192.0.2.1/22", PortSpec{Listen: addr("192.0.2.1"), Map: plain(22)}},
		{"[192.0.2.1]/22", PortSpec{Listen: addr("192.0.2.1"), Map: plain(22)}},
		{"::1/22", PortSpec{Listen: addr("::1"), Map: plain(22)}},
		{"[::1]/8080:80", PortSpec{Listen: addr("::1"), Map: []PortMap{{Ports: one(8080), To: 80}}}},
		{"0.0.0.0/22", PortSpec{Listen: addr("0.0.0.0"), Map: plain(22)}},
		{"::/22", PortSpec{Listen: addr("::"), Map: plain(22)}},
		{"192.0.2.1%eth0/22", PortSpec{Listen: addr("192.0.2.1"), IfName: "eth0", Map: plain(22)}},
		{"[fe80::1]%eth0/22", PortSpec{Listen: addr("fe80::1"), IfName: "eth0", Map: plain(22)}},
		{"%eth0/22", PortSpec{IfName: "eth0", Map: plain(22)}},
		{"*%eth0/22", PortSpec{IfName: "eth0", Map: plain(22)}},
		{"%123456789012345/22", PortSpec{IfName: "123456789012345", Map: plain(22)}},
		{"::1/all", PortSpec{Listen: addr("::1")}},
		{"::1/auto", PortSpec{Listen: addr("::1"), Auto: true}},
		{"0.0.0.0/5000:192.0.2.5/6000", PortSpec{
			Listen: addr("0.0.0.0"), Map: []PortMap{{Ports: one(5000), To: 6000, Target: addr("192.0.2.5")}},
		}},
		{"5000:192.0.2.5/6000", PortSpec{Map: []PortMap{{Ports: one(5000), To: 6000, Target: addr("192.0.2.5")}}}},
		{"5000:192.0.2.5", PortSpec{Map: []PortMap{{Ports: one(5000), To: 5000, Target: addr("192.0.2.5")}}}},
		{"::/5-6:2001:db8::5/7-8", PortSpec{
			Listen: addr("::"), Map: []PortMap{{Ports: PortRange{5, 6}, To: 7, Target: addr("2001:db8::5")}},
		}},
		{"::/5:[2001:db8::5]/7", PortSpec{
			Listen: addr("::"), Map: []PortMap{{Ports: one(5), To: 7, Target: addr("2001:db8::5")}},
		}},
		{"5:0.0.0.0/7", PortSpec{Map: []PortMap{{Ports: one(5), To: 7}}}},
		{"127.0.0.6/all:192.0.2.6", PortSpec{Listen: addr("127.0.0.6"), AllTarget: addr("192.0.2.6")}},
		{"22,all", PortSpec{Map: plain(22)}},
		{"22,all:192.0.2.6", PortSpec{Map: plain(22)}},
		{"2000-5000,~3000-3010", PortSpec{
			Map: []PortMap{{Ports: PortRange{2000, 5000}, To: 2000}}, Exclude: []PortRange{{3000, 3010}},
		}},
		{"~25,20-30", PortSpec{Map: []PortMap{{Ports: PortRange{20, 30}, To: 20}}, Exclude: []PortRange{one(25)}}},
		{"~20000-20010", PortSpec{Exclude: []PortRange{{20000, 20010}}}},
		{"~1-3,~2-4", PortSpec{Exclude: []PortRange{{1, 3}, {2, 4}}}},
		{"auto,~80", PortSpec{Auto: true, Exclude: []PortRange{one(80)}}},
		{"8000-8010,auto", PortSpec{Auto: true, Map: []PortMap{{Ports: PortRange{8000, 8010}, To: 8000}}}},
	} {
		t.Run(tt.value, func(t *testing.T) {
			want := tt.want
			want.Protocol, want.Text = UDP, tt.value
			got, err := ParsePorts(tt.value, UDP, Inbound, Pasta)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, equalAddrs, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParsePortsErrors(t *testing.T) {
	for _, tt := range []struct {
		value string
		dir   Direction
		mode  Mode
		want  string
	}{
		{"", Inbound, Pasta, "Invalid port specifier ''"},
		{"x", Inbound, Pasta, "Invalid port specifier 'x'"},
		{"22,", Inbound, Pasta, "Invalid port specifier '22,'"},
		{",22", Inbound, Pasta, "Invalid port specifier ',22'"},
		{"22x", Inbound, Pasta, "Invalid port specifier '22x'"},
		{"22 ", Inbound, Pasta, "Invalid port specifier '22 '"},
		{"0x16", Inbound, Pasta, "Invalid port specifier '0x16'"},
		{"22-", Inbound, Pasta, "Invalid port specifier '22-'"},
		{"-22", Inbound, Pasta, "Invalid port specifier '-22'"},
		{"-0", Inbound, Pasta, "Invalid port specifier '-0'"},
		{"-18446744073709551594", Inbound, Pasta, "Invalid port specifier '-18446744073709551594'"},
		{"1--1", Inbound, Pasta, "Invalid port specifier '1--1'"},
		{"23-22", Inbound, Pasta, "Invalid port specifier '23-22'"},
		{"65536", Inbound, Pasta, "Invalid port specifier '65536'"},
		{"99999999999999999999", Inbound, Pasta, "Invalid port specifier '99999999999999999999'"},
		{"22:", Inbound, Pasta, "Invalid port specifier '22:'"},
		{"22:23:24", Inbound, Pasta, "Invalid port specifier '22:23:24'"},
		{"22:23-24", Inbound, Pasta, "Invalid port specifier '22:23-24'"},
		{"22-23:192.0.2.1/5", Inbound, Pasta, "Invalid port specifier '22-23:192.0.2.1/5'"},
		{"22:foo/5", Inbound, Pasta, "Invalid port specifier '22:foo/5'"},
		{"22:192.0.2.1/", Inbound, Pasta, "Invalid port specifier '22:192.0.2.1/'"},
		{"~", Inbound, Pasta, "Invalid port specifier '~'"},
		{"~80:81", Inbound, Pasta, "Invalid port specifier '~80:81'"},
		{"none,22", Inbound, Pasta, "Invalid port specifier 'none,22'"},
		{"192.0.2.1/none", Inbound, Pasta, "Invalid port specifier 'none'"},
		{"192.0.2.1/", Inbound, Pasta, "Invalid port specifier ''"},
		{"192.0.2.1/22/23", Inbound, Pasta, "Invalid port specifier '22/23'"},
		{"192.0.2.1/foo", Inbound, Pasta, "Invalid port specifier 'foo'"},
		{"192.0.2/22", Inbound, Pasta, "Invalid port specifier '192.0.2/22'"},
		{"[::1/22", Inbound, Pasta, "Invalid port specifier '[::1/22'"},
		{"::1]/22", Inbound, Pasta, "Invalid port specifier '::1]/22'"},
		{"%/22", Inbound, Pasta, "Invalid port specifier '%/22'"},
		{"%1234567890123456/22", Inbound, Pasta, "Invalid port specifier '%1234567890123456/22'"},
		{"%a b/22", Inbound, Pasta, "Invalid port specifier '%a b/22'"},
		{"%./22", Inbound, Pasta, "Invalid interface name: ."},
		{"%../22", Inbound, Pasta, "Invalid interface name: .."},
		{"allx", Inbound, Pasta, "Invalid port specifier 'allx'"},
		{"all:", Inbound, Pasta, "Invalid port specifier 'all:'"},
		{"all:80", Inbound, Pasta, "Invalid port specifier 'all:80'"},
		{"automatic", Inbound, Pasta, "Invalid port specifier 'automatic'"},
		{"auto", Inbound, Passt, "'auto' port forwarding is only allowed for pasta"},
		{"22,auto", Inbound, Passt, "'auto' port forwarding is only allowed for pasta"},
		{"127.0.0.1/22", Outbound, Pasta, "Listening address not allowed for -T 127.0.0.1/22"},
		{"%eth0/22", Outbound, Pasta, "Listening address not allowed for -T %eth0/22"},
		{"/22", Outbound, Pasta, "Listening address not allowed for -T /22"},
	} {
		t.Run(tt.value, func(t *testing.T) {
			got, err := ParsePorts(tt.value, TCP, tt.dir, tt.mode)
			var plain *Error
			if !errors.As(err, &plain) || plain.Text != tt.want {
				t.Errorf("%+v, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// everything is a host that can do what Linux can.
var everything = Env{
	IPv4: true, IPv6: true, TCP: true, UDP: true, BindToDevice: true, Ephemeral: PortRange{32768, 60999},
}

// specs reads options like "-t 22 -U auto".
func specs(t *testing.T, line string) []PortSpec {
	t.Helper()
	var list []PortSpec
	words := strings.Fields(line)
	for i := 0; i+1 < len(words); i += 2 {
		var proto Protocol
		var dir Direction
		switch words[i] {
		case "-u":
			proto = UDP
		case "-T":
			dir = Outbound
		case "-U":
			proto, dir = UDP, Outbound
		}
		s, err := ParsePorts(words[i+1], proto, dir, Pasta)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// lines is the table as text, the inbound rules first.
func lines(t *Table) []string {
	var list []string
	for _, r := range t.Inbound {
		list = append(list, r.String())
	}
	for _, r := range t.Outbound {
		list = append(list, "out "+r.String())
	}
	return list
}

func TestRules(t *testing.T) {
	without := func(change func(*Env)) Env { e := everything; change(&e); return e }
	noBind := without(func(e *Env) { e.BindToDevice = false })
	only4, only6 := without(func(e *Env) { e.IPv6 = false }), without(func(e *Env) { e.IPv4 = false })
	fallback := func(opt string) []string {
		return []string{"SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '" + opt + "'"}
	}
	for _, tt := range []struct {
		name, specs string
		env         Env
		want        []string
		warnings    []string
	}{
		{"none", "-t none", everything, nil, nil},
		{"none, then a rule", "-t none -t 22", everything, []string{"TCP [*]:22  =>  22 "}, nil},
		{"none for the other protocol", "-t 22 -u none", everything, []string{"TCP [*]:22  =>  22 "}, nil},
		{"none for the other direction", "-t 22 -T none", everything, []string{"TCP [*]:22  =>  22 "}, nil},
		{"accumulate", "-t 22 -t 80:8080 -u 53", everything,
			[]string{"TCP [*]:22  =>  22 ", "TCP [*]:80  =>  8080 ", "UDP [*]:53  =>  53 "}, nil},
		{"range on address and interface", "-u 192.0.2.1%eth0/20-24:30-34", everything,
			[]string{"UDP [192.0.2.1]%eth0:20-24  =>  30-34 "}, nil},
		{"hole", "-t 2000-5000,~3000-3010", everything,
			[]string{"TCP [*]:2000-2999  =>  2000-2999 ", "TCP [*]:3011-5000  =>  3011-5000 "}, nil},
		{"hole in a shifted range", "-t ~25,20-30:120-130", everything,
			[]string{"TCP [*]:20-24  =>  120-124 ", "TCP [*]:26-30  =>  126-130 "}, nil},
		{"excluded ends", "-t 20-30,~10-20,~30", everything, []string{"TCP [*]:21-29  =>  21-29 "}, nil},
		{"all excluded", "-t 20-30,~1-100", everything, nil, nil},
		{"excluded to the last port", "-t 65530-65535,~65535", everything, []string{"TCP [*]:65530-65534  =>  65530-65534 "}, nil},
		{"ephemeral ports asked for", "-t 40000", everything, []string{"TCP [*]:40000  =>  40000 "}, nil},
		{"all", "-t all", everything, []string{
			"TCP [*]:1-32767  =>  1-32767  (best effort)", "TCP [*]:61000-65535  =>  61000-65535  (best effort)",
		}, nil},
		{"default ephemeral ports", "-t all", without(func(e *Env) { e.Ephemeral = DefaultEphemeral }),
			[]string{"TCP [*]:1-49151  =>  1-49151  (best effort)"}, nil},
		{"only exclusions", "-t ~10-65535", everything, []string{"TCP [*]:1-9  =>  1-9  (best effort)"}, nil},
		{"auto", "-t auto,~61000-65535", everything,
			[]string{"TCP [*]:1-32767  =>  1-32767  (best effort) (auto-scan)"}, nil},
		{"range and auto", "-t 8000-8010,auto", everything, []string{"TCP [*]:8000-8010  =>  8000-8010  (auto-scan)"}, nil},
		{"all with an address", "-t 127.0.0.6/all:192.0.2.6,~9-65535", everything,
			[]string{"TCP [127.0.0.6]:1-8  =>  192.0.2.6:1-8  (best effort)"}, nil},
		{"target address", "-t 0.0.0.0/5000:192.0.2.5/6000", everything,
			[]string{"TCP [0.0.0.0]:5000  =>  192.0.2.5:6000 "}, nil},
		{"IPv6 target address", "-t ::/5000:2001:db8::5", everything,
			[]string{"TCP [::]:5000  =>  [2001:db8::5]:5000 "}, nil},
		{"out", "-T 22 -U 53:54", everything, []string{"out TCP [*]%lo:22  =>  22 ", "out UDP [*]%lo:53  =>  54 "}, nil},
		{"out without SO_BINDTODEVICE", "-T 22", noBind,
			[]string{"out TCP [127.0.0.1]:22  =>  22 ", "out TCP [::1]:22  =>  22 "}, fallback("-T 22")},
		{"out without SO_BINDTODEVICE and IPv6", "-U 22", without(func(e *Env) { e.BindToDevice, e.IPv6 = false, false }),
			[]string{"out UDP [127.0.0.1]:22  =>  22 "}, fallback("-U 22")},
		{"same port in and out", "-t 22 -T 22", everything, []string{"TCP [*]:22  =>  22 ", "out TCP [*]%lo:22  =>  22 "}, nil},
		{"same port, other protocol", "-t 22 -u 22", everything, []string{"TCP [*]:22  =>  22 ", "UDP [*]:22  =>  22 "}, nil},
		{"same port, other address", "-t 192.0.2.1/22 -t 192.0.2.2/22", everything,
			[]string{"TCP [192.0.2.1]:22  =>  22 ", "TCP [192.0.2.2]:22  =>  22 "}, nil},
		{"same port, other family", "-t 0.0.0.0/22 -t ::1/22 -t 192.0.2.1/23", everything,
			[]string{"TCP [0.0.0.0]:22  =>  22 ", "TCP [::1]:22  =>  22 ", "TCP [192.0.2.1]:23  =>  23 "}, nil},
		{"IPv4 only", "-t 22 -u */53 -T 80 -U 81", only4, []string{"TCP [0.0.0.0]:22  =>  22 ", "UDP [0.0.0.0]:53  =>  53 ",
			"out TCP [0.0.0.0]%lo:80  =>  80 ", "out UDP [0.0.0.0]%lo:81  =>  81 "}, nil},
		{"IPv6 only", "-t 22 -T auto,~9-65535", only6,
			[]string{"TCP [::]:22  =>  22 ", "out TCP [::]%lo:1-8  =>  1-8  (best effort) (auto-scan)"}, nil},
		{"target address, IPv4 only", "-t 5:192.0.2.5/6 -u all:192.0.2.6,~9-65535", only4,
			[]string{"TCP [0.0.0.0]:5  =>  192.0.2.5:6 ", "UDP [0.0.0.0]:1-8  =>  192.0.2.6:1-8  (best effort)"}, nil},
		{"target address, IPv6 only", "-t 5:[2001:db8::5]/6", only6, []string{"TCP [::]:5  =>  [2001:db8::5]:6 "}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Rules(specs(t, tt.specs), tt.env)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, lines(got), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.warnings, got.Warnings); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRulesErrors(t *testing.T) {
	without := func(change func(*Env)) Env { e := everything; change(&e); return e }
	conflict := func(a, b string) []string {
		return []string{"Forwarding configuration conflict: " + a + " versus " + b}
	}
	many := func(n int) string {
		var b strings.Builder
		for p := range n {
			b.WriteString(",")
			b.WriteString(PortRange{uint16(1 + 2*p), uint16(1 + 2*p)}.String())
		}
		return b.String()[1:]
	}
	wide := ""
	for _, a := range []string{"1", "2", "3", "4", "5", "6"} {
		wide += " -t 192.0.2." + a + "/1-65535"
	}
	for _, tt := range []struct {
		name, specs string
		env         Env
		want        string
		warnings    []string
	}{
		{"from port 0", "-t 0", everything, "Unable to add rule TCP [*]:0  =>  0 ",
			[]string{"Forwarding rule attempts to map from port 0"}},
		{"to port 0", "-t 5:0", everything, "Unable to add rule TCP [*]:5  =>  0 ",
			[]string{"Forwarding rule attempts to map to port 0"}},
		{"IPv4 off", "-t 127.0.0.1/5", without(func(e *Env) { e.IPv4 = false }),
			"Unable to add rule TCP [127.0.0.1]:5  =>  5 ", []string{"IPv4 forward, but IPv4 not enabled"}},
		{"IPv6 off", "-t ::/5", without(func(e *Env) { e.IPv6 = false }),
			"Unable to add rule TCP [::]:5  =>  5 ", []string{"IPv6 forward, but IPv6 not enabled"}},
		{"TCP off", "-t 5", without(func(e *Env) { e.TCP = false }),
			"Unable to add rule TCP [*]:5  =>  5 ", []string{"Can't add TCP forwarding rule, TCP not enabled"}},
		{"UDP off", "-u 5", without(func(e *Env) { e.UDP = false }),
			"Unable to add rule UDP [*]:5  =>  5 ", []string{"Can't add UDP forwarding rule, UDP not enabled"}},
		{"multicast target", "-u 0.0.0.0/5:224.0.0.1", everything,
			"Unable to add rule UDP [0.0.0.0]:5  =>  224.0.0.1:5 ",
			[]string{"Multicast target address 224.0.0.1 for forwarding rule"}},
		{"dual stack to IPv4", "-t 5:192.0.2.5/6", everything, "Unable to add rule TCP [*]:5  =>  192.0.2.5:6 ",
			[]string{"Dual stack forward to IPv4 address 192.0.2.5 unsupported", "Did you mean 0.0.0.0/... instead?"}},
		{"dual stack to IPv6", "-t 5:2001:db8::5", everything, "Unable to add rule TCP [*]:5  =>  [2001:db8::5]:5 ",
			[]string{"Dual stack forward to IPv6 address 2001:db8::5 unsupported", "Did you mean [::]/... instead?"}},
		{"families differ", "-t 127.0.0.1/5:2001:db8::5", everything,
			"Unable to add rule TCP [127.0.0.1]:5  =>  [2001:db8::5]:5 ",
			[]string{"Forward from 127.0.0.1 (IPv4) to 2001:db8::5 (IPv6) unsupported"}},
		{"target address of the other family", "-t 5:192.0.2.5/6", without(func(e *Env) { e.IPv4 = false }),
			"Unable to add rule TCP [::]:5  =>  192.0.2.5:6 ", []string{"Forward from :: (IPv6) to 192.0.2.5 (IPv4) unsupported"}},
		{"twice, IPv4 only", "-t 22 -t 0.0.0.0/22", without(func(e *Env) { e.IPv6 = false }),
			"Unable to add rule TCP [0.0.0.0]:22  =>  22 ", conflict("TCP [0.0.0.0]:22  =>  22 ", "TCP [0.0.0.0]:22  =>  22 ")},
		{"twice", "-t 22 -t 22", everything, "Unable to add rule TCP [*]:22  =>  22 ",
			conflict("TCP [*]:22  =>  22 ", "TCP [*]:22  =>  22 ")},
		{"twice in one", "-t 80,80", everything, "Unable to add rule TCP [*]:80  =>  80 ",
			conflict("TCP [*]:80  =>  80 ", "TCP [*]:80  =>  80 ")},
		{"overlap", "-t 20-30 -t 30-40", everything, "Unable to add rule TCP [*]:30-40  =>  30-40 ",
			conflict("TCP [*]:30-40  =>  30-40 ", "TCP [*]:20-30  =>  20-30 ")},
		{"address under the wildcard", "-t 22 -t 192.0.2.1/22", everything, "Unable to add rule TCP [192.0.2.1]:22  =>  22 ",
			conflict("TCP [192.0.2.1]:22  =>  22 ", "TCP [*]:22  =>  22 ")},
		{"wildcard over an address", "-t ::1/22 -t ::/22", everything, "Unable to add rule TCP [::]:22  =>  22 ",
			conflict("TCP [::]:22  =>  22 ", "TCP [::1]:22  =>  22 ")},
		{"interfaces do not matter", "-t %eth0/22 -t %eth1/22", everything, "Unable to add rule TCP [*]%eth1:22  =>  22 ",
			conflict("TCP [*]%eth1:22  =>  22 ", "TCP [*]%eth0:22  =>  22 ")},
		{"none too late", "-t 22 -t none", everything, "-t none conflicts with previous options", nil},
		{"none too late, out", "-U 22 -U none", everything, "-U none conflicts with previous options", nil},
		{"interface without SO_BINDTODEVICE", "-u %eth0/22", without(func(e *Env) { e.BindToDevice = false }),
			"Device binding for '-u %eth0/22' unsupported (requires kernel 5.7+)", nil},
		{"too many rules", "-t " + many(256), everything, "Unable to add rule TCP [*]:511  =>  511 ",
			[]string{"Too many rules (maximum 255)"}},
		{"too many sockets", wide, everything, "Unable to add rule TCP [192.0.2.6]:1-65535  =>  1-65535 ",
			[]string{"Rules require too many listening sockets (maximum 327680)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Rules(specs(t, tt.specs), tt.env)
			var plain *Error
			if !errors.As(err, &plain) {
				t.Fatalf("%v, %v", got, err)
			}
			if plain.Text != tt.want {
				t.Errorf("%q, want %q", plain.Text, tt.want)
			}
			if diff := cmp.Diff(tt.warnings, plain.Warnings); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := Rules(specs(t, "-t "+many(255)), everything); err != nil {
		t.Errorf("255 rules: %v", err)
	}
	if _, err := Rules(specs(t, strings.ReplaceAll(wide, " -t 192.0.2.6/1-65535", "")), everything); err != nil {
		t.Errorf("5 times all ports: %v", err)
	}
}

// pasta listens by itself only for letters nobody gave, and protocols that are on.
func TestDefaultPorts(t *testing.T) {
	for _, tt := range []struct{ argv, want string }{
		{"pasta", "-t auto -T auto -u auto -U auto"},
		{"pasta -t none", "-t none -T auto -u auto -U auto"},
		{"pasta -U 53 -t 22 -t 23", "-U 53 -t 22 -t 23 -T auto -u auto"},
		{"pasta --no-tcp", "-u auto -U auto"},
		{"pasta --no-udp --no-tcp", ""},
		{"pasta --no-tcp -t 22 --no-udp", "-t 22"},
		{"passt", ""},
		{"passt -t 22", "-t 22"},
		{"passt -t 22 -D 192.0.2.53 -S none -t 23", "-t 22 -t 23"},
		{"pasta -t 22 -D none -u none -U 53 --dns-forward 192.0.2.1", "-t 22 -u none -U 53 -T auto"},
	} {
		var got []string
		for _, s := range parse(t, tt.argv).Ports {
			got = append(got, "-"+s.Letter(), s.Text)
		}
		if g := strings.Join(got, " "); g != tt.want {
			t.Errorf("%s: %q, want %q", tt.argv, g, tt.want)
		}
	}
}

// portsGrammar is the whole grammar of a specifier but for the addresses.
var portsGrammar = func() *regexp.Regexp {
	const (
		port  = `[ \t\n\v\f\r]*\+?[0-9]+`
		ports = port + `(-` + port + `)?`
		ip    = `(\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]+)`
		chunk = `(all(:` + ip + `)?|auto|~` + ports + `|` + ports + `(:(` + ip + `/)?` + ports + `|:` + ip + `)?)`
	)
	return regexp.MustCompile(`^(none|((` + ip + `|\*)?(%[^/ \t\r\n\f\v]{1,15})?/)?` + chunk + `(,` + chunk + `)*)$`)
}()

// A specifier that means something by construction is understood as just that.
func TestPortsByConstruction(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		listen := rapid.SampledFrom([]string{"", "/", "*/", "%e/", "*%eth0/", "192.0.2.1/", "[192.0.2.1]/", "::1/", "[::1]%e/"}).Draw(t, "listen")
		want := map[uint16]uint16{}
		var chunks []string
		var out []PortRange
		next := 1
		for i := range rapid.IntRange(1, 5).Draw(t, "chunks") {
			first := next + rapid.IntRange(0, 3).Draw(t, "gap")
			n := rapid.IntRange(1, 40).Draw(t, "length")
			last := first + n - 1
			next = last + 1
			chunk := PortRange{uint16(first), uint16(last)}.String()
			switch kind := rapid.IntRange(0, 2).Draw(t, "kind"); {
			case i > 0 && kind == 0: // a hole in what there is
				hole := PortRange{uint16(rapid.IntRange(1, first).Draw(t, "hole")), uint16(last)}
				chunks, out = append(chunks, "~"+hole.String()), append(out, hole)
				continue
			case kind == 1:
				to := rapid.IntRange(1, 65536-n).Draw(t, "to")
				chunk += ":" + PortRange{uint16(to), uint16(to + n - 1)}.String()
				for p := range n {
					want[uint16(first+p)] = uint16(to + p)
				}
			default:
				for p := first; p <= last; p++ {
					want[uint16(p)] = uint16(p)
				}
			}
			chunks = append(chunks, chunk)
		}
		for _, r := range out {
			for p := int(r.First); p <= int(r.Last); p++ {
				delete(want, uint16(p))
			}
		}
		value := listen + strings.Join(chunks, ",")
		s, err := ParsePorts(value, TCP, Inbound, Passt)
		if err != nil {
			t.Fatal(err)
		}
		table, err := Rules([]PortSpec{s}, everything)
		if err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		got := map[uint16]uint16{}
		for _, r := range table.Inbound {
			for p := range r.Ports.Len() {
				got[r.Ports.First+uint16(p)] = r.To + uint16(p)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s: %s", value, diff)
		}
	})
}

// A specifier that is understood makes rules that keep what a rule promises, and that have none
// of the excluded ports.
func FuzzPorts(f *testing.F) {
	for _, s := range []string{
		"none", "all", "auto", "22", "22:23", "22-80:32-90", "80-80:60-60", "192.0.2.1%eth0/22", "%eth0/22", "[::1]/8080:80",
		"0.0.0.0/5000:192.0.2.5/6000", "127.0.0.6/all:192.0.2.6", "2000-5000,~3000-3010", "~20000-20010", "8000-8010,auto",
		"/80", "*/80", "1:2:3:4:5:6:7:8/9", "0-65535:0-65535,~0", "~0-65535", " +1- 2", "-1", "5:[::", "%/1", "18446744073709551617",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, dir := range []Direction{Inbound, Outbound} {
			s, err := ParsePorts(value, TCP, dir, Pasta)
			var plain *Error
			if err != nil {
				if !errors.As(err, &plain) {
					t.Fatalf("%q: %T", value, err)
				}
				continue
			}
			if !portsGrammar.MatchString(value) {
				t.Fatalf("%q is no specifier", value)
			}
			table, err := Rules([]PortSpec{s}, everything)
			if err != nil {
				if !errors.As(err, &plain) {
					t.Fatalf("%q: %T", value, err)
				}
				continue
			}
			for _, r := range *table.list(dir) {
				checkRule(t, r, &s)
			}
		}
	})
}

func checkRule(t *testing.T, r Rule, s *PortSpec) {
	if r.Ports.First == 0 || r.Ports.Last < r.Ports.First || r.To == 0 || int(r.To)+r.Ports.Len() > 65536 {
		t.Fatalf("%q: %v", s.Text, r)
	}
	for _, x := range s.Exclude {
		if x.First <= r.Ports.Last && r.Ports.First <= x.Last {
			t.Fatalf("%q: %v has %v", s.Text, r, x)
		}
	}
	if r.Weak && r.Ports.First <= everything.Ephemeral.Last && everything.Ephemeral.First <= r.Ports.Last {
		t.Fatalf("%q: %v is ephemeral", s.Text, r)
	}
	if r.Target.IsValid() && (!r.Listen.IsValid() || r.Target.Is4() != r.Listen.Is4()) || r.Target == (netip.IPv4Unspecified()) {
		t.Fatalf("%q: %v cannot work", s.Text, r)
	}
}

// Rules that come from elsewhere pass the same checks, among themselves and with those that are
// there.
func TestAddedRules(t *testing.T) {
	table, err := Rules(specs(t, "-t 80 -T 70"), everything)
	if err != nil {
		t.Fatal(err)
	}
	rule := func(port uint16) Rule { return Rule{Ports: PortRange{port, port}, To: port} }
	if err := table.Add(Inbound, everything, rule(81), rule(82)); err != nil {
		t.Error(err)
	}
	if err := table.Add(Outbound, everything, rule(80)); err != nil {
		t.Error(err)
	}
	for _, only := range []struct {
		v4, v6 bool
		want   string
	}{{true, false, "TCP [0.0.0.0]:90  =>  90 "}, {false, true, "TCP [::]:90  =>  90 "}} {
		env, table := everything, &Table{}
		env.IPv4, env.IPv6 = only.v4, only.v6
		if err := table.Add(Inbound, env, rule(90)); err != nil || table.Inbound[0].String() != only.want {
			t.Errorf("%v, %v, want %s", table.Inbound, err, only.want)
		}
	}
	if len(table.Inbound) != 3 || len(table.Outbound) != 2 {
		t.Errorf("%v, %v", table.Inbound, table.Outbound)
	}
	onDevice, noDevices := rule(90), everything
	onDevice.IfName, noDevices.BindToDevice = "lo", false
	for _, tt := range []struct {
		r    Rule
		env  Env
		want string
	}{
		{rule(80), everything, "Forwarding configuration conflict: TCP [*]:80  =>  80  versus TCP [*]:80  =>  80 "},
		{rule(82), everything, "Forwarding configuration conflict: TCP [*]:82  =>  82  versus TCP [*]:82  =>  82 "},
		{rule(0), everything, "Forwarding rule attempts to map from port 0"},
		{onDevice, noDevices, "Device binding unsupported (requires kernel 5.7+)"},
	} {
		table.Warnings = nil
		err := table.Add(Inbound, tt.env, tt.r)
		var plain *Error
		if !errors.As(err, &plain) || plain.Text != "Unable to add rule "+tt.r.String() || !slices.Equal(plain.Warnings, []string{tt.want}) {
			t.Errorf("%v: %#v", tt.r, err)
		}
	}
}
