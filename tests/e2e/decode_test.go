package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"fusilli/tests/bed"
)

// capture has tcpdump write what passes the target's interface to a file, and returns the file's
// path and what ends the capture.
func (c *client) capture(t *testing.T) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(c.dir, "pcap")
	p, err := c.target.Spawn(bed.Root, exec.Command("tcpdump", "-Z", "root", "-i", "h0", "-U", "--immediate-mode", "-s", "0", "-w", path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(limit) })
	waitFor(t, "the capture", func() bool { return strings.Contains(p.Stderr(), "listening on") })
	return path, func() {
		t.Helper()
		// What the target sends last is in the file when all before it is.
		end := []byte("this is the end of " + path)
		conn, err := c.target.Dial(patience(t, limit), "udp", net.JoinHostPort(bed.FarAddr4, "9"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(end); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the capture to be written", func() bool {
			b, _ := os.ReadFile(path)
			return bytes.Contains(b, end)
		})
		p.Stop(limit)
	}
}

// decode returns tshark's reading of the packets of a capture that filter picks, in full.
func decode(t *testing.T, path, filter, proto string) string {
	t.Helper()
	out, err := exec.CommandContext(patience(t, limit), "tshark", "-n", "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-r", path, "-Y", filter, "-O", proto).Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, out)
	}
	return string(out)
}

// contains checks that text has the lines, apart from blanks at the beginning, in that order.
func contains(t *testing.T, text string, lines ...string) {
	t.Helper()
	rest := "\n"
	for line := range strings.Lines(text) {
		rest += strings.TrimSpace(line) + "\n"
	}
	for _, line := range lines {
		_, after, ok := strings.Cut(rest, "\n"+line+"\n")
		if !ok {
			t.Errorf("no line %q, or not in its place, in\n%s", line, text)
			return
		}
		rest = "\n" + after
	}
}

// exchange4 sends m to the server and returns the reply.
func (c *client) exchange4(t *testing.T, pc net.PacketConn, m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	t.Helper()
	b := make([]byte, 2048)
	for range 10 {
		if _, err := pc.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			t.Fatal(err)
		}
		pc.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, _, err := pc.ReadFrom(b)
			if err != nil {
				break
			}
			if r, err := dhcpv4.FromBytes(b[:n]); err == nil && r.TransactionID == m.TransactionID {
				return r
			}
		}
	}
	t.Errorf("no reply to %v", m)
	return nil
}

// exchange6 is exchange4 for DHCPv6.
func (c *client) exchange6(t *testing.T, pc net.PacketConn, m *dhcpv6.Message) *dhcpv6.Message {
	t.Helper()
	b := make([]byte, 2048)
	for range 10 {
		if _, err := pc.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: "h0"}); err != nil {
			t.Fatal(err)
		}
		pc.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, _, err := pc.ReadFrom(b)
			if err != nil {
				break
			}
			if r, err := dhcpv6.MessageFromBytes(b[:n]); err == nil && r.TransactionID == m.TransactionID {
				return r
			}
		}
	}
	t.Fatalf("no reply to %v", m)
	return nil
}

// Every message the services send is read by a decoder that has nothing to do with ours.
func TestMessagesAsTsharkReadsThem(t *testing.T) {
	t.Parallel()
	// the gateway is off the link
	c := unconfigured(t, "--ns-mac-addr", "02:00:00:00:00:07", "-a", bed.HostAddr4, "-n", "31")
	path, stop := c.capture(t)
	c.slaac(t) // router advertisements, and neighbour discovery with the router
	if err := c.target.IP("address add " + bed.HostAddr4 + "/24 dev h0\nroute add default dev h0"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.target.Output(patience(t, limit), bed.Root, "arping", "-c", "1", "-w", "10", "-I", "h0", "203.0.113.9"); err != nil {
		t.Error(err)
	}

	// It wants an answer that comes from the address it has asked for, so that it sees none.
	c.target.Output(patience(t, limit), bed.Root, "ndisc6", "-1", "-r", "1", "-w", "100", "2001:db8::99", "h0")

	pc, err := c.target.ListenPacket("udp4", ":68")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	ask := func(xid byte, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) {
		t.Helper()
		m, err := dhcpv4.New(append(mods, dhcpv4.WithTransactionID(dhcpv4.TransactionID{0, 0, 0, xid}),
			dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 7}))...)
		if err != nil {
			t.Fatal(err)
		}
		if kind != 0 {
			m.UpdateOption(dhcpv4.OptMessageType(kind))
		}
		c.exchange4(t, pc, m)
	}
	ask(1, dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true))
	ask(2, dhcpv4.MessageTypeRequest, dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, []byte{121, 119, 3, 53}))
	ask(3, dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(80), nil))
	ask(4, 0)

	pc6, err := c.target.ListenPacket("udp6", "[::]:546")
	if err != nil {
		t.Fatal(err)
	}
	defer pc6.Close()
	clientID := dhcpv6.OptClientID(&dhcpv6.DUIDUUID{UUID: [16]byte{7}})
	na := func(addresses ...string) dhcpv6.Option {
		o := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, 7}}
		for _, a := range addresses {
			o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
		}
		return o
	}
	ask6 := func(xid byte, kind dhcpv6.MessageType, options ...dhcpv6.Option) *dhcpv6.Message {
		t.Helper()
		m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{0, 0, xid}}
		m.AddOption(clientID)
		for _, o := range options {
			m.AddOption(o)
		}
		return c.exchange6(t, pc6, m)
	}
	offer := ask6(1, dhcpv6.MessageTypeSolicit, na(), &dhcpv6.OptIATA{IaId: [4]byte{0, 0, 0, 8}}, &dhcpv6.OptIAPD{IaId: [4]byte{0, 0, 0, 9}})
	server := dhcpv6.OptServerID(offer.Options.ServerID())
	ask6(2, dhcpv6.MessageTypeRequest, server, na(bed.HostAddr6),
		&dhcpv6.OptFQDN{Flags: 1, DomainName: &rfc1035label.Labels{Labels: []string{"asked"}}})
	ask6(3, dhcpv6.MessageTypeRenew, server, na(bed.HostAddr6))
	ask6(4, dhcpv6.MessageTypeConfirm, na("2001:db8::99"))
	ask6(5, dhcpv6.MessageTypeRebind, na(bed.HostAddr6))
	ask6(6, dhcpv6.MessageTypeInformationRequest)
	ta := &dhcpv6.OptIATA{IaId: [4]byte{0, 0, 0, 8}}
	ta.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("2001:db8::98")})
	ask6(7, dhcpv6.MessageTypeRequest, server, na(bed.HostAddr6), ta)
	stop()
	const ours = "eth.src == 9a:55:9a:55:9a:55 && "
	if out := decode(t, path, ours+"(_ws.malformed || _ws.expert.severity >= 0x600000 || udp.checksum.status == 0 || icmpv6.checksum.status == 0 || ip.checksum.status == 0)", "frame"); out != "" {
		t.Errorf("faulty frames:\n%s", out)
	}
	var frames []string
	for _, f := range strings.Split("\n"+decode(t, path, ours+"(dhcp || dhcpv6 || arp || icmpv6)", "ip,ipv6,udp,dhcp,dhcpv6,arp,icmpv6"), "\nFrame ")[1:] {
		frames = append(frames, "Frame "+f)
	}
	// reply returns the frame that has all of lines.
	reply := func(lines ...string) string {
		t.Helper()
		for _, f := range frames {
			found := 0
			for line := range strings.Lines(f) {
				for _, l := range lines {
					if strings.TrimSpace(line) == l {
						found++
					}
				}
			}
			if found >= len(lines) {
				return f
			}
		}
		t.Errorf("no frame with %q", lines)
		return ""
	}

	contains(t, reply("Address Resolution Protocol (reply)", "Sender IP address: 203.0.113.9"),
		"Sender MAC address: 9a:55:9a:55:9a:55", "Sender IP address: 203.0.113.9",
		"Target MAC address: 02:00:00:00:00:07", "Target IP address: 10.77.0.2")

	fixed := []string{
		"Message type: Boot Reply (2)", "Hardware type: Ethernet (0x01)", "Hardware address length: 6", "Hops: 0", "Seconds elapsed: 0",
		"Client IP address: 0.0.0.0", "Your (client) IP address: 10.77.0.2", "Next server IP address: 0.0.0.0", "Relay agent IP address: 0.0.0.0",
		"Client MAC address: 02:00:00:00:00:07", "Server host name not given", "Boot file name not given", "Magic cookie: DHCP",
	}
	kind := func(name string, n int) []string {
		return []string{fmt.Sprintf("Option: (53) DHCP Message Type (%s)", name), "Length: 1", fmt.Sprintf("DHCP: %s (%d)", name, n)}
	}
	mask := []string{"Option: (1) Subnet Mask (255.255.255.254)", "Subnet Mask: 255.255.255.254"}
	router := []string{"Option: (3) Router", "Length: 4", "Router: 10.77.0.1"}
	middle := []string{
		"Option: (6) Domain Name Server", "Length: 8", "Domain Name Server: 10.77.0.1", "Domain Name Server: 192.0.2.54",
		"Option: (12) Host Name", "Host Name: host1", "Option: (26) Interface MTU", "Interface MTU: 9000",
		"Option: (51) IP Address Lease Time", "IP Address Lease Time: (4294967295s) infinity",
		"Option: (54) DHCP Server Identifier (10.77.0.1)", "DHCP Server Identifier: 10.77.0.1",
	}
	fqdn := []string{
		"Option: (81) Client Fully Qualified Domain Name", "Length: 22", "Flags: 0x04, Encoding", ".... .1.. = Encoding: Binary encoding",
		"A-RR result: 255", "PTR-RR result: 255", "Client name: host1.example.org",
	}
	search := []string{"Option: (119) Domain Search", "Length: 19", "FQDN: a.example.org", "FQDN: b.example.org"}
	gateway := []string{"Option: (121) Classless Static Route", "Length: 14", "10.77.0.1/32-0.0.0.0", "default-10.77.0.1"}
	end := []string{"Option: (255) End", "Option End: 255"}
	for _, tt := range []struct {
		name string
		xid  string
		want [][]string
	}{
		{"offer to discover, broadcast", "0x00000001", [][]string{
			{"Internet Protocol Version 4, Src: 10.77.0.1, Dst: 255.255.255.255", "Time to Live: 255", "User Datagram Protocol, Src Port: 67, Dst Port: 68", "Bootp flags: 0x8000, Broadcast flag (Broadcast)"},
			kind("Offer", 2), mask, router, middle, fqdn, search, gateway, end}},
		{"ack to request, options in the client's order", "0x00000002", [][]string{
			{"Internet Protocol Version 4, Src: 10.77.0.1, Dst: 10.77.0.2", "Bootp flags: 0x0000 (Unicast)"},
			gateway, search, router, kind("ACK", 5), mask, middle, fqdn, end}},
		{"ack to discover, rapid commit", "0x00000003", [][]string{
			kind("ACK", 5), mask, router, middle, {"Option: (80) Rapid commit", "Length: 0"}, fqdn, search, gateway, end}},
		{"ack to BOOTP", "0x00000004", [][]string{kind("ACK", 5), mask, router, middle, fqdn, search, gateway, end}},
	} {
		f := reply("Message type: Boot Reply (2)", "Transaction ID: "+tt.xid)
		contains(t, f, fixed...)
		contains(t, f, slices.Concat(tt.want...)...)
	}

	contains(t, reply("Type: Router Advertisement (134)"),
		"Hop Limit: 255", "[Checksum Status: Good]",
		"Cur hop limit: 255", "Flags: 0x80, Managed address configuration, Prf (Default Router Preference): Medium",
		"Router lifetime (s): 65535", "Reachable time (ms): 0", "Retrans timer (ms): 0",
		"ICMPv6 Option (Prefix information : fd77::/64)", "Prefix Length: 64",
		"Flag: 0xc0, On-link flag(L), Autonomous address-configuration flag(A)", "Valid Lifetime: Infinity (4294967295)",
		"Preferred Lifetime: Infinity (4294967295)", "Prefix: fd77::",
		"ICMPv6 Option (Source link-layer address : 9a:55:9a:55:9a:55)", "ICMPv6 Option (MTU : 9000)",
		"ICMPv6 Option (Recursive DNS Server fd77::1)", "Lifetime: Infinity (4294967295)", "Recursive DNS Servers: fd77::1",
		"ICMPv6 Option (DNS Search List Option a.example.org b.example.org)", "Lifetime: Infinity (4294967295)",
		"Domain Names: a.example.org", "Domain Names: b.example.org", "Padding")
	contains(t, reply("Type: Neighbor Advertisement (136)", "Target Address: 2001:db8::99"),
		"Hop Limit: 255", "[Checksum Status: Good]", "Flags: 0xe0000000, Router, Solicited, Override", "Target Address: 2001:db8::99",
		"ICMPv6 Option (Target link-layer address : 9a:55:9a:55:9a:55)")

	serverID := []string{"Server Identifier", "DUID Type: link-layer address plus time (1)", "Hardware type: Ethernet (1)", "Link-layer address: 9a:55:9a:55:9a:55"}
	address := func(id string) []string {
		return []string{"Identity Association for Non-temporary Address", "IAID: " + id, "T1: infinity", "T2: infinity",
			"IA Address", "IPv6 address: fd77::2", "Preferred lifetime: infinity", "Preferred lifetime: infinity"}
	}
	ourID := []string{"Client Identifier", "Option: Client Identifier (1)", "Length: 18", "UUID: 07000000000000000000000000000000"}
	names := func(flags string) []string {
		return []string{"DNS recursive name server", "1 DNS server address: fd77::1",
			"Domain Search List", "List entry: a.example.org.", "List entry: b.example.org.",
			"Client Fully Qualified Domain Name", "Flags: " + flags + "  [CLIENT SHALL update AAAA RRs; SERVER SHALL update PTR RRs]", "Client Domain Name: host1.example.org."}
	}
	for _, tt := range []struct {
		name, kind, xid string
		want            [][]string
	}{
		{"advertise", "Advertise (2)", "0x000001", [][]string{serverID, address("00000007"),
			{"Identity Association for Temporary Address", "IATA: 00000008", "Status Code: NoAddrAvail (2)"},
			{"Identity Association for Prefix Delegation", "IAID: 00000009", "Status Code: NoPrefixAvail (6)"}, ourID, names("0x00")}},
		{"request", "Reply (7)", "0x000002", [][]string{serverID, address("00000007"), ourID, names("0x02")}},
		{"renew", "Reply (7)", "0x000003", [][]string{serverID, address("00000007"), ourID, names("0x00")}},
		{"confirm", "Reply (7)", "0x000004", [][]string{serverID, {"Identity Association for Non-temporary Address", "IAID: 00000007",
			"Status Code: NotOnLink (4)", "Status Message: Prefix not appropriate for link."}, ourID}},
		{"rebind", "Reply (7)", "0x000005", [][]string{serverID, address("00000007"), ourID, names("0x00")}},
		{"information", "Reply (7)", "0x000006", [][]string{serverID, address("00000000"), ourID, names("0x00")}},
		{"request, a temporary address from elsewhere", "Reply (7)", "0x000007", [][]string{serverID, {"Identity Association for Temporary Address",
			"IATA: 00000008", "Status Code: NotOnLink (4)", "Status Message: Prefix not appropriate for link."}, ourID}},
	} {
		f := reply("Message type: "+tt.kind, "Transaction ID: "+tt.xid)
		label := "Flow Label: 0x0000" + tt.xid[len(tt.xid)-1:]
		if !strings.Contains(f, label) || !strings.Contains(f, "Hop Limit: 255") || !strings.Contains(f, "[Checksum Status: Good]") {
			t.Errorf("%s: no %s, or hop limit or checksum wrong:\n%s", tt.name, label, f)
		}
		contains(t, f, slices.Concat(tt.want...)...)
	}
}
