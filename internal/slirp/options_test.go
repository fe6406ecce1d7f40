package slirp

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// equal compares values of netip, whose fields are not exported, by their own equality.
var equal = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var equalPrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestParse(t *testing.T) {
	plain := func(change func(*Options)) *Options {
		o := &Options{Target: "42", Tap: "tap0", MTU: 1500, CIDR: netip.MustParsePrefix("10.0.2.0/24"), ExitFD: -1, ReadyFD: -1}
		if change != nil {
			change(o)
		}
		return o
	}
	for _, row := range []struct {
		name string
		args string
		want *Options
	}{
		{"a PID", "42", plain(nil)},
		{"a PID and a tap", "42 tun7", plain(func(o *Options) { o.Tap = "tun7" })},
		{"options after operands", "42 tap0 -c -m 9000", plain(func(o *Options) { o.Configure, o.MTU = true, 9000 })},
		{"a cluster", "-c6r3 42", plain(func(o *Options) { o.Configure, o.IPv6, o.ReadyFD = true, true, 3 })},
		{"attached", "--mtu=1400 --ready-fd=4 --exit-fd=5 42", plain(func(o *Options) { o.MTU, o.ReadyFD, o.ExitFD = 1400, 4, 5 })},
		{"detached", "--mtu 1400 -r 4 -e 5 42", plain(func(o *Options) { o.MTU, o.ReadyFD, o.ExitFD = 1400, 4, 5 })},
		{"abbreviated", "--conf --enable-i 42", plain(func(o *Options) { o.Configure, o.IPv6 = true, true })},
		{"rootlesskit", "--mtu 65520 -r 3 --disable-host-loopback --cidr 10.9.0.0/16 --api-socket /tmp/s --enable-sandbox --enable-seccomp --enable-ipv6 42 tap0",
			plain(func(o *Options) {
				o.MTU, o.ReadyFD, o.NoLoopback, o.CIDR = 65520, 3, true, netip.MustParsePrefix("10.9.0.0/16")
				o.APISocket, o.Sandbox, o.Seccomp, o.IPv6 = "/tmp/s", true, true, true
			})},
		{"a path", "--userns-path=/proc/42/ns/user --netns-type=path /proc/42/root/x/netns tap0",
			plain(func(o *Options) {
				o.Target, o.NetNSIsPath, o.UserNSPath = "/proc/42/root/x/netns", true, "/proc/42/ns/user"
			})},
		{"outbound addresses", "--outbound-addr=192.0.2.1 --outbound-addr6=2001:db8::1 42",
			plain(func(o *Options) {
				o.OutboundV4, o.OutboundV6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
			})},
		{"outbound interfaces", "--outbound-addr eth0 --outbound-addr6 eth1 42",
			plain(func(o *Options) { o.OutboundIfV4, o.OutboundIfV6 = "eth0", "eth1" })},
		{"a MAC address", "-c --macaddress 02:00:00:00:00:07 42",
			plain(func(o *Options) { o.Configure, o.MAC = true, net.HardwareAddr{2, 0, 0, 0, 0, 7} })},
		{"no DNS", "--disable-dns --target-type=netns 42", plain(func(o *Options) { o.NoDNS = true })},
		{"too many words", "42 tap0 more", plain(func(o *Options) {
			o.Warnings = []string{"too many arguments, 1 of them are ignored"}
		})},
		{"a machine", "--target-type=bess -6 /run/uml", plain(func(o *Options) { o.BESS, o.IPv6, o.Target = true, true, "/run/uml" })},
		{"the last target", "--target-type=bess 42 --target-type=netns", plain(nil)},
		{"after two dashes", "-c -- 42 tap1", plain(func(o *Options) { o.Configure, o.Tap = true, "tap1" })},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := Parse(append([]string{"slirp4netns"}, strings.Fields(row.args)...))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(row.want, got, equal, equalPrefix, cmpopts.IgnoreUnexported(Options{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	long := strings.Repeat("x", 108)
	for _, row := range []struct {
		name, args, want string
		usage            bool
	}{
		{"no words", "", "", true},
		{"an unknown option", "--bogus 1", "slirp4netns: unrecognized option '--bogus'", true},
		{"an unknown letter", "-x 1", "slirp4netns: invalid option -- 'x'", true},
		{"no value", "-r", "slirp4netns: option requires an argument -- 'r'", true},
		{"no long value", "1 --mtu", "slirp4netns: option '--mtu' requires an argument", true},
		{"a value too many", "--configure=1 1", "slirp4netns: option '--configure' doesn't allow an argument", true},
		{"ambiguous", "--enable 1", "slirp4netns: option '--enable' is ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'", true},
		{"a PID that is none", "abc", "PID must be a positive integer", false},
		{"PID 0", "0", "PID must be a positive integer", false},
		{"MTU 0", "-m 0 1", "MTU must be a positive integer (< 65522)", false},
		{"MTU too large", "-m 65522 1", "MTU must be a positive integer (< 65522)", false},
		{"no CIDR", "--cidr foo 1", "invalid CIDR: foo", false},
		{"no network", "--cidr 10.0.2.100/24 1", "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24", false},
		{"a small network", "--cidr 10.0.2.0/30 1", "prefix length needs to be 1-25", false},
		{"ready-fd", "-r x 1", "ready-fd must be a non-negative integer", false},
		{"exit-fd", "-e -1 1", "exit-fd must be a non-negative integer", false},
		{"a long path", "-a " + long + " 1", "the specified API socket path is too long (>= 108)", false},
		{"a type", "--netns-type=foo 1", "the specified netns-type is neither path nor pid", false},
		{"a target", "--target-type=foo 1", `--target-type must be either "netns" or "bess"`, false},
		{"a machine, set up", "--target-type=bess -c /s", "--configure conflicts with --target-type=bess", true},
		{"a machine's namespace", "--target-type=bess --netns-type=pid /s", "--netns-type conflicts with --target-type=bess", true},
		{"a machine's user namespace", "--target-type=bess --userns-path=/x /s", "--userns-path conflicts with --target-type=bess", true},
		{"a machine's tap", "--target-type=bess /s tap0", "too many arguments", true},
		{"a machine nowhere", "--target-type=bess", "", true},
		{"a machine's MAC address", "--target-type=bess --macaddress 02:00:00:00:00:01 /s", "--macaddr cannot be specified when --configure or -c is not specified", false},
		{"a machine far away", "--target-type=bess " + long, "the specified BESS socket path is too long (>= 108)", false},
		{"a MAC address without -c", "--macaddress 02:00:00:00:00:01 1", "--macaddr cannot be specified when --configure or -c is not specified", false},
		{"an outbound address", "--outbound-addr ::1 1", "outbound-addr has to be valid ipv4 address or interface name.", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Parse(append([]string{"slirp4netns"}, strings.Fields(row.args)...))
			if err == nil {
				t.Fatal("no error")
			}
			var usage *UsageError
			if errors.As(err, &usage) != row.usage || err.Error() != row.want {
				t.Errorf("error %q (usage: %v), want %q (usage: %v)", err, usage != nil, row.want, row.usage)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	o, err := Parse([]string{"slirp4netns", "--cidr=10.9.0.0/16", "1"})
	if err != nil {
		t.Fatal(err)
	}
	if a := o.Addr(100); a != netip.MustParseAddr("10.9.0.100") {
		t.Errorf("Addr(100) = %s", a)
	}
}

// TestProbes: rootlesskit and Podman look for these words before they use a feature.
func TestProbes(t *testing.T) {
	var b bytes.Buffer
	Help(&b)
	for _, word := range []string{"--netns-type", "--enable-ipv6", "--cidr", "--disable-host-loopback", "--api-socket",
		"--enable-sandbox", "--enable-seccomp", "--configure", "--mtu"} {
		if !strings.Contains(b.String(), word) {
			t.Errorf("help lacks %s", word)
		}
	}
	b.Reset()
	Version(&b, "1")
	if !strings.HasPrefix(b.String(), "slirp4netns version 1.") || !strings.Contains(b.String(), "\nSLIRP_CONFIG_VERSION_MAX: 4\n") {
		t.Errorf("version: %s", b.String())
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--mtu=1400\x00-c6r3\x0042\x00tap0")
	f.Add("--cidr\x0010.0.2.0/24\x00--outbound-addr=eth0\x00--\x00-1")
	f.Fuzz(func(t *testing.T, args string) {
		o, err := Parse(append([]string{"slirp4netns"}, strings.Split(args, "\x00")...))
		if err != nil || o.Help || o.Version {
			return
		}
		if o.MTU <= 0 || o.MTU > maxMTU || o.Target == "" || !o.CIDR.Contains(o.Addr(100)) || o.CIDR.Masked() != o.CIDR {
			t.Errorf("accepted %+v", o)
		}
		if !o.NetNSIsPath && o.PID() <= 0 {
			t.Errorf("PID %q", o.Target)
		}
	})
}
