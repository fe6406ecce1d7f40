package config

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Command lines of real clients, and all they mean. A row says what differs from the mode's
// defaults for the namespace of the row (or from those for a virtual machine).
func TestClients(t *testing.T) {
	v4 := func(c *Config, a, g string, n int) {
		c.IPv4.Address, c.IPv4.Gateway, c.IPv4.PrefixLen = addr(a), addr(g), n
		c.IPv4.CopyAddrs, c.IPv4.CopyRoutes = a == "" && c.ConfigNet, g == "" && c.ConfigNet
	}
	v6 := func(c *Config, a, g string) {
		c.IPv6.Address, c.IPv6.Gateway = addr(a), addr(g)
		c.IPv6.CopyAddrs, c.IPv6.CopyRoutes = a == "" && c.ConfigNet, g == "" && c.ConfigNet
	}
	configNet := func(c *Config) {
		c.ConfigNet, c.RA = true, false
		c.IPv4.CopyAddrs, c.IPv4.CopyRoutes, c.IPv6.CopyAddrs, c.IPv6.CopyRoutes = true, true, true, true
	}
	quiet := func(c *Config) { c.Log.Level, c.Log.Summary = LevelWarning, false }
	only4 := func(c *Config) { c.IPv6.Enabled, c.NDP, c.RA, c.DHCPv6 = false, false, false, false }
	only6 := func(c *Config) { c.IPv4.Enabled, c.DHCP = false, false }
	podman := func(netns string) func(*Config) {
		return func(c *Config) {
			configNet(c)
			quiet(c)
			c.NoMapGateway = true
			c.IPv4.DNSForward, c.IPv4.HostGuestAddr = addr("169.254.1.1"), addr("169.254.1.2")
			c.Target = Target{Kind: NetNS, NetNSPath: netns, UserNS: KeepUserNS}
		}
	}
	rootlesskit := func(c *Config) {
		configNet(c)
		c.TapName = "tap0"
		v4(c, "10.0.2.100", "10.0.2.2", 24)
		c.IPv4.DNSForward = addr("10.0.2.3")
		c.Target = Target{Kind: PID, PID: 1234, NetNSPath: "/proc/1234/ns/net", UserNS: JoinUserNS, UserNSPath: "/proc/1234/ns/user"}
	}
	const netns = "/run/user/1000/netns/netns-x"
	const podmanEnd = " --no-map-gw --quiet --netns " + netns + " --map-guest-addr 169.254.1.2"
	const podmanNone = " --dns-forward 169.254.1.1 -t none -u none -T none -U none"

	for _, tt := range []struct {
		name, argv string
		ports      string // rules, as lines writes them
		want       func(*Config)
	}{
		{"podman", "pasta --config-net" + podmanNone + podmanEnd, "", podman(netns)},
		{"podman, ports",
			"pasta --config-net -t 127.0.0.1/8080-8080:80-80 --tcp-ports 10.77.0.2%eth0/81-81:81-81 -t ::1/5000-5000:5000-5000 " +
				"--tcp-ports 127.0.0.1%lo/90-92:90-92 -u 0.0.0.0/53-53:5353-5353 --udp-ports fd77::2%eth0/5-5:5-5 " +
				"--dns-forward 169.254.1.1 -T none -U none" + podmanEnd,
			"TCP [127.0.0.1]:8080  =>  80 \nTCP [10.77.0.2]%eth0:81  =>  81 \nTCP [::1]:5000  =>  5000 \n" +
				"TCP [127.0.0.1]%lo:90-92  =>  90-92 \nUDP [0.0.0.0]:53  =>  5353 \nUDP [fd77::2]%eth0:5  =>  5 ",
			podman(netns)},
		{"podman, all addresses", "pasta --config-net -t 8080-8080:80-80 --dns-forward 169.254.1.1 -u none -T none -U none" + podmanEnd,
			"TCP [*]:8080  =>  80 ", podman(netns)},
		{"podman, a bridge", "pasta --config-net --pid /run/p" + podmanNone + " --no-map-gw --quiet --netns " +
			"/run/user/1000/networks/rootless-netns/rootless-netns --map-guest-addr 169.254.1.2", "",
			func(c *Config) {
				podman("/run/user/1000/networks/rootless-netns/rootless-netns")(c)
				c.PIDFile = "/run/p"
			}},
		{"podman, the user's options",
			"pasta --config-net -a 192.0.2.9 -n 24 -g 192.0.2.1 -m 1280 -i eth0 -I eth1 --ns-mac-addr 02:00:00:00:00:01 " +
				"--ns-mac-addr 02:00:00:00:00:02 --log-file=/l --pcap /c --trace -4 --dns-forward 192.0.2.53 -t auto " +
				"-u none -T 8000,~8001 -U none --no-map-gw --netns " + netns + " --map-guest-addr 169.254.1.2",
			"TCP [*]:1-32767  =>  1-32767  (best effort) (auto-scan)\nTCP [*]:61000-65535  =>  61000-65535  (best effort) (auto-scan)\n" +
				"out TCP [*]%lo:8000  =>  8000 ",
			func(c *Config) {
				podman(netns)(c)
				only4(c)
				v4(c, "192.0.2.9", "192.0.2.1", 24)
				c.MTU, c.Interface, c.TapName, c.GuestMAC = 1280, "eth0", "eth1", net.HardwareAddr{2, 0, 0, 0, 0, 2}
				c.Log.File, c.Capture, c.Log.Level, c.Log.Summary = "/l", "/c", LevelTrace, true
				c.IPv4.DNSForward = addr("192.0.2.53")
			}},
		{"podman, IPv6 only", "pasta --config-net -6 -a 2001:db8::9 -g fe80::1" + podmanNone + podmanEnd, "",
			func(c *Config) {
				podman(netns)(c)
				only6(c)
				v6(c, "2001:db8::9", "fe80::1")
			}},

		{"rootlesskit 2", "pasta --stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 " +
			"--gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=none " +
			"--host-lo-to-ns-lo 1234",
			"TCP [*]:1-32767  =>  1-32767  (best effort) (auto-scan)\nTCP [*]:61000-65535  =>  61000-65535  (best effort) (auto-scan)\n" +
				"out TCP [*]%lo:1-32767  =>  1-32767  (best effort) (auto-scan)\nout TCP [*]%lo:61000-65535  =>  61000-65535  (best effort) (auto-scan)\n" +
				"out UDP [*]%lo:1-32767  =>  1-32767  (best effort) (auto-scan)\nout UDP [*]%lo:61000-65535  =>  61000-65535  (best effort) (auto-scan)",
			func(c *Config) {
				rootlesskit(c)
				only4(c)
				c.NoMapGateway, c.HostLoToNSLo = true, true
				c.Warnings = []string{"--stderr will be dropped soon"}
			}},
		{"rootlesskit 3", "pasta --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 " +
			"--gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --tcp-ns=none --udp-ns=none --address=fd00::100 " +
			"--gateway=fd00::2 --dns-forward=fd00::3 --tcp-ports=none --udp-ports=none --conf-path=/state/.pasta.sock " +
			"--userns=/proc/12/ns/user --netns=/proc/12/root/run/netns", "",
			func(c *Config) {
				rootlesskit(c)
				v6(c, "fd00::100", "fd00::2")
				c.IPv6.DNSForward, c.NoMapGateway, c.ControlPath = addr("fd00::3"), true, "/state/.pasta.sock"
				c.Target = Target{Kind: NetNS, NetNSPath: "/proc/12/root/run/netns", UserNS: JoinUserNS, UserNSPath: "/proc/12/ns/user"}
			}},

		{"libvirt", "passt --one-off --socket /run/s --pid /run/p --log-file /l --address 192.0.2.2 --netmask 24 " +
			"--interface eth0 -t 22:22 -t 192.0.2.1/2000-2010,~2005 -u 2001:db8::1%eth0/53",
			"TCP [*]:22  =>  22 \nTCP [192.0.2.1]:2000-2004  =>  2000-2004 \nTCP [192.0.2.1]:2006-2010  =>  2006-2010 \n" +
				"UDP [2001:db8::1]%eth0:53  =>  53 ",
			func(c *Config) {
				c.VM, c.PIDFile, c.Log.File, c.Interface = VM{Socket: "/run/s", OneOff: true}, "/run/p", "/l", "eth0"
				c.IPv4.Address, c.IPv4.PrefixLen = addr("192.0.2.2"), 24
			}},
		{"libvirt, vhost-user", "passt --one-off --vhost-user --socket /run/s --pid /run/p -t 22:22", "TCP [*]:22  =>  22 ",
			func(c *Config) { c.VM, c.PIDFile = VM{Socket: "/run/s", OneOff: true}, "/run/p" }},
		{"muvm", "passt -q -f -t 3334:3334 --fd 7", "TCP [*]:3334  =>  3334 ",
			func(c *Config) { quiet(c); c.Foreground, c.FD, c.VM.OneOff = true, 7, true }},
		{"slirp4netns wrapper", "pasta -q --ipv4-only -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 -m 1500 " +
			"--no-ndp --no-dhcpv6 --no-dhcp -P /f -t 80:80 -u 53:53 -T none -U none --netns /n",
			"TCP [*]:80  =>  80 \nUDP [*]:53  =>  53 ",
			func(c *Config) {
				quiet(c)
				only4(c)
				v4(c, "10.0.2.0", "10.0.2.2", 24)
				c.IPv4.DNSForward, c.MTU, c.DHCP, c.PIDFile = addr("10.0.2.3"), 1500, false, "/f"
				c.Target = Target{Kind: NetNS, NetNSPath: "/n", UserNS: KeepUserNS}
			}},
		{"a namespace under test", "pasta -f -t 10002 -T 10003 -u 10002 -U 10003 -P /f 77",
			"TCP [*]:10002  =>  10002 \nUDP [*]:10002  =>  10002 \nout TCP [*]%lo:10003  =>  10003 \nout UDP [*]%lo:10003  =>  10003 ",
			func(c *Config) {
				c.Foreground, c.PIDFile = true, "/f"
				c.Target = Target{Kind: PID, PID: 77, NetNSPath: "/proc/77/ns/net", UserNS: JoinUserNS, UserNSPath: "/proc/77/ns/user"}
			}},
		{"a machine under test", "passt -s /s -f -t 10001 -u 10001 -H hostname1 --fqdn fqdn1.passt.test -P /f",
			"TCP [*]:10001  =>  10001 \nUDP [*]:10001  =>  10001 ",
			func(c *Config) {
				c.VM.Socket, c.Foreground, c.Hostname, c.FQDN, c.PIDFile = "/s", true, "hostname1", "fqdn1.passt.test", "/f"
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(strings.Fields(tt.argv))
			if err != nil {
				t.Fatal(err)
			}
			table, err := Rules(got.Ports, everything)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.ports, strings.Join(lines(table), "\n")); diff != "" {
				t.Errorf("rules, want - got +:\n%s", diff)
			}
			base := "passt"
			if got.Mode == Pasta {
				base = "pasta --netns n"
			} else if got.VhostUser {
				base += " --vhost-user"
			}
			want := parse(t, base)
			tt.want(want)
			want.Ports = got.Ports
			if diff := cmp.Diff(want, got, equalAddrs, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("configuration, want - got +:\n%s", diff)
			}
		})
	}
}

// What Podman looks for when an option is too new for the program.
func TestPodmanRetry(t *testing.T) {
	const known = "pasta --config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns /n"
	old := slices.DeleteFunc(slices.Clone(options), func(o option) bool { return o.long == "map-guest-addr" })
	argv := strings.Fields(known + " --map-guest-addr 169.254.1.2")
	_, err := normalise(old, argv[0], argv[1:])
	var usage *UsageError
	if !errors.As(err, &usage) || !strings.Contains(usage.Text, "unrecognized option '--map-guest-addr") {
		t.Errorf("%v", err)
	}
	if _, err := normalise(old, argv[0], argv[1:len(argv)-2]); err != nil {
		t.Errorf("without its last two arguments: %v", err)
	}
}

// The probes of clients end with status 0 whatever the machine is like.
func TestProbes(t *testing.T) {
	for _, argv := range []string{
		"pasta --version", "pasta --host-lo-to-ns-lo --version", "pasta --conf-path=/dev/null --version", "passt --version",
	} {
		if c := parse(t, argv); c.Action != PrintVersion {
			t.Errorf("%s: action %d", argv, c.Action)
		}
	}
}
