package dhcpv6

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/tapio/frame"
)

var (
	ourMAC   = frame.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 1}
	client   = netip.MustParseAddr("fe80::10")
	servers  = netip.MustParseAddr("ff02::1:2")
	guest    = netip.MustParseAddr("2001:db8::10")
	start    = epoch.Add(12345 * time.Second)
	ourID    = &dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, Time: 12345, LinkLayerAddr: ourMAC[:]}
	otherID  = &dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, Time: 12346, LinkLayerAddr: ourMAC[:]}
	clientID = &dhcpv6.DUIDUUID{UUID: [16]byte{1, 2, 3}}
	xid      = dhcpv6.TransactionID{0xab, 0xcd, 0xef}
)

func full() Config {
	return Config{
		MAC: ourMAC, LinkLocal: netip.MustParseAddr("fe80::1"), Guest: guest,
		Resolvers: []netip.Addr{netip.MustParseAddr("2001:db8::53"), netip.MustParseAddr("2001:db8::54"),
			netip.MustParseAddr("2001:db8::55"), netip.MustParseAddr("2001:db8::56")},
		Search: []string{"a.example.org.", ".", "b.example.org"}, FQDN: "host1.example.org",
		Start: start, Log: zap.NewNop(),
	}
}

type opts = []dhcpv6.Option

// message is a request as a client sends it.
func message(kind dhcpv6.MessageType, options ...dhcpv6.Option) []byte {
	m := dhcpv6.Message{MessageType: kind, TransactionID: xid}
	for _, o := range options {
		m.AddOption(o)
	}
	return m.ToBytes()
}

var (
	cid = dhcpv6.OptClientID(clientID)
	sid = dhcpv6.OptServerID(ourID)
)

func na(id byte, addresses ...string) dhcpv6.Option {
	o := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, id}}
	for _, a := range addresses {
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
	}
	return o
}

func ta(id byte, addresses ...string) dhcpv6.Option {
	o := &dhcpv6.OptIATA{IaId: [4]byte{0, 0, 0, id}}
	for _, a := range addresses {
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
	}
	return o
}

func pd(id byte) dhcpv6.Option { return &dhcpv6.OptIAPD{IaId: [4]byte{0, 0, 0, id}} }

// wrap makes the frame a client sends the message b in.
func wrap(t testing.TB, dst netip.Addr, b []byte) []byte {
	t.Helper()
	ip := &layers.IPv6{Version: 6, HopLimit: 1, NextHeader: layers.IPProtocolUDP, SrcIP: client.AsSlice(), DstIP: dst.AsSlice()}
	udp := &layers.UDP{SrcPort: 546, DstPort: 547}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: guestMAC[:], DstMAC: net.HardwareAddr{0x33, 0x33, 0, 1, 0, 2}, EthernetType: layers.EthernetTypeIPv6},
		ip, udp, gopacket.Payload(b)); err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, frame.VnetLen), buf.Bytes()...)
}

func answer(t testing.TB, s *Server, in []byte) ([]byte, error) {
	t.Helper()
	var p frame.Packet
	if why := frame.Parse(in, &p); why != frame.OK {
		t.Fatalf("Parse = %v", why)
	}
	out := bytes.Repeat([]byte{0xaa}, ReplyLen)
	n, err := s.Answer(&p, in, out)
	if (n == 0) != (err != nil) {
		t.Fatalf("Answer = %d, %v", n, err)
	}
	return out[:n], err
}

// read has gopacket read and check the frame b, and returns the message in it.
func read(t testing.TB, b []byte) *dhcpv6.Message {
	t.Helper()
	if !bytes.Equal(b[:frame.VnetLen], make([]byte, frame.VnetLen)) {
		t.Errorf("virtio_net_hdr % x", b[:frame.VnetLen])
	}
	pkt := gopacket.NewPacket(b[frame.VnetLen:], layers.LayerTypeEthernet, gopacket.Default)
	if e := pkt.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	e := pkt.LinkLayer().(*layers.Ethernet)
	if !bytes.Equal(e.SrcMAC, ourMAC[:]) || !bytes.Equal(e.DstMAC, guestMAC[:]) {
		t.Errorf("ethernet %v to %v", e.SrcMAC, e.DstMAC)
	}
	ip := pkt.NetworkLayer().(*layers.IPv6)
	if ip.HopLimit != 255 || ip.TrafficClass != 0 || ip.FlowLabel != 0xbcdef || ip.SrcIP.String() != "fe80::1" || ip.DstIP.String() != client.String() {
		t.Errorf("IPv6 %+v", ip)
	}
	udp := pkt.TransportLayer().(*layers.UDP)
	udp.SetNetworkLayerForChecksum(ip)
	if err, wrong := pkt.VerifyChecksums(); err != nil || len(wrong) > 0 {
		t.Errorf("checksums: %v, %v", err, wrong)
	}
	if udp.SrcPort != 547 || udp.DstPort != 546 || udp.Checksum == 0 || int(udp.Length) != len(b)-frame.L3Off-40 {
		t.Errorf("UDP %+v", udp)
	}
	m, err := dhcpv6.MessageFromBytes(udp.Payload)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// show is the options of a message in order, as text.
func show(list dhcpv6.Options) (s []string) {
	for _, o := range list {
		switch o := o.(type) {
		case *dhcpv6.OptIANA:
			s = append(s, fmt.Sprintf("IA_NA %d T1 %v T2 %v %v", o.IaId[3], o.T1, o.T2, show(o.Options.Options)))
		case *dhcpv6.OptIATA:
			s = append(s, fmt.Sprintf("IA_TA %d %v", o.IaId[3], show(o.Options.Options)))
		case *dhcpv6.OptIAPD:
			s = append(s, fmt.Sprintf("IA_PD %d T1 %v T2 %v %v", o.IaId[3], o.T1, o.T2, show(o.Options.Options)))
		case *dhcpv6.OptIAAddress:
			s = append(s, fmt.Sprintf("address %v %v %v", o.IPv6Addr, o.PreferredLifetime, o.ValidLifetime))
		case *dhcpv6.OptStatusCode:
			s = append(s, fmt.Sprintf("status %d %s", o.StatusCode, o.StatusMessage))
		case *dhcpv6.OptFQDN:
			s = append(s, fmt.Sprintf("FQDN %d %v", o.Flags, o.DomainName))
		default:
			s = append(s, fmt.Sprintf("%d % x", o.Code(), o.ToBytes()))
		}
	}
	return s
}

const forEver = "1193046h28m15s" // 2^32-1 seconds

func given(id int) string {
	return fmt.Sprintf("IA_NA %d T1 %s T2 %s [address 2001:db8::10 %s %s]", id, forEver, forEver, forEver, forEver)
}

var (
	serverOption = "2 " + fmt.Sprintf("% x", ourID.ToBytes())
	clientOption = "1 " + fmt.Sprintf("% x", clientID.ToBytes())
	dnsOption    = "23 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 53 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 54 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 55"
	searchOption = "24 " + fmt.Sprintf("% x", "\x01a\x07example\x03org\x00\x01b\x07example\x03org\x00")
	fqdnOption   = "FQDN 0 [host1.example.org]"
)

func whole6(ias ...string) []string {
	return slices.Concat([]string{serverOption}, ias, []string{clientOption, dnsOption, searchOption, fqdnOption})
}

func TestMessages(t *testing.T) {
	const (
		advertise = "DHCPv6: received SOLICIT, sending ADVERTISE"
		reply     = "DHCPv6: received REQUEST/RENEW/CONFIRM, sending REPLY"
		rebind    = "DHCPv6: received REBIND, sending REPLY"
		inform    = "DHCPv6: received INFORMATION_REQUEST, sending REPLY"
		none      = "status 2 No more addresses."
		link      = "status 4 Prefix not appropriate for link."
	)
	other := dhcpv6.OptServerID(otherID)
	fqdn := func(flags uint8) dhcpv6.Option {
		return &dhcpv6.OptFQDN{Flags: flags, DomainName: &rfc1035label.Labels{Labels: []string{"x"}}}
	}
	notOnLink := func(ia string) []string { return []string{serverOption, ia, clientOption} }
	overridden := whole6(given(7))
	overridden[len(overridden)-1] = "FQDN 2 [host1.example.org]"
	for _, tt := range []struct {
		name string
		kind dhcpv6.MessageType
		in   opts
		want []string // options; nil: no answer
		log  string
		err  error
	}{
		{"solicit", dhcpv6.MessageTypeSolicit, opts{cid, na(7)}, whole6(given(7)), advertise, nil},
		{"solicit with a hint", dhcpv6.MessageTypeSolicit, opts{cid, na(7, "2001:db8::99")}, whole6(given(7)), advertise, nil},
		{"solicit, rapid commit", dhcpv6.MessageTypeSolicit, opts{cid, na(7), raw(dhcpv6.OptionRapidCommit, nil)}, whole6(given(7)), advertise, nil},
		{"solicit with server", dhcpv6.MessageTypeSolicit, opts{cid, sid, na(7)}, nil, "", ErrIgnored},
		{"solicit without IA", dhcpv6.MessageTypeSolicit, opts{cid}, whole6(given(0)), advertise, nil},
		{"request", dhcpv6.MessageTypeRequest, opts{cid, sid, na(7)}, whole6(given(7)), reply, nil},
		{"request for the address", dhcpv6.MessageTypeRequest, opts{cid, sid, na(7, "2001:db8::10")}, whole6(given(7)), reply, nil},
		{"request for another address", dhcpv6.MessageTypeRequest, opts{cid, sid, na(7, "2001:db8::99")},
			notOnLink("IA_NA 7 T1 0s T2 0s [" + link + "]"), "NotOnLink", nil},
		{"request for both", dhcpv6.MessageTypeRequest, opts{cid, sid, na(7, "2001:db8::10", "2001:db8::99")},
			notOnLink("IA_NA 7 T1 0s T2 0s [" + link + "]"), "NotOnLink", nil},
		{"request, wrong in the second IA", dhcpv6.MessageTypeRequest, opts{cid, sid, na(7), na(8, "2001:db8::99")},
			notOnLink("IA_NA 8 T1 0s T2 0s [" + link + "]"), "NotOnLink", nil},
		{"request, wrong temporary address", dhcpv6.MessageTypeRequest, opts{cid, sid, na(7), ta(9, "2001:db8::99")},
			notOnLink("IA_TA 9 [" + link + "]"), "NotOnLink", nil},
		{"request to another server", dhcpv6.MessageTypeRequest, opts{cid, other, na(7)}, nil, "", ErrIgnored},
		{"request to nobody", dhcpv6.MessageTypeRequest, opts{cid, na(7)}, nil, "", ErrIgnored},
		{"renew", dhcpv6.MessageTypeRenew, opts{cid, sid, na(7, "2001:db8::10")}, whole6(given(7)), reply, nil},
		{"renew another address", dhcpv6.MessageTypeRenew, opts{cid, sid, na(7, "2001:db8::99")},
			notOnLink("IA_NA 7 T1 0s T2 0s [" + link + "]"), "NotOnLink", nil},
		{"renew with another server", dhcpv6.MessageTypeRenew, opts{cid, other, na(7)}, nil, "", ErrIgnored},
		{"confirm", dhcpv6.MessageTypeConfirm, opts{cid, na(7, "2001:db8::10")}, whole6(given(7)), reply, nil},
		{"confirm another address", dhcpv6.MessageTypeConfirm, opts{cid, na(7, "2001:db8::99")},
			notOnLink("IA_NA 7 T1 0s T2 0s [" + link + "]"), "NotOnLink", nil},
		{"confirm with server", dhcpv6.MessageTypeConfirm, opts{cid, sid, na(7)}, nil, "", ErrIgnored},
		{"rebind", dhcpv6.MessageTypeRebind, opts{cid, na(7, "2001:db8::10")}, whole6(given(7)), rebind, nil},
		{"rebind with us", dhcpv6.MessageTypeRebind, opts{cid, sid, na(7)}, whole6(given(7)), rebind, nil},
		{"rebind with another server", dhcpv6.MessageTypeRebind, opts{cid, other, na(7)}, nil, "", ErrIgnored},
		{"information", dhcpv6.MessageTypeInformationRequest, opts{cid}, whole6(given(0)), inform, nil},
		{"information from us", dhcpv6.MessageTypeInformationRequest, opts{cid, sid}, whole6(given(0)), inform, nil},
		{"information from another server", dhcpv6.MessageTypeInformationRequest, opts{cid, other}, nil, "", ErrIgnored},
		{"information with IA_NA", dhcpv6.MessageTypeInformationRequest, opts{cid, na(7)}, nil, "", ErrIgnored},
		{"information with IA_TA", dhcpv6.MessageTypeInformationRequest, opts{cid, ta(7)}, nil, "", ErrIgnored},
		{"all kinds of IA", dhcpv6.MessageTypeRequest, opts{cid, ta(9), pd(5), na(7), na(8), sid},
			whole6(given(7), "IA_TA 9 ["+none+"]", "IA_PD 5 T1 0s T2 0s [status 6 No prefixes to delegate.]", "IA_NA 8 T1 0s T2 0s ["+none+"]"), reply, nil},
		{"FQDN, server is to update", dhcpv6.MessageTypeSolicit, opts{cid, na(7), fqdn(1)}, overridden, advertise, nil},
		{"FQDN, server is not to update", dhcpv6.MessageTypeSolicit, opts{cid, na(7), fqdn(4)}, whole6(given(7)), advertise, nil},
		{"release", dhcpv6.MessageTypeRelease, opts{cid, sid, na(7)}, nil, "", ErrIgnored},
		{"decline", dhcpv6.MessageTypeDecline, opts{cid, sid, na(7)}, nil, "", ErrIgnored},
		{"reply", dhcpv6.MessageTypeReply, opts{cid, sid, na(7)}, nil, "", ErrIgnored},
		{"type 0", 0, opts{cid}, nil, "", ErrIgnored},
		{"no client", dhcpv6.MessageTypeSolicit, opts{na(7)}, nil, "", ErrMalformed},
		{"two clients", dhcpv6.MessageTypeSolicit, opts{cid, cid, na(7)}, nil, "", ErrMalformed},
		{"client of 129 bytes", dhcpv6.MessageTypeSolicit, opts{raw(dhcpv6.OptionClientID, make([]byte, 129))}, nil, "", ErrMalformed},
		{"server of 13 bytes", dhcpv6.MessageTypeRequest, opts{cid, raw(dhcpv6.OptionServerID, ourID.ToBytes()[:13]), na(7)}, nil, "", ErrMalformed},
		{"server of 15 bytes", dhcpv6.MessageTypeRequest, opts{cid, raw(dhcpv6.OptionServerID, append(ourID.ToBytes(), 0)), na(7)}, nil, "", ErrMalformed},
		{"short IA_NA", dhcpv6.MessageTypeSolicit, opts{cid, raw(dhcpv6.OptionIANA, make([]byte, 3))}, nil, "", ErrMalformed},
		{"short IA_TA", dhcpv6.MessageTypeSolicit, opts{cid, raw(dhcpv6.OptionIATA, make([]byte, 3))}, nil, "", ErrMalformed},
		{"option in an IA over its end", dhcpv6.MessageTypeSolicit, opts{cid, raw(dhcpv6.OptionIANA, append(make([]byte, 12), 0, 5, 0, 1))}, nil, "", ErrMalformed},
		{"empty FQDN", dhcpv6.MessageTypeSolicit, opts{cid, raw(dhcpv6.OptionFQDN, nil)}, nil, "", ErrMalformed},
		{"name that leads in a circle", dhcpv6.MessageTypeSolicit, opts{cid, na(7), raw(dhcpv6.OptionFQDN, []byte{0, 0xc0, 0})}, whole6(given(7)), advertise, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			core, logs := observer.New(zapcore.InfoLevel)
			c := full()
			c.Log = zap.New(core)
			b, err := answer(t, New(&c), wrap(t, servers, message(tt.kind, tt.in...)))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			var lines, want []string
			for _, e := range logs.All() {
				lines = append(lines, e.Message)
			}
			switch tt.log {
			case "":
			case "NotOnLink":
				want = []string{"DHCPv6: requested address 2001:db8::99 not on link", "DHCPv6: sending REPLY with NotOnLink"}
			default:
				want = []string{tt.log}
			}
			if d := cmp.Diff(want, lines); d != "" {
				t.Errorf("log, -want +got:\n%s", d)
			}
			if err != nil {
				return
			}
			m := read(t, b)
			kind := dhcpv6.MessageTypeReply
			if tt.kind == dhcpv6.MessageTypeSolicit {
				kind = dhcpv6.MessageTypeAdvertise
			}
			if m.MessageType != kind || m.TransactionID != xid {
				t.Errorf("%v", m)
			}
			if d := cmp.Diff(tt.want, show(m.Options.Options)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestNothingMoreToTell(t *testing.T) {
	c := full()
	c.Resolvers, c.Search, c.FQDN = nil, []string{"."}, ""
	b, err := answer(t, New(&c), wrap(t, servers, message(dhcpv6.MessageTypeSolicit, cid, na(7))))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{serverOption, given(7), clientOption}, show(read(t, b).Options.Options)); d != "" {
		t.Error(d)
	}
}

func TestLongNamesStayWithinTheMTU(t *testing.T) {
	c := full()
	name := strings.Repeat("a23456789.", 25) + "end"
	c.FQDN, c.Search = name, []string{name, "b.example", name, name, "c.example"}
	in := opts{raw(dhcpv6.OptionClientID, make([]byte, 128)), na(7), pd(1), ta(2)}
	b, err := answer(t, New(&c), wrap(t, servers, message(dhcpv6.MessageTypeSolicit, in...)))
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > frame.L3Off+1280 {
		t.Errorf("%d bytes", len(b))
	}
	if l := read(t, b).Options.DomainSearchList(); l == nil || !cmp.Equal(l.Labels, []string{name, "b.example", "c.example"}) {
		t.Errorf("search list %v", l)
	}
}

func TestMalformed(t *testing.T) {
	good := message(dhcpv6.MessageTypeSolicit, cid, na(7))
	for _, tt := range []struct {
		name string
		in   []byte
		err  error
	}{
		{"whole", good, nil},
		{"empty", nil, ErrMalformed},
		{"no transaction", good[:3], ErrMalformed},
		{"no options", good[:4], ErrMalformed},
		{"option without length", append(slices.Clone(good), 0, 6, 0), ErrMalformed},
		{"option over the end", append(slices.Clone(good), 0, 6, 0, 3, 0, 23), ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := full()
			if _, err := answer(t, New(&c), wrap(t, servers, tt.in)); !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
		})
	}
	c := full()
	if _, err := answer(t, New(&c), wrap(t, netip.MustParseAddr("fe80::1"), good)); !errors.Is(err, ErrIgnored) {
		t.Errorf("unicast: %v", err)
	}
	in := wrap(t, servers, good)
	binary.BigEndian.PutUint16(in[frame.L3Off+44:], uint16(8+len(good)-1))
	if _, err := answer(t, New(&c), in); !errors.Is(err, ErrMalformed) {
		t.Errorf("UDP length: %v", err)
	}
}

func TestFloodIsLoggedSparingly(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	c := full()
	c.Log = zap.New(core)
	s := New(&c)
	for i := range 500 {
		if _, err := answer(t, s, wrap(t, servers, message(dhcpv6.MessageTypeRequest, cid, sid, na(7, fmt.Sprintf("2001:db8::1:%x", i))))); err != nil {
			t.Fatal(err)
		}
	}
	if n := logs.Len(); n > 40 {
		t.Errorf("%d lines", n)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(message(dhcpv6.MessageTypeSolicit, cid, na(7), ta(8), pd(9)))
	f.Add(message(dhcpv6.MessageTypeRequest, cid, sid, na(7, "2001:db8::99")))
	f.Add(message(dhcpv6.MessageTypeInformationRequest, cid, raw(dhcpv6.OptionFQDN, []byte{1, 0xc0, 0})))
	c := full()
	s := New(&c)
	f.Fuzz(func(t *testing.T, m []byte) {
		if len(m) > 1400 {
			return
		}
		b, err := answer(t, s, wrap(t, servers, m))
		if err != nil {
			return
		}
		if len(b) > ReplyLen {
			t.Fatal(len(b))
		}
		if q, err := parse(m); err != nil {
			t.Fatal(err)
		} else if _, err := dhcpv6.DUIDFromBytes(q.clientID); err != nil {
			return // it comes back as it is, and the reader below would refuse it
		}
		got, err := dhcpv6.MessageFromBytes(b[frame.L3Off+48:])
		if err != nil || !bytes.Equal(got.TransactionID[:], m[1:4]) || got.Options.ServerID() == nil {
			t.Fatal(got, err)
		}
	})
}
