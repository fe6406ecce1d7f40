package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fusilli/actors/neigh"
	"fusilli/internal/dnsname"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// What the guest is told and asked without having asked itself, in minutes or when the host's
// neighbours change, is read by the same decoder as the answers.
func TestUnaskedMessagesAsTsharkReadsThem(t *testing.T) {
	t.Parallel()
	addr := func(s string) frame.Addr { return frame.AddrOf(netip.MustParseAddr(s)) }
	r := neigh.Responder{
		MAC: frame.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}, Guest4: addr("192.0.2.10"), Our4: addr("192.0.2.1"),
		LinkLocal: addr("fe80::1"), Prefix: addr("2001:db8::10"), MTU: 1400, Managed: true,
		Resolvers: []netip.Addr{netip.MustParseAddr("2001:db8::53"), netip.MustParseAddr("2001:db8::54")},
		Search:    dnsname.AppendList(nil, []string{"a.example.org", "example.com"}),
	}
	path := filepath.Join(scratch(t), "pcap")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ours, theirs := tapio.Pipe(tapio.PipeOptions{Queue: 16})
	capture := tapio.NewCapture(f, 0, func(err error) { t.Error(err) })
	link := capture.Link(ours)
	other, other4, other6 := frame.MAC{2, 0, 0, 0, 0, 0xb}, addr("192.0.2.7"), addr("2001:db8::7")
	for _, put := range []func([]byte) int{
		r.AskARP, r.AskNDP, r.Announce,
		func(b []byte) int { return r.Tell(&other4, other, b) },
		func(b []byte) int { return r.Tell(&other6, other, b) },
	} {
		b := make([]byte, neigh.ReplyLen)
		if err := link.Write(b[:put(b)]); err != nil {
			t.Fatal(err)
		}
	}
	link.Close()
	theirs.Close()
	capture.Close()

	if out := decode(t, path, "_ws.malformed || _ws.expert.severity >= 0x600000 || icmpv6.checksum.status == 0", "frame"); out != "" {
		t.Errorf("faulty frames:\n%s", out)
	}
	frames := strings.Split("\n"+decode(t, path, "frame", "eth,ipv6,arp,icmpv6"), "\nFrame ")[1:]
	want := [][]string{
		{
			"Destination: ff:ff:ff:ff:ff:ff", "Source: 9a:55:9a:55:9a:55", "Address Resolution Protocol (request)", "Hardware type: Ethernet (1)",
			"Protocol type: IPv4 (0x0800)", "Hardware size: 6", "Protocol size: 4", "Opcode: request (1)", "Sender MAC address: 9a:55:9a:55:9a:55",
			"Sender IP address: 192.0.2.1", "Target MAC address: ff:ff:ff:ff:ff:ff", "Target IP address: 192.0.2.10",
		},
		{
			"Destination: ff:ff:ff:ff:ff:ff", "Source: 9a:55:9a:55:9a:55", "Internet Protocol Version 6, Src: fe80::1, Dst: 2001:db8::10", "Hop Limit: 255",
			"Type: Neighbor Solicitation (135)", "Code: 0", "[Checksum Status: Good]", "Reserved: 00000000", "Target Address: 2001:db8::10",
		},
		{
			"Destination: 33:33:00:00:00:01", "Source: 9a:55:9a:55:9a:55", "Internet Protocol Version 6, Src: fe80::1, Dst: ff02::1", "Hop Limit: 255",
			"Type: Router Advertisement (134)", "Code: 0", "[Checksum Status: Good]", "Cur hop limit: 255",
			"Flags: 0x80, Managed address configuration, Prf (Default Router Preference): Medium", "Router lifetime (s): 65535",
			"Reachable time (ms): 0", "Retrans timer (ms): 0", "ICMPv6 Option (Prefix information : 2001:db8::/64)",
			"Flag: 0xc0, On-link flag(L), Autonomous address-configuration flag(A)", "Valid Lifetime: Infinity (4294967295)",
			"Preferred Lifetime: Infinity (4294967295)", "Prefix: 2001:db8::", "ICMPv6 Option (Source link-layer address : 9a:55:9a:55:9a:55)",
			"ICMPv6 Option (MTU : 1400)", "ICMPv6 Option (Recursive DNS Server 2001:db8::53 2001:db8::54)", "Lifetime: Infinity (4294967295)",
			"ICMPv6 Option (DNS Search List Option a.example.org example.com)", "Lifetime: Infinity (4294967295)",
			"Domain Names: a.example.org", "Domain Names: example.com",
		},
		{
			"Destination: ff:ff:ff:ff:ff:ff", "Source: 02:00:00:00:00:0b", "Address Resolution Protocol (ARP Announcement)", "Opcode: request (1)",
			"[Is announcement: True]", "Sender MAC address: 02:00:00:00:00:0b", "Sender IP address: 192.0.2.7",
			"Target MAC address: 00:00:00:00:00:00", "Target IP address: 192.0.2.7",
		},
		{
			"Destination: 33:33:00:00:00:01", "Source: 9a:55:9a:55:9a:55", "Internet Protocol Version 6, Src: fe80::1, Dst: ff02::1", "Hop Limit: 255",
			"Type: Neighbor Advertisement (136)", "[Checksum Status: Good]", "Flags: 0xa0000000, Router, Override", "Target Address: 2001:db8::7",
			"ICMPv6 Option (Target link-layer address : 02:00:00:00:00:0b)", "Length: 1 (8 bytes)",
		},
	}
	if len(frames) != len(want) {
		t.Fatalf("%d frames, want %d", len(frames), len(want))
	}
	for i, lines := range want {
		contains(t, frames[i], lines...)
	}
}

// unasked checks that a capture of pasta with --config-net begins with the questions who the
// namespace is, and that it was told of the neighbour mac.
func unasked(t *testing.T, path, mac string) {
	t.Helper()
	cmd := exec.CommandContext(patience(t, limit), "tshark", "-r", path, "-n", "-T", "fields", "-E", "separator=;", "-E", "occurrence=f",
		"-Y", "(arp.opcode==1 && (eth.src=="+ourMAC+" || arp.isannouncement)) || (eth.src=="+ourMAC+" && icmpv6.type in {135,136} && !icmpv6.nd.na.flag.s==1)",
		"-e", "arp.src.hw_mac", "-e", "arp.src.proto_ipv4", "-e", "arp.dst.proto_ipv4", "-e", "ipv6.dst", "-e", "icmpv6.nd.ns.target_address",
		"-e", "icmpv6.nd.na.target_address", "-e", "icmpv6.opt.linkaddr")
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	const arp, ns = ourMAC + ";10.77.0.1;10.77.0.2;;;;", ";;;fd77::2;fd77::2;;"
	if len(lines) < 2 || lines[0] != arp || lines[1] != ns {
		t.Errorf("begins with %q", lines[:min(2, len(lines))])
	}
	for _, want := range []string{mac + ";" + third4 + ";" + third4 + ";;;;", ";;;ff02::1;;" + third6 + ";" + mac} {
		if !strings.Contains(string(out), want+"\n") {
			t.Errorf("no %q among\n%s", want, out)
		}
	}
}
