package dhcp

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

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/tapio/frame"
)

var (
	ourMAC   = frame.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 1}
	xid      = dhcpv4.TransactionID{0xde, 0xad, 0xbe, 0xef}
)

func addrs(list ...string) (a []netip.Addr) {
	for _, s := range list {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

// full tells everything there is to tell.
func full() Config {
	return Config{
		MAC: ourMAC, Guest: netip.MustParseAddr("192.0.2.10"), PrefixLen: 24, Gateway: netip.MustParseAddr("192.0.2.1"),
		MTU: 65520, Resolvers: addrs("192.0.2.53", "192.0.2.54", "192.0.2.55", "192.0.2.56"),
		Search: []string{"a.example.org", "example.org.", "b.example.org"}, Hostname: "host1", FQDN: "host1.example.org",
		Log: zap.NewNop(),
	}
}

// plain tells no more than it must.
func plain() Config {
	return Config{
		MAC: ourMAC, Guest: netip.MustParseAddr("192.0.2.10"), PrefixLen: 24, Gateway: netip.MustParseAddr("192.0.2.1"),
		Log: zap.NewNop(),
	}
}

// ask is a request as a client sends it.
func ask(kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithTransactionID(xid), dhcpv4.WithHwAddr(guestMAC[:]),
	}, mods...)...)
	if err != nil {
		panic(err)
	}
	if kind != 0 {
		m.UpdateOption(dhcpv4.OptMessageType(kind))
	}
	return m
}

// wrap makes the frame a client sends the message b in.
func wrap(t testing.TB, b []byte) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4zero, DstIP: net.IPv4bcast}
	udp := &layers.UDP{SrcPort: 68, DstPort: 67}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: guestMAC[:], DstMAC: frame.Broadcast[:], EthernetType: layers.EthernetTypeIPv4},
		ip, udp, gopacket.Payload(b)); err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, frame.VnetLen), buf.Bytes()...)
}

// answer has s answer the frame in.
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

// reply is an answer as gopacket reads it, all headers checked.
type reply struct {
	ip      *layers.IPv4
	payload []byte
	*dhcpv4.DHCPv4
}

func read(t testing.TB, b []byte) reply {
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
	pkt.TransportLayer().(*layers.UDP).SetNetworkLayerForChecksum(pkt.NetworkLayer())
	if err, wrong := pkt.VerifyChecksums(); err != nil || len(wrong) > 0 {
		t.Errorf("checksums: %v, %v", err, wrong)
	}
	ip := pkt.NetworkLayer().(*layers.IPv4)
	if ip.TTL != 255 || ip.Flags != layers.IPv4DontFragment || ip.Id != 0 || ip.SrcIP.String() != "192.0.2.1" || int(ip.Length) != len(b)-frame.L3Off {
		t.Errorf("IPv4 %+v", ip)
	}
	udp := pkt.TransportLayer().(*layers.UDP)
	if udp.SrcPort != 67 || udp.DstPort != 68 || udp.Checksum != 0 || int(udp.Length) != len(b)-frame.L3Off-20 {
		t.Errorf("UDP %+v", udp)
	}
	m, err := dhcpv4.FromBytes(udp.Payload)
	if err != nil {
		t.Fatal(err)
	}
	return reply{ip, udp.Payload, m}
}

// codes lists the options of the message b in order, and checks that zeros follow the end.
func codes(t testing.TB, b []byte) (list []int) {
	t.Helper()
	for o := b[fixedLen:]; ; {
		if o[0] == optEnd {
			if len(bytes.Trim(o[1:], "\x00")) > 0 || len(b) < 300 || len(b) > 300 && len(o) > 1 {
				t.Errorf("%d bytes, behind the end % x", len(b), o[1:])
			}
			return list
		}
		list = append(list, int(o[0]))
		o = o[2+int(o[1]):]
	}
}

func TestMessages(t *testing.T) {
	for _, tt := range []struct {
		name  string
		in    *dhcpv4.DHCPv4
		kind  dhcpv4.MessageType
		lines string // log
		err   error
	}{
		{"discover", ask(dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer, "DHCP: offer to discover", nil},
		{"discover, rapid commit", ask(dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(80), nil)),
			dhcpv4.MessageTypeAck, "DHCP: ack to discover (Rapid Commit)", nil},
		{"request", ask(dhcpv4.MessageTypeRequest), dhcpv4.MessageTypeAck, "DHCP: ack to request", nil},
		{"request, rapid commit", ask(dhcpv4.MessageTypeRequest, dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(80), nil)),
			dhcpv4.MessageTypeAck, "DHCP: ack to request", nil},
		{"request for another address", ask(dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(203, 0, 113, 1)))),
			dhcpv4.MessageTypeAck, "DHCP: ack to request", nil},
		{"request to another server", ask(dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(203, 0, 113, 1)))),
			dhcpv4.MessageTypeAck, "DHCP: ack to request", nil},
		{"BOOTP", ask(0), dhcpv4.MessageTypeAck, "BOOTP: ack to request", nil},
		{"decline", ask(dhcpv4.MessageTypeDecline), 0, "", ErrIgnored},
		{"release", ask(dhcpv4.MessageTypeRelease), 0, "", ErrIgnored},
		{"inform", ask(dhcpv4.MessageTypeInform), 0, "", ErrIgnored},
		{"offer", ask(dhcpv4.MessageTypeOffer), 0, "", ErrIgnored},
		{"an unknown type", ask(99), 0, "", ErrIgnored},
	} {
		t.Run(tt.name, func(t *testing.T) {
			core, logs := observer.New(zapcore.InfoLevel)
			c := full()
			c.Log = zap.New(core)
			b, err := answer(t, New(&c), wrap(t, tt.in.ToBytes()))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			var lines []string
			for _, e := range logs.All() {
				lines = append(lines, e.Message)
			}
			var want []string
			if tt.lines != "" {
				want = []string{tt.lines, "    from 02:00:00:00:00:01"}
			}
			if d := cmp.Diff(want, lines); d != "" {
				t.Errorf("log, -want +got:\n%s", d)
			}
			if err != nil {
				return
			}
			r := read(t, b)
			if r.MessageType() != tt.kind {
				t.Errorf("%v, want %v", r.MessageType(), tt.kind)
			}
			rapid := strings.Contains(tt.lines, "Rapid")
			if r.Options.Has(dhcpv4.GenericOptionCode(80)) != rapid || rapid && len(r.Options.Get(dhcpv4.GenericOptionCode(80))) != 0 {
				t.Errorf("option 80: % x", r.Options.Get(dhcpv4.GenericOptionCode(80)))
			}
			if l := codes(t, r.payload); !slices.IsSorted(l[1:]) || l[0] != 53 {
				t.Errorf("options %v", l)
			}
		})
	}
}

func TestFixedPart(t *testing.T) {
	in := ask(dhcpv4.MessageTypeRequest)
	in.ClientIPAddr = net.IPv4(192, 0, 2, 99)
	in.GatewayIPAddr = net.IPv4(192, 0, 2, 98)
	in.ServerIPAddr = net.IPv4(192, 0, 2, 97)
	in.YourIPAddr = net.IPv4(192, 0, 2, 96)
	in.ServerHostName, in.BootFileName = "server", "file"
	in.HopCount, in.NumSeconds, in.Flags = 3, 777, 0x1234
	c := full()
	b := in.ToBytes()
	copy(b[offChaddr+6:], "0123456789") // a hardware address may have 16 bytes
	copy(b[offMagic:], "mgic")          // the magic number comes back, whatever it is
	out, err := answer(t, New(&c), wrap(t, b))
	if err != nil {
		t.Fatal(err)
	}
	got := out[frame.L3Off+28:]
	want := slices.Concat([]byte{2, 1, 6, 0}, xid[:], []byte{0, 0, 0x12, 0x34}, in.ClientIPAddr.To4(),
		net.IPv4(192, 0, 2, 10).To4(), make([]byte, 4), in.GatewayIPAddr.To4(), guestMAC[:], []byte("0123456789"),
		make([]byte, 192), []byte("mgic"))
	if d := cmp.Diff(fmt.Sprintf("% x", []byte(want)), fmt.Sprintf("% x", got[:fixedLen])); d != "" {
		t.Error(d)
	}
}

func TestDestination(t *testing.T) {
	for _, tt := range []struct {
		flags uint16
		want  string
	}{{0, "192.0.2.10"}, {0x8000, "255.255.255.255"}, {0x7fff, "192.0.2.10"}} {
		in := ask(dhcpv4.MessageTypeDiscover)
		in.Flags = tt.flags
		c := full()
		b, err := answer(t, New(&c), wrap(t, in.ToBytes()))
		if err != nil {
			t.Fatal(err)
		}
		if r := read(t, b); r.ip.DstIP.String() != tt.want || r.Flags != tt.flags {
			t.Errorf("flags %#x: to %v, flags %#x", tt.flags, r.ip.DstIP, r.Flags)
		}
	}
}

func TestOptions(t *testing.T) {
	offLink := full()
	offLink.PrefixLen = 32
	halves := plain()
	halves.PrefixLen = 25
	halves.Gateway = netip.MustParseAddr("192.0.2.129")
	for _, tt := range []struct {
		name string
		c    Config
		want map[int]string
	}{
		{"all", full(), map[int]string{
			1: "\xff\xff\xff\x00", 3: "\xc0\x00\x02\x01", 6: "\xc0\x00\x02\x35\xc0\x00\x02\x36\xc0\x00\x02\x37", 12: "host1",
			26: "\xff\xf0", 51: "\xff\xff\xff\xff", 53: "\x05", 54: "\xc0\x00\x02\x01",
			81:  "\x04\xff\xff\x05host1\x07example\x03org\x00",
			119: "\x01a\x07example\x03org\x00\xc0\x02\x01b\xc0\x02",
		}},
		{"none that can be left out", plain(), map[int]string{
			1: "\xff\xff\xff\x00", 3: "\xc0\x00\x02\x01", 51: "\xff\xff\xff\xff", 53: "\x05", 54: "\xc0\x00\x02\x01",
		}},
		{"gateway off the link", offLink, map[int]string{
			1: "\xff\xff\xff\xff", 3: "\xc0\x00\x02\x01", 6: "\xc0\x00\x02\x35\xc0\x00\x02\x36\xc0\x00\x02\x37", 12: "host1",
			26: "\xff\xf0", 51: "\xff\xff\xff\xff", 53: "\x05", 54: "\xc0\x00\x02\x01",
			81:  "\x04\xff\xff\x05host1\x07example\x03org\x00",
			119: "\x01a\x07example\x03org\x00\xc0\x02\x01b\xc0\x02",
			121: "\x20\xc0\x00\x02\x01\x00\x00\x00\x00\x00\xc0\x00\x02\x01",
		}},
		{"gateway in the other half", halves, map[int]string{
			1: "\xff\xff\xff\x80", 3: "\xc0\x00\x02\x81", 51: "\xff\xff\xff\xff", 53: "\x05", 54: "\xc0\x00\x02\x81",
			121: "\x20\xc0\x00\x02\x81\x00\x00\x00\x00\x00\xc0\x00\x02\x81",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := answer(t, New(&tt.c), wrap(t, ask(dhcpv4.MessageTypeRequest).ToBytes()))
			if err != nil {
				t.Fatal(err)
			}
			got := map[int]string{}
			codes(t, b[frame.L3Off+28:])
			m, err := dhcpv4.FromBytes(b[frame.L3Off+28:])
			if err != nil {
				t.Fatal(err)
			}
			for code, data := range m.Options {
				got[int(code)] = string(data)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestMasks(t *testing.T) {
	for bits := range 33 {
		c := plain()
		c.PrefixLen = bits
		b, err := answer(t, New(&c), wrap(t, ask(dhcpv4.MessageTypeRequest).ToBytes()))
		if err != nil {
			t.Fatal(err)
		}
		r := read(t, b)
		if ones, size := r.SubnetMask().Size(); ones != bits || size != 32 {
			t.Errorf("/%d: %v", bits, r.SubnetMask())
		}
	}
}

// What is asked for comes first and in order, nothing comes twice, and nothing that is not there.
func TestOrderOfOptions(t *testing.T) {
	for _, tt := range []struct {
		name  string
		asked []uint8
		rapid bool
		want  []int
	}{
		{"nothing asked for", nil, false, []int{53, 1, 3, 6, 12, 26, 51, 54, 81, 119}},
		{"some", []uint8{119, 6, 1}, false, []int{53, 119, 6, 1, 3, 12, 26, 51, 54, 81}},
		{"the type too", []uint8{54, 53, 1}, false, []int{54, 53, 1, 3, 6, 12, 26, 51, 81, 119}},
		{"twice, unknown ones, padding and end", []uint8{6, 6, 200, 0, 255, 55, 6, 121}, false, []int{53, 6, 1, 3, 12, 26, 51, 54, 81, 119}},
		{"rapid commit in its place", nil, true, []int{53, 1, 3, 6, 12, 26, 51, 54, 80, 81, 119}},
		{"rapid commit asked for", []uint8{80, 3}, true, []int{53, 80, 3, 1, 6, 12, 26, 51, 54, 81, 119}},
		{"rapid commit asked for but not taken", []uint8{80, 3}, false, []int{53, 3, 1, 6, 12, 26, 51, 54, 81, 119}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := ask(dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, tt.asked))
			if tt.rapid {
				in.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(80), nil))
			}
			c := full()
			b, err := answer(t, New(&c), wrap(t, in.ToBytes()))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, codes(t, b[frame.L3Off+28:])); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// However long the names are, a message stays within bounds and has what a guest needs.
func TestOptionsThatDoNotFit(t *testing.T) {
	name := strings.Repeat("a23456789.", 25) + "end" // 253 bytes
	search := []string{"one.example", strings.Repeat("x", 60) + ".example", strings.Repeat("y", 60) + ".example", strings.Repeat("z", 60) + ".example"}
	c := full()
	c.PrefixLen = 32
	c.Hostname, c.FQDN, c.Search = name, name, append([]string{"short.example"}, search...)
	for _, mod := range []func(){func() {}, func() { c.Hostname = "" }, func() { c.FQDN = "" }, func() { c.Search = []string{name, name + "."} }} {
		mod()
		b, err := answer(t, New(&c), wrap(t, ask(dhcpv4.MessageTypeRequest).ToBytes()))
		if err != nil {
			t.Fatal(err)
		}
		r := read(t, b)
		if len(r.payload) > fixedLen+maxOptions+1 {
			t.Errorf("%d bytes", len(r.payload))
		}
		l := codes(t, r.payload)
		for _, code := range []int{1, 3, 6, 26, 51, 53, 54, 121} {
			if !slices.Contains(l, code) {
				t.Errorf("options %v, without %d", l, code)
			}
		}
	}
}

func TestMalformed(t *testing.T) {
	good := ask(dhcpv4.MessageTypeRequest).ToBytes()
	opts := func(b ...byte) []byte { return append(slices.Clone(good[:fixedLen]), b...) }
	set := func(off int, v ...byte) []byte {
		b := slices.Clone(good)
		copy(b[off:], v)
		return b
	}
	for _, tt := range []struct {
		name string
		in   []byte
		err  error
	}{
		{"whole", good, nil},
		{"no options", opts(), nil},
		{"nothing but padding", opts(0, 0, 0), nil},
		{"no end", opts(53, 1, 3), nil},
		{"padding between", opts(0, 53, 1, 3, 0, 0, 255), nil},
		{"anything behind the end", opts(53, 1, 3, 255, 53, 200, 7), nil},
		{"overload", opts(53, 1, 3, 52, 1, 3, 255), nil},
		{"empty", nil, ErrMalformed},
		{"cut off in the fixed part", good[:fixedLen-1], ErrMalformed},
		{"a reply", set(0, 2), ErrMalformed},
		{"no operation", set(0, 0), ErrMalformed},
		{"option without length", opts(53, 1, 3, 12), ErrMalformed},
		{"option over the end", opts(53, 1, 3, 12, 2, 'a'), ErrMalformed},
		{"type without data", opts(53, 0, 255), ErrMalformed},
		{"type of two bytes", opts(53, 2, 3, 3, 255), ErrMalformed},
		{"type 0", opts(53, 1, 0, 255), ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := full()
			if _, err := answer(t, New(&c), wrap(t, tt.in)); !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
		})
	}
	c := full()
	in := wrap(t, good)
	binary.BigEndian.PutUint16(in[frame.L3Off+24:], uint16(8+len(good)-1))
	if _, err := answer(t, New(&c), in); !errors.Is(err, ErrMalformed) {
		t.Errorf("UDP length: %v", err)
	}
	in = wrap(t, good)
	in[frame.VnetLen+6] |= 1
	if _, err := answer(t, New(&c), in); !errors.Is(err, ErrMalformed) {
		t.Errorf("from a group: %v", err)
	}
}

func TestFloodIsLoggedSparingly(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	c := full()
	c.Log = zap.New(core)
	s := New(&c)
	for i := range 1000 {
		in := ask(dhcpv4.MessageTypeDiscover)
		in.ClientHWAddr = net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}
		if _, err := answer(t, s, wrap(t, in.ToBytes())); err != nil {
			t.Fatal(err)
		}
	}
	if n := logs.Len(); n > 40 { // a thousand take far less than three seconds
		t.Errorf("%d lines", n)
	}
}

func TestAnswersWithoutAllocation(t *testing.T) {
	c := full()
	s := New(&c)
	in := wrap(t, ask(dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, []byte{119, 6, 1, 121})).ToBytes())
	var p frame.Packet
	if why := frame.Parse(in, &p); why != frame.OK {
		t.Fatal(why)
	}
	out := make([]byte, ReplyLen)
	if n := testing.AllocsPerRun(100, func() { s.Answer(&p, in, out) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAnswer(f *testing.F) {
	for _, k := range []dhcpv4.MessageType{0, 1, 3, 8} {
		f.Add(ask(k, dhcpv4.WithGeneric(dhcpv4.OptionParameterRequestList, []byte{119, 6, 53})).ToBytes())
	}
	c := full()
	c.PrefixLen = 32
	s := New(&c)
	f.Fuzz(func(t *testing.T, m []byte) {
		if len(m) > 1400 {
			return
		}
		b, err := answer(t, s, wrap(t, m))
		if err != nil {
			return
		}
		got := b[frame.L3Off+28:]
		if !bytes.Equal(got[4:8], m[4:8]) || len(got) > fixedLen+maxOptions+1 {
			t.Fatalf("% x", got)
		}
		l := codes(t, got)
		for _, code := range []int{1, 3, 6, 12, 26, 51, 53, 54, 81, 119, 121} {
			if !slices.Contains(l, code) {
				t.Fatalf("options %v, without %d", l, code)
			}
		}
		copy(got[offMagic:], []byte{99, 130, 83, 99})
		if _, err := dhcpv4.FromBytes(got); err != nil {
			t.Fatal(err)
		}
	})
}
