package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var equalAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// parse reads words, a blank between two.
func parse(t *testing.T, line string) *Config {
	t.Helper()
	c, err := Parse(strings.Fields(line))
	if err != nil {
		t.Fatalf("Parse(%s) = %v", line, err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	family := Family{Enabled: true}
	auto := func(p Protocol, d Direction) PortSpec {
		return PortSpec{Protocol: p, Direction: d, Text: "auto", Auto: true}
	}
	common := Config{
		Log:  Log{Level: LevelInfo, Summary: true, Size: 1048576},
		FD:   -1,
		MAC:  net.HardwareAddr{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55},
		MTU:  65520,
		IPv4: family, IPv6: family,
		TCP: true, UDP: true, ICMP: true, DHCP: true, DHCPv6: true, NDP: true, RA: true,
		MaxFlows: 131072, Memory: 96 << 20,
	}
	pasta := common
	pasta.Mode, pasta.Foreground, pasta.Log.Summary = Pasta, true, false // the shell
	pasta.Ports = []PortSpec{auto(TCP, Inbound), auto(TCP, Outbound), auto(UDP, Inbound), auto(UDP, Outbound)}
	passt := common
	passt.Mode, passt.NoSplice = Passt, true
	passt.DNS = DNS{Announce: true, AnnounceList: true}
	for _, want := range []Config{pasta, passt} {
		got := parse(t, want.Mode.String())
		if diff := cmp.Diff(&want, got, equalAddrs, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", want.Mode, diff)
		}
	}
}

func TestMode(t *testing.T) {
	for _, tt := range []struct {
		argv  string
		mode  Mode
		vhost bool
	}{
		{"pasta", Pasta, false},
		{"/usr/bin/pasta.avx2", Pasta, false},
		{"/opt/pasta/passt", Passt, false},
		{"passt.avx2", Passt, false},
		{"./my-passt-pasta", Pasta, false},
		{"passt --vhost-user", Passt, true},
		{"pasta --vhost-user", Passt, true},
		{"anything -d --vhost", Passt, true},
		{"pasta ls --vhost-user", Pasta, false},
		{"pasta -p --vhost-user", Pasta, false},
	} {
		c := parse(t, tt.argv)
		if c.Mode != tt.mode || c.VhostUser != tt.vhost {
			t.Errorf("%s: %v %v, want %v %v", tt.argv, c.Mode, c.VhostUser, tt.mode, tt.vhost)
		}
	}
}

func TestAction(t *testing.T) {
	for _, tt := range []struct {
		argv string
		want Action
	}{
		{"pasta --help", PrintHelp},
		{"pasta -h", PrintHelp},
		{"passt -dh", PrintHelp},
		{"pasta --version", PrintVersion},
		{"pasta --version --nonsense", PrintVersion},
		{"pasta --version -m x", PrintVersion},
		{"pasta --version --no-copy-routes", PrintVersion},
		{"pasta --host-lo-to-ns-lo --version", PrintVersion},
		{"pasta --conf-path=/dev/null --version", PrintVersion},
		{"pasta -h --version", PrintHelp},
		{"pasta --version -h", PrintVersion},
		{"passt --print-capabilities", PrintCapabilities},
		{"pasta --print-capabilities", PrintCapabilities},
		{"passt --version extra", PrintVersion},
		{"pasta help", Run},
		{"pasta ls --version", Run},
	} {
		if c := parse(t, tt.argv); c.Action != tt.want {
			t.Errorf("%s: action %d, want %d", tt.argv, c.Action, tt.want)
		}
	}
}

func TestTarget(t *testing.T) {
	for _, tt := range []struct {
		name, argv string
		want       Target
	}{
		{"shell", "pasta", Target{}},
		{"command", "pasta ls", Target{Kind: Command, Args: []string{"ls"}}},
		{"the command's options", "pasta -f ls -l --netns x", Target{Kind: Command, Args: []string{"ls", "-l", "--netns", "x"}}},
		{"command after --", "pasta -- -x", Target{Kind: Command, Args: []string{"-x"}}},
		{"command called like an option", "pasta help", Target{Kind: Command, Args: []string{"help"}}},
		{"number with arguments", "pasta 12 34", Target{Kind: Command, Args: []string{"12", "34"}}},
		{"signed number", "pasta +12", Target{Kind: Command, Args: []string{"+12"}}},
		{"command, present user namespace", "pasta --netns-only ls", Target{Kind: Command, Args: []string{"ls"}, UserNS: KeepUserNS}},
		{"command, other user namespace", "pasta --userns /u ls", Target{Kind: Command, Args: []string{"ls"}, UserNS: JoinUserNS, UserNSPath: "/u"}},
		{"PID", "pasta 12", Target{Kind: PID, PID: 12, NetNSPath: "/proc/12/ns/net", UserNS: JoinUserNS, UserNSPath: "/proc/12/ns/user"}},
		{"largest PID", "pasta 2147483647", Target{Kind: PID, PID: 2147483647, NetNSPath: "/proc/2147483647/ns/net", UserNS: JoinUserNS, UserNSPath: "/proc/2147483647/ns/user"}},
		{"PID and user namespace", "pasta --userns /u 12", Target{Kind: PID, PID: 12, NetNSPath: "/proc/12/ns/net", UserNS: JoinUserNS, UserNSPath: "/u"}},
		{"PID, --netns-only changes nothing", "pasta --netns-only 12", Target{Kind: PID, PID: 12, NetNSPath: "/proc/12/ns/net", UserNS: JoinUserNS, UserNSPath: "/proc/12/ns/user"}},
		{"path", "pasta --netns /n", Target{Kind: NetNS, NetNSPath: "/n", UserNS: KeepUserNS}},
		{"relative path", "pasta --netns ./n", Target{Kind: NetNS, NetNSPath: "./n", UserNS: KeepUserNS}},
		{"name", "pasta --netns n", Target{Kind: NetNS, NetNSPath: "/run/netns/n", UserNS: KeepUserNS}},
		{"last --netns", "pasta --netns m --netns n", Target{Kind: NetNS, NetNSPath: "/run/netns/n", UserNS: KeepUserNS}},
		{"path and user namespace", "pasta --netns /n --userns /u", Target{Kind: NetNS, NetNSPath: "/n", UserNS: JoinUserNS, UserNSPath: "/u"}},
		{"--netns-only after --userns", "pasta --netns /n --userns /u --netns-only", Target{Kind: NetNS, NetNSPath: "/n", UserNS: KeepUserNS}},
		{"--userns after --netns-only", "pasta --netns /n --netns-only --userns /u", Target{Kind: NetNS, NetNSPath: "/n", UserNS: JoinUserNS, UserNSPath: "/u"}},
		{"stay", "pasta --netns /n --no-netns-quit", Target{Kind: NetNS, NetNSPath: "/n", UserNS: KeepUserNS, NoQuit: true}},
		{"virtual machine", "passt", Target{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, parse(t, tt.argv).Target); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// addr reads an address; what is none is the zero Addr.
func addr(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

// Each row looks at one rule: what changes against the command line without the options.
func TestOptions(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0xab, 0xcd, 0xef, 1}
	type change = func(c *Config)
	on := func(f func(c *Config) *bool) change { return func(c *Config) { *f(c) = true } }
	v4 := func(do func(f *Family)) change { return func(c *Config) { do(&c.IPv4) } }
	v6 := func(do func(f *Family)) change { return func(c *Config) { do(&c.IPv6) } }
	nothing := func(*Config) {}
	only4 := func(c *Config) { c.IPv6.Enabled, c.NDP, c.RA, c.DHCPv6 = false, false, false, false }
	only6 := func(c *Config) { c.IPv4.Enabled, c.DHCP = false, false }
	level := func(l Level) change {
		return func(c *Config) { c.Log.Level, c.Log.Summary = l, l >= LevelInfo }
	}
	long253 := strings.Repeat("a", 253)

	const pasta, passt, vu = "pasta --netns n ", "passt ", "passt --vhost-user "
	for _, tt := range []struct {
		base, args string
		want       change
	}{
		{pasta, "-f", on(func(c *Config) *bool { return &c.Foreground })},
		{pasta, "-f --foreground -f", on(func(c *Config) *bool { return &c.Foreground })},
		{pasta, "-q", level(LevelWarning)},
		{pasta, "-d", level(LevelDebug)},
		{pasta, "--trace", level(LevelTrace)},
		{pasta, "-q -d", level(LevelDebug)},
		{pasta, "-d -q", level(LevelWarning)},
		{pasta, "--trace -q", level(LevelWarning)},
		{pasta, "--trace -q -d", level(LevelDebug)},
		{pasta, "--trace -d", level(LevelTrace)},
		{pasta, "-d --trace", level(LevelTrace)},
		{pasta, "-e", func(c *Config) { c.Warnings = []string{"--stderr will be dropped soon"} }},
		{pasta, "-l /a --log-file=/b", func(c *Config) { c.Log.File = "/b" }},
		{pasta, "--log-size 40960", func(c *Config) { c.Log.Size = 40960 }},
		{pasta, "--log-size 0x20000", func(c *Config) { c.Log.Size = 131072 }},
		{pasta, "-f --stats 2", func(c *Config) { c.Foreground, c.Log.Stats = true, 2*time.Second }},
		{pasta, "-f --stats 2 --stats 0", on(func(c *Config) *bool { return &c.Foreground })},
		{pasta, "-P /p", func(c *Config) { c.PIDFile = "/p" }},
		{pasta, "-p/p", func(c *Config) { c.Capture = "/p" }},
		{pasta, "--pcap-size 1000000", func(c *Config) { c.CaptureSize = 1000000 }},
		{pasta, "--pcap-size 0x1000 --pcap-size 0", func(c *Config) {}},
		{pasta, "-c /p", func(c *Config) { c.ControlPath = "/p" }},
		{pasta, "-c /p -c none", func(c *Config) {}},
		{pasta, "-c none -c /p", func(c *Config) { c.ControlPath = "/p" }},
		{pasta, "--chroot-fallback", on(func(c *Config) *bool { return &c.ChrootFallback })},
		{pasta, "--runas 0", func(c *Config) { c.RunAs = &RunAs{Text: "0"} }},
		{pasta, "--runas 5:0x10", func(c *Config) {
			c.RunAs = &RunAs{User: Account{ID: 5}, Group: &Account{ID: 16}, Text: "5:0x10"}
		}},
		{pasta, "--runas joe", func(c *Config) { c.RunAs = &RunAs{User: Account{Name: "joe"}, Text: "joe"} }},
		{pasta, "--runas joe:7", func(c *Config) {
			c.RunAs = &RunAs{User: Account{Name: "joe"}, Group: &Account{ID: 7}, Text: "joe:7"}
		}},
		{pasta, "--runas 7:staff", func(c *Config) {
			c.RunAs = &RunAs{User: Account{ID: 7}, Group: &Account{Name: "staff"}, Text: "7:staff"}
		}},

		{pasta, "-4", only4},
		{pasta, "-6", only6},
		{pasta, "-4 -6", only6},
		{pasta, "-6 -4", only4},
		{pasta, "-m 1500 -m 9000", func(c *Config) { c.MTU = 9000 }},
		{pasta, "-m 65521", func(c *Config) { c.MTU = 65521 }},
		{pasta, "-m 0", func(c *Config) { c.MTU = 0 }},
		{pasta, "-m 0x600", func(c *Config) { c.MTU = 1536 }},
		{pasta, "-m 02400", func(c *Config) { c.MTU = 1280 }},
		{pasta, "-m 1279", func(c *Config) {
			c.MTU, c.Warnings = 1279, []string{"MTU 1279 is too small for IPv6 (minimum 1280)"}
		}},
		{pasta, "-m 67", func(c *Config) {
			c.MTU = 67
			c.Warnings = []string{"MTU 67 is too small for IPv4 (minimum 68)", "MTU 67 is too small for IPv6 (minimum 1280)"}
		}},
		{pasta, "-m 68 -4", func(c *Config) { only4(c); c.MTU = 68 }},
		{pasta, "-i eth0 -i eth1", func(c *Config) { c.Interface = "eth1" }},
		{pasta, "-I tap0", func(c *Config) { c.TapName = "tap0" }},
		{pasta, "-M 02:00:ab:CD:ef:01", func(c *Config) { c.MAC = mac }},
		{pasta, "--ns-mac-addr 00:00:00:00:00:01 --ns-mac-addr 02:00:ab:cd:ef:01", func(c *Config) { c.GuestMAC = mac }},

		{pasta, "-a 192.0.2.2", v4(func(f *Family) { f.Address = addr("192.0.2.2") })},
		{pasta, "-a 192.0.2.2/24", v4(func(f *Family) { f.Address, f.PrefixLen = addr("192.0.2.2"), 24 })},
		{pasta, "-a 192.0.2.2/0", v4(func(f *Family) { f.Address = addr("192.0.2.2") })},
		{pasta, "-a 192.0.2.2/0 -n 24", v4(func(f *Family) { f.Address, f.PrefixLen = addr("192.0.2.2"), 24 })},
		{pasta, "-n 24 -a 192.0.2.2", v4(func(f *Family) { f.Address, f.PrefixLen = addr("192.0.2.2"), 24 })},
		{pasta, "-a 192.0.2.2/24 -a 192.0.2.3/25", v4(func(f *Family) { f.Address, f.PrefixLen = addr("192.0.2.3"), 25 })},
		{pasta, "-a 2001:db8::2", v6(func(f *Family) { f.Address = addr("2001:db8::2") })},
		{pasta, "-a 2001:db8::2/120", v6(func(f *Family) { f.Address = addr("2001:db8::2") })},
		{pasta, "-a 192.0.2.2 -a 2001:db8::2", func(c *Config) {
			c.IPv4.Address, c.IPv6.Address = addr("192.0.2.2"), addr("2001:db8::2")
		}},
		{pasta, "-n 255.255.255.0", v4(func(f *Family) { f.PrefixLen = 24 })},
		{pasta, "-n 255.255.255.255", v4(func(f *Family) { f.PrefixLen = 32 })},
		{pasta, "-n 24 -n 0x10", v4(func(f *Family) { f.PrefixLen = 16 })},
		{pasta, "-g 192.0.2.1 -g 192.0.2.254", v4(func(f *Family) { f.Gateway = addr("192.0.2.254") })},
		{pasta, "-g fe80::1", v6(func(f *Family) { f.Gateway = addr("fe80::1") })},

		{pasta, "--config-net", func(c *Config) {
			c.ConfigNet, c.RA = true, false
			c.IPv4.CopyAddrs, c.IPv4.CopyRoutes, c.IPv6.CopyAddrs, c.IPv6.CopyRoutes = true, true, true, true
		}},
		{pasta + "--config-net ", "-a 192.0.2.2", v4(func(f *Family) { f.Address, f.CopyAddrs = addr("192.0.2.2"), false })},
		{pasta + "--config-net ", "-a 2001:db8::2", v6(func(f *Family) { f.Address, f.CopyAddrs = addr("2001:db8::2"), false })},
		{pasta + "--config-net ", "-g 192.0.2.1", v4(func(f *Family) { f.Gateway, f.CopyRoutes = addr("192.0.2.1"), false })},
		{pasta + "--config-net ", "-g fe80::1", v6(func(f *Family) { f.Gateway, f.CopyRoutes = addr("fe80::1"), false })},
		{pasta + "--config-net ", "--no-copy-addrs", func(c *Config) {
			c.Warnings = []string{"--no-copy-addrs will be dropped soon"}
			c.IPv4.CopyAddrs, c.IPv6.CopyAddrs = false, false
		}},
		{pasta + "--config-net ", "--no-copy-routes", func(c *Config) {
			c.Warnings = []string{"--no-copy-routes will be dropped soon"}
			c.IPv4.CopyRoutes, c.IPv6.CopyRoutes = false, false
		}},

		{pasta, "-o 192.0.2.9 -o 2001:db8::9", func(c *Config) {
			c.IPv4.Outbound, c.IPv6.Outbound = addr("192.0.2.9"), addr("2001:db8::9")
		}},
		{pasta, "-o 127.0.0.1", v4(func(f *Family) { f.Outbound = addr("127.0.0.1") })},
		{pasta, "--outbound-if4 eth0", v4(func(f *Family) { f.OutboundIf = "eth0" })},
		{pasta, "--outbound-if6 eth0", v6(func(f *Family) { f.OutboundIf = "eth0" })},
		{pasta, "--no-map-gw", on(func(c *Config) *bool { return &c.NoMapGateway })},
		{pasta, "--map-host-loopback 192.0.2.7", v4(func(f *Family) { f.HostLoopback = addr("192.0.2.7") })},
		{pasta, "--map-host-loopback 2001:db8::7", v6(func(f *Family) { f.HostLoopback = addr("2001:db8::7") })},
		{pasta, "--map-host-loopback 192.0.2.7 --map-host-loopback none", on(func(c *Config) *bool { return &c.NoMapGateway })},
		{pasta, "--map-host-loopback none --map-host-loopback 192.0.2.7", func(c *Config) {
			c.NoMapGateway, c.IPv4.HostLoopback = true, addr("192.0.2.7")
		}},
		{pasta, "--map-guest-addr 169.254.1.2", v4(func(f *Family) { f.HostGuestAddr = addr("169.254.1.2") })},
		{pasta, "--map-guest-addr 169.254.1.2 --map-guest-addr none", nothing},
		{pasta, "--any-udp-port", on(func(c *Config) *bool { return &c.AnyUDPPort })},
		{pasta, "--freebind", on(func(c *Config) *bool { return &c.FreeBind })},
		{pasta, "--no-splice", on(func(c *Config) *bool { return &c.NoSplice })},
		{pasta, "--host-lo-to-ns-lo", on(func(c *Config) *bool { return &c.HostLoToNSLo })},
		{pasta, "--splice-only --dhcp-dns -D 192.0.2.53 -S a", func(c *Config) {
			c.SpliceOnly, c.HostLoToNSLo, c.ICMP, c.NDP, c.RA = true, true, false, false, false
			c.DNS = DNS{None: true, NoSearch: true}
		}},

		{pasta, "-D 192.0.2.53 -D 127.0.0.1 -D 2001:db8::53", func(c *Config) {
			c.IPv4.DNS, c.IPv6.DNS = []netip.Addr{addr("192.0.2.53"), addr("127.0.0.1")}, []netip.Addr{addr("2001:db8::53")}
		}},
		{pasta, "-D 192.0.2.1 -D 192.0.2.2 -D 192.0.2.3 -D 192.0.2.4", v4(func(f *Family) {
			f.DNS = []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2"), addr("192.0.2.3")}
		})},
		{pasta, "-D 192.0.2.53 --dns-forward 192.0.2.1 --dns-host 192.0.2.2 -D none", func(c *Config) { c.DNS.None = true }},
		{pasta, "-D none -D 192.0.2.53", v4(func(f *Family) { f.DNS = []netip.Addr{addr("192.0.2.53")} })},
		{pasta, "-D none --dns-forward 192.0.2.1", func(c *Config) { c.DNS.None, c.IPv4.DNSForward = true, addr("192.0.2.1") }},
		{pasta, "--dns-forward 10.0.2.3 --dns-forward fd00::3", func(c *Config) {
			c.IPv4.DNSForward, c.IPv6.DNSForward = addr("10.0.2.3"), addr("fd00::3")
		}},
		{pasta, "--dns-host 127.0.0.53", v4(func(f *Family) { f.DNSHost = addr("127.0.0.53") })},
		{pasta, "-S a -S b", func(c *Config) { c.DNS.Search = []string{"a", "b"} }},
		{pasta, "-S none", on(func(c *Config) *bool { return &c.DNS.NoSearch })},
		{pasta, "-S a -S none -S b", func(c *Config) { c.DNS.Search = []string{"b"} }},
		{pasta, "--dhcp-dns", on(func(c *Config) *bool { return &c.DNS.Announce })},
		{pasta, "--dhcp-search", on(func(c *Config) *bool { return &c.DNS.AnnounceList })},
		{passt, "--no-dhcp-dns", func(c *Config) { c.DNS.Announce = false }},
		{passt, "--no-dhcp-search", func(c *Config) { c.DNS.AnnounceList = false }},
		{pasta, "-H " + long253, func(c *Config) { c.Hostname = long253 }},
		{pasta, "--fqdn " + long253, func(c *Config) { c.FQDN = long253 }},

		{passt, "--no-tcp", func(c *Config) { c.TCP = false }},
		{passt, "--no-udp", func(c *Config) { c.UDP = false }},
		{passt, "--no-icmp", func(c *Config) { c.ICMP, c.NDP, c.RA = false, false, false }},
		{passt, "--no-dhcp", func(c *Config) { c.DHCP = false }},
		{passt, "--no-dhcpv6", func(c *Config) { c.DHCPv6 = false }},
		{passt, "--no-ndp", func(c *Config) { c.NDP, c.RA = false, false }},
		{passt, "--no-ra", func(c *Config) { c.RA = false }},

		{passt, "-s /s", func(c *Config) { c.VM.Socket = "/s" }},
		{passt, "--socket-path /r -s /s", func(c *Config) { c.VM.Socket = "/s" }},
		{passt, "-F 5", func(c *Config) { c.FD, c.VM.OneOff = 5, true }},
		{passt, "-F 0", func(c *Config) { c.FD, c.VM.OneOff = 0, true }},
		{passt, "-s /s -F 5", func(c *Config) { c.FD, c.VM.OneOff = 5, true }},
		{passt, "-F 5 -s /s", func(c *Config) { c.VM.Socket = "/s" }},
		{pasta, "-F 5", func(c *Config) { c.FD, c.VM.OneOff = 5, true }},
		{passt, "-1", on(func(c *Config) *bool { return &c.VM.OneOff })},
		{passt, "--no-splice", nothing},
		{passt, "--repair-path none", on(func(c *Config) *bool { return &c.VM.NoRepair })},
		{vu, "--repair-path /r", func(c *Config) { c.VM.RepairPath = "/r" }},
		{vu, "--repair-path /r --repair-path none", on(func(c *Config) *bool { return &c.VM.NoRepair })},
		{vu, "--migrate-exit", on(func(c *Config) *bool { return &c.VM.MigrateExit })},
		{pasta, "--max-flows 1000", func(c *Config) { c.MaxFlows = 1000 }},
		{passt, "--memory 8388608", func(c *Config) { c.Memory = 8 << 20 }},
		{passt, "--memory 16384k", func(c *Config) { c.Memory = 16 << 20 }},
		{pasta, "--memory 64M", func(c *Config) { c.Memory = 64 << 20 }},
		{pasta, "--memory " + mostMemoryText, func(c *Config) { c.Memory = mostMemory }},
		{vu, "--migrate-no-linger", on(func(c *Config) *bool { return &c.VM.MigrateNoLinger })},
	} {
		t.Run(tt.base+tt.args, func(t *testing.T) {
			want := parse(t, tt.base)
			tt.want(want)
			got := parse(t, tt.base+tt.args)
			if diff := cmp.Diff(want, got, equalAddrs, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("a search list with blanks", func(t *testing.T) {
		c, err := Parse([]string{"pasta", "-S", " a  b "})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a", "b"}, c.DNS.Search); diff != "" {
			t.Error(diff)
		}
	})
}

func TestSummary(t *testing.T) {
	for argv, want := range map[string]bool{
		"pasta": false, "pasta ls": false, "pasta -d ls": true, "pasta --trace": true,
		"pasta -F 3": true, "pasta -q -F 3": false, "pasta 1": true, "pasta -q 1": false, "pasta --netns n": true, "passt": true, "passt -q": false,
	} {
		if got := parse(t, argv).Log.Summary; got != want {
			t.Errorf("%s: %v, want %v", argv, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct {
		argv, want string
	}{
		{"slirp", `Cannot determine mode, invoke as "passt" or "pasta"`},
		{"/usr/lib/passt/x --version", `Cannot determine mode, invoke as "passt" or "pasta"`},
		{"passt a b", "Extra non-option argument: a"},
		{"passt --vhost-user a", "Extra non-option argument: a"},
		{"pasta --netns n 1", "Both --netns and PID or command given"},
		{"pasta --netns n ls", "Both --netns and PID or command given"},
		{"pasta 2147483648", "Invalid PID 2147483648"},
		{"pasta 99999999999999999999", "Invalid PID 99999999999999999999"},
		{"pasta 0", "Invalid PID 0"},
		{"pasta --netns " + x(4086), "Network namespace name/path " + x(4086) + " too long"},
		{"pasta --netns /" + x(4095), "Network namespace name/path /" + x(4095) + " too long"},
		{"pasta --netns=", "Invalid netns: "},
		{"pasta --userns=", "Invalid userns: "},
		{"pasta --userns " + x(4096), "Invalid userns: " + x(4096)},

		{"pasta --stats 1 -f", "Can't display statistics if not running in foreground"},
		{"pasta -f --stats x", "Invalid --stats: x"},
		{"pasta --max-flows 15", "Invalid number of flows: 15, use 16 to 4194304"},
		{"pasta --max-flows 4194305", "Invalid number of flows: 4194305, use 16 to 4194304"},
		{"pasta --max-flows=", "Invalid number of flows: , use 16 to 4194304"},
		{"pasta --memory 8388607", "Invalid memory size: 8388607, use 8M to " + mostMemoryText},
		{"pasta --memory 65G", "Invalid memory size: 65G, use 8M to " + mostMemoryText},
		{"pasta --memory 99999999999999999999G", "Invalid memory size: 99999999999999999999G, use 8M to " + mostMemoryText},
		{"pasta --memory M", "Invalid memory size: M, use 8M to " + mostMemoryText},
		{"pasta --memory 64MB", "Invalid memory size: 64MB, use 8M to " + mostMemoryText},
		{"pasta --memory -1", "Invalid memory size: -1, use 8M to " + mostMemoryText},
		{"pasta --memory=", "Invalid memory size: , use 8M to " + mostMemoryText},
		{"pasta --log-size 40959", "Invalid --log-size: 40959"},
		{"pasta --log-size 1M", "Invalid --log-size: 1M"},
		{"pasta --log-file=", "Invalid log file: "},
		{"pasta --runas=", "Invalid --runas option: "},
		{"pasta --runas :1", "Invalid --runas option: :1"},
		{"pasta --runas 1:", "Invalid --runas option: 1:"},
		{"pasta --runas -1", "Invalid --runas option: -1"},
		{"pasta --runas 4294967295", "Invalid --runas option: 4294967295"},
		{"pasta --conf-path=", "Invalid configuration path: "},
		{"pasta -c " + x(108), "Invalid configuration path: " + x(108)},
		{"pasta --pcap=", "Invalid pcap path: "},
		{"pasta -p " + x(4096), "Invalid pcap path: " + x(4096)},
		{"pasta --pcap-size 1M", "Invalid --pcap-size: 1M, should be a number of bytes, or 0 for no limit"},
		{"pasta --pcap-size -1", "Invalid --pcap-size: -1, should be a number of bytes, or 0 for no limit"},
		{"pasta --pid=", "Invalid PID file: "},
		{"pasta -P " + x(4096), "Invalid PID file: " + x(4096)},

		{"pasta -m x", "Invalid MTU: x"},
		{"pasta -m 1500x", "Invalid MTU: 1500x"},
		{"pasta --mtu=", "Invalid MTU: "},
		{"pasta -m 65522", "MTU 65522 too large (max 65521)"},
		{"pasta -m -1", "MTU 18446744073709551615 too large (max 65521)"},
		{"pasta -a x", "Invalid guest address: x"},
		{"pasta -a 0.0.0.0", "Invalid guest address: 0.0.0.0"},
		{"pasta -a ::", "Invalid guest address: ::"},
		{"pasta -a 127.0.0.2", "Invalid guest address: 127.0.0.2"},
		{"pasta -a ::1", "Invalid guest address: ::1"},
		{"pasta -a 224.0.0.1", "Invalid guest address: 224.0.0.1"},
		{"pasta -a ff02::1", "Invalid guest address: ff02::1"},
		{"pasta -a 255.255.255.255", "Invalid guest address: 255.255.255.255"},
		{"pasta -a fe80::1%eth0", "Invalid guest address: fe80::1%eth0"},
		{"pasta -a ::ffff:192.0.2.1", "Invalid guest address: ::ffff:192.0.2.1"},
		{"pasta -a 192.0.2.1/33", "Invalid prefix length: 192.0.2.1/33"},
		{"pasta -a 192.0.2.1/033", "Invalid prefix length: 192.0.2.1/033"},
		{"pasta -a 192.0.2.1/-1", "Invalid prefix length: 192.0.2.1/-1"},
		{"pasta -a 127.0.0.1/33", "Invalid prefix length: 127.0.0.1/33"},
		{"pasta -a 2001:db8::1/129", "Invalid prefix length: 2001:db8::1/129"},
		{"pasta -a 192.0.2.1/x", "Invalid guest address: 192.0.2.1/x"},
		{"pasta -a 192.0.2.1/24x", "Invalid guest address: 192.0.2.1/24x"},
		{"pasta -a 192.0.2.1/24/3", "Invalid guest address: 192.0.2.1/24/3"},
		{"pasta -a 192.0.2.1/", "Invalid guest address: 192.0.2.1/"},
		{"pasta -a 127.0.0.1/8", "Invalid guest address: 127.0.0.1/8"},
		{"pasta -a 192.0.2/33", "Invalid guest address: 192.0.2/33"},
		{"pasta -a 192.0.2.1/24 -n 24", "Redundant prefix length specification"},
		{"pasta -n 24 -a 192.0.2.1/24", "Redundant prefix length specification"},
		{"pasta -n 24 -a 2001:db8::1/64", "Redundant prefix length specification"},
		{"pasta -n 33", "Invalid prefix length: 33"},
		{"pasta -n 255.0.255.0", "Invalid prefix length: 255.0.255.0"},
		{"pasta -n 255.255.255", "Invalid prefix length: 255.255.255"},
		{"pasta -n ffff::", "Invalid prefix length: ffff::"},
		{"pasta -M x", "Invalid MAC address: x"},
		{"pasta -M 02-00-00-00-00-01", "Invalid MAC address: 02-00-00-00-00-01"},
		{"pasta -M 2:0:0:0:0:1", "Invalid MAC address: 2:0:0:0:0:1"},
		{"pasta -M 02:00:00:00:00:0g", "Invalid MAC address: 02:00:00:00:00:0g"},
		{"pasta --ns-mac-addr x", "Invalid MAC address: x"},
		{"pasta -g 0.0.0.0", "Invalid gateway address: 0.0.0.0"},
		{"pasta -g 127.0.0.1", "Invalid gateway address: 127.0.0.1"},
		{"pasta -g 255.255.255.255", "Invalid gateway address: 255.255.255.255"},
		{"pasta -g ::1", "Invalid gateway address: ::1"},
		{"pasta -g x", "Invalid gateway address: x"},
		{"pasta --interface=", "Invalid interface name : No such device"},
		{"pasta -i " + x(16), "Invalid interface name " + x(16) + ": No such device"},
		{"pasta -o 0.0.0.0", "Invalid or redundant outbound address: 0.0.0.0"},
		{"pasta -o 224.0.0.1", "Invalid or redundant outbound address: 224.0.0.1"},
		{"pasta -o 255.255.255.255", "Invalid or redundant outbound address: 255.255.255.255"},
		{"pasta -o ::1", "Invalid or redundant outbound address: ::1"},
		{"pasta -o ::192.0.2.1", "Invalid or redundant outbound address: ::192.0.2.1"},
		{"pasta -o ::ffff:192.0.2.1", "Invalid or redundant outbound address: ::ffff:192.0.2.1"},
		{"pasta -o eth0", "Invalid or redundant outbound address: eth0"},
		{"pasta --outbound-if4=", "Invalid interface name: "},
		{"pasta --outbound-if6 " + x(16), "Invalid interface name: " + x(16)},
		{"pasta -I " + x(16), "Invalid interface name: " + x(16)},
		{"pasta --ns-ifname=", "Invalid interface name: "},
		{"pasta -D x", "Cannot use DNS address x"},
		{"pasta --dns-forward 127.0.0.1", "Invalid DNS forwarding address: 127.0.0.1"},
		{"pasta --dns-forward 0.0.0.0", "Invalid DNS forwarding address: 0.0.0.0"},
		{"pasta --dns-forward 255.255.255.255", "Invalid DNS forwarding address: 255.255.255.255"},
		{"pasta --dns-host ::", "Invalid host nameserver address: ::"},
		{"pasta --dns-host 255.255.255.255", "Invalid host nameserver address: 255.255.255.255"},
		{"pasta --search=", "Cannot use DNS search domain "},
		{"pasta -S " + x(1025), "Cannot use DNS search domain " + x(1025)},
		{"pasta -S a -S b -S c -S d -S e -S f -S g", "Cannot use DNS search domain g"},
		{"pasta -H " + x(254), "Invalid hostname: " + x(254)},
		{"pasta --fqdn " + x(254), "Invalid FQDN: " + x(254)},
		{"pasta --map-host-loopback 127.0.0.1", "Invalid address to remap to host: 127.0.0.1"},
		{"pasta --map-host-loopback 224.0.0.1", "Invalid address to remap to host: 224.0.0.1"},
		{"pasta --map-guest-addr 0.0.0.0", "Invalid address to remap to host: 0.0.0.0"},
		{"pasta --map-guest-addr x", "Invalid address to remap to host: x"},

		{"passt --socket=", "Invalid socket path: "},
		{"passt -s " + x(108), "Invalid socket path: " + x(108)},
		{"pasta -s /s", "-s is for passt / vhost-user mode only"},
		{"pasta --socket-path /s", "-s is for passt / vhost-user mode only"},
		{"passt -F x", "Invalid --fd: x"},
		{"passt -F 2147483648", "Invalid --fd: 2147483648"},
		{"passt -F -1", "Invalid --fd: -1"},
		{"pasta -1", "--one-off is for passt mode only"},
		{"pasta --no-dhcp-dns", "--no-dhcp-dns is for passt mode only"},
		{"pasta --no-dhcp-search", "--no-dhcp-search is for passt mode only"},
		{"passt -I x", "-I is for pasta mode only"},
		{"passt --ns-ifname " + x(16), "-I is for pasta mode only"},
		{"passt -T 1", "-T is for pasta mode only"},
		{"passt --udp-ns 1", "-U is for pasta mode only"},
		{"passt --userns /u", "--userns is for pasta mode only"},
		{"passt --netns /n", "--netns is for pasta mode only"},
		{"passt --ns-mac-addr 0", "--ns-mac-addr is for pasta mode only"},
		{"passt --dhcp-dns", "--dhcp-dns is for pasta mode only"},
		{"passt --dhcp-search", "--dhcp-search is for pasta mode only"},
		{"passt --no-netns-quit", "--no-netns-quit is for pasta mode only"},
		{"passt --config-net", "--config-net is for pasta mode only"},
		{"passt --no-copy-routes", "--no-copy-routes is for pasta mode only"},
		{"passt --no-copy-addrs", "--no-copy-addrs is for pasta mode only"},
		{"passt --netns-only", "--netns-only is for pasta mode only"},
		{"passt --host-lo-to-ns-lo", "--host-lo-to-ns-lo is for pasta mode only"},
		{"passt --splice-only", "--splice-only is for pasta mode only"},
		{"pasta --vhost-user --config-net", "--config-net is for pasta mode only"},
		{"passt --repair-path /r", "--repair-path is for vhost-user mode only"},
		{"pasta --repair-path /r", "--repair-path is for vhost-user mode only"},
		{"passt --vhost-user --repair-path " + x(108), "Invalid passt-repair path: " + x(108)},
		{"passt --migrate-exit", "--migrate-exit is for vhost-user mode only"},
		{"passt --migrate-no-linger", "--migrate-no-linger is for vhost-user mode only"},

		{"pasta --no-splice --host-lo-to-ns-lo", "--host-lo-to-ns-lo is incompatible with --no-splice"},
		{"pasta --no-copy-addrs --no-copy-routes", "--no-copy-routes needs --config-net"},
		{"pasta --no-copy-addrs", "--no-copy-addrs needs --config-net"},
		{"pasta --splice-only --no-splice", "--splice-only is incompatible with --no-splice"},
		{"pasta -t x", "Invalid port specifier 'x'"},
		{"passt -u auto", "'auto' port forwarding is only allowed for pasta"},

		{"pasta -m x -M y", "Invalid MTU: x"},
		{"pasta -m x --nonsense", "Invalid MTU: x"},
		{"pasta --netns n -t x ls", "Invalid port specifier 'x'"},
	} {
		t.Run(tt.argv, func(t *testing.T) {
			c, err := Parse(strings.Fields(tt.argv))
			var plain *Error
			if !errors.As(err, &plain) {
				t.Fatalf("%v, %v", c, err)
			}
			if plain.Text != tt.want {
				t.Errorf("%q, want %q", plain.Text, tt.want)
			}
		})
	}
	if _, err := Parse(nil); err == nil || err.Error() != "Cannot determine argv[0]" {
		t.Errorf("no argv[0]: %v", err)
	}
}

// A usage error says whose help is to follow, and keeps what was to be said before.
func TestUsageError(t *testing.T) {
	for _, tt := range []struct {
		argv string
		want UsageError
	}{
		{"./pasta --nonsense --version", UsageError{Text: "./pasta: unrecognized option '--nonsense'", Mode: Pasta}},
		{"passt -e -Z", UsageError{
			Text: "passt: invalid option -- 'Z'", Mode: Passt, Warnings: []string{"--stderr will be dropped soon"},
		}},
		{"pasta --vhost-user -Z", UsageError{Text: "pasta: invalid option -- 'Z'", Mode: Passt}},
	} {
		_, err := Parse(strings.Fields(tt.argv))
		var usage *UsageError
		if !errors.As(err, &usage) {
			t.Fatalf("%s: %v", tt.argv, err)
		}
		if diff := cmp.Diff(&tt.want, usage, cmpopts.IgnoreUnexported(UsageError{})); diff != "" {
			t.Errorf("%s: %s", tt.argv, diff)
		}
	}
	for argv, want := range map[string]string{
		"pasta --confg-net": "--config-net", "pasta --dns-forwrad 192.0.2.1": "--dns-forward", "passt --confg-net": "",
		"passt --on-off": "--one-off", "pasta --qiuet": "--quiet", "pasta --x": "", "pasta --tcpports 1": "--tcp-ports", "pasta -Z": "",
	} {
		_, err := Parse(strings.Fields(argv))
		var usage *UsageError
		if !errors.As(err, &usage) || usage.Suggestion != want {
			t.Errorf("%s: %+v, want %q suggested", argv, usage, want)
		}
	}
	_, err := Parse([]string{"pasta", "-e", "-m", "x"})
	var plain *Error
	if !errors.As(err, &plain) || len(plain.Warnings) != 1 {
		t.Errorf("warnings before an error: %v", err)
	}
}

// Each start parses twice, in the launcher and in the translator.
func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse([]string{"pasta", "--config-net", "--", "true"}); err != nil {
			b.Fatal(err)
		}
	}
}

// mostMemoryText is what is said to be the most for --memory: less where a word has 32 bits.
var mostMemoryText = fmt.Sprintf("%dG", mostMemory>>30)
