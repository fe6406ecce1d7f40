package frame

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// naive is RFC 1071 word by word.
func naive(b []byte, s uint32) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
		s = s>>16 + s&0xffff
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	s = s>>16 + s&0xffff
	return s>>16 + s&0xffff
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint32(0))
	f.Add([]byte{1}, uint32(0xffffffff))
	f.Add(bytes.Repeat([]byte{0xff}, 200), uint32(0xffff))
	f.Fuzz(func(t *testing.T, b []byte, initial uint32) {
		got, want := Sum(b, initial), naive(b, uint32(Fold(initial)))
		if got != want && got+want != 0xffff { // 0 and 0xffff are the same number
			t.Errorf("Sum = %#x, want %#x", got, want)
		}
	})
}

func TestSumLengths(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 300)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	for from := range 9 {
		for n := from; n < len(b); n++ {
			if got, want := Sum(b[from:n], 77), naive(b[from:n], 77); got != want {
				t.Fatalf("Sum of %d bytes = %#x, want %#x", n-from, got, want)
			}
		}
	}
	ones := bytes.Repeat([]byte{0xff}, 65535)
	if got, want := Sum(ones, 0xffff), naive(ones, 0xffff); got != want {
		t.Errorf("Sum of ones = %#x, want %#x", got, want)
	}
}

// beyond is the length of a buffer that no cache holds.
const beyond = 64 << 20

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 1460, 65480, beyond} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := make([]byte, n)
			for i := range buf {
				buf[i] = byte(i) // or all of it is the same page of zeros
			}
			b.SetBytes(int64(n))
			for b.Loop() {
				Sum(buf, 0)
			}
		})
	}
}

// BenchmarkCopy is what memory allows, to hold BenchmarkSum against.
func BenchmarkCopy(b *testing.B) {
	for _, n := range []int{65480, beyond} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			src, dst := make([]byte, n), make([]byte, n)
			for i := range src {
				src[i], dst[i] = byte(i), byte(i)
			}
			b.SetBytes(int64(n))
			for b.Loop() {
				copy(dst, src)
			}
		})
	}
}

func TestVnetRoundTrip(t *testing.T) {
	v := Vnet{Flags: 1, GSOType: 2, HdrLen: 0x0304, GSOSize: 0x0506, CsumStart: 0x0708, CsumOffset: 0x090a}
	b := make([]byte, VnetLen)
	PutVnet(b, v)
	if d := cmp.Diff([]byte{1, 2, 4, 3, 6, 5, 8, 7, 0xa, 9}, b); d != "" {
		t.Errorf("PutVnet, -want +got:\n%s", d)
	}
	if got := GetVnet(b); got != v {
		t.Errorf("GetVnet = %+v, want %+v", got, v)
	}
}

// decode has gopacket read a frame and reports checksums and lengths it finds wrong.
func decode(t *testing.T, b []byte) gopacket.Packet {
	t.Helper()
	pkt := gopacket.NewPacket(b[VnetLen:], layers.LayerTypeEthernet, gopacket.Default)
	if e := pkt.ErrorLayer(); e != nil {
		t.Fatalf("decode: %v", e.Error())
	}
	verify(t, pkt)
	return pkt
}

// verify reports the checksums in pkt that are wrong.
func verify(t *testing.T, pkt gopacket.Packet) {
	t.Helper()
	for _, l := range pkt.Layers() {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			l.SetNetworkLayerForChecksum(pkt.NetworkLayer())
		}
	}
	err, mismatches := pkt.VerifyChecksums()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mismatches {
		t.Errorf("layer %d: checksum %#x is wrong: %+v", m.LayerIndex, m.Actual, m)
	}
}

func TestBuildTCP(t *testing.T) {
	for _, tt := range []struct{ src, dst netip.Addr }{{remote4, guest4}, {remote6, guest6}} {
		t.Run(tt.src.String(), func(t *testing.T) {
			b := make([]byte, 200)
			for i := range b {
				b[i] = 0xaa
			}
			payload := "data"
			ip := IP{Src: AddrOf(tt.src), Dst: AddrOf(tt.dst), Proto: ProtoTCP, TTL: 255, TOS: 3, ID: 7, DF: true,
				FlowLabel: 0x54321, Len: TCPLen + SYNOptionsLen}
			etherType := uint16(EtherIPv4)
			if tt.src.Is6() {
				etherType = EtherIPv6
			}
			PutVnet(b, Vnet{})
			PutEth(b, guestMAC, ourMAC, etherType)
			hlen := PutIP(b[L3Off:], &ip)
			n := ip.Len + len(payload)
			if tt.src.Is6() {
				SetIPv6Len(b[L3Off:], n)
			} else {
				SetIPv4Len(b[L3Off:], n)
			}
			h := b[L3Off+hlen:]
			PutTCP(h, &TCPFields{SrcPort: 80, DstPort: 4000, Seq: 5, Ack: 6, Flags: SYN | ACK, Window: 7, Options: SYNOptionsLen})
			PutSYNOptions(h[TCPLen:], 1460, 8)
			copy(h[ip.Len:], payload)
			sum := PseudoSum(&ip.Src, &ip.Dst, ProtoTCP, 0) + uint32(n)
			binary.BigEndian.PutUint16(h[16:], Checksum(h[:n], sum))
			b = b[:L3Off+hlen+n]

			pkt := decode(t, b)
			l := pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
			if l.Seq != 5 || l.Ack != 6 || !l.SYN || !l.ACK || l.Window != 7 || string(l.Payload) != payload || len(l.Options) != 3 {
				t.Errorf("tcp = %+v", l)
			}
			var p Packet
			if r := Parse(b, &p); r != OK {
				t.Fatal(r)
			}
			want := Packet{Kind: TCP, V6: tt.src.Is6(), Proto: 6, TTL: 255, TOS: 3, Src: ip.Src, Dst: ip.Dst, SrcPort: 80, DstPort: 4000,
				L3: L3Off, L4: L3Off + hlen, Payload: L3Off + hlen + 28, End: len(b)}
			if want.V6 {
				want.FlowLabel = 0x54321
			}
			if d := cmp.Diff(want, p); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			v := TCPHeader(b[p.L4:])
			if v.Seq() != 5 || v.Ack() != 6 || v.Flags() != SYN|ACK || v.Window() != 7 {
				t.Errorf("view: %d %d %#x %d", v.Seq(), v.Ack(), v.Flags(), v.Window())
			}
			o := ParseSYNOptions(b[p.L4+TCPLen : p.Payload])
			if o != (SYNOptions{MSS: 1460, Scale: 8, HaveScale: true}) {
				t.Errorf("options = %+v", o)
			}
		})
	}
}

func TestSetIPv4Len(t *testing.T) {
	ip := IP{Src: AddrOf(remote4), Dst: AddrOf(guest4), Proto: 17, TTL: 1}
	b := make([]byte, IPv4Len)
	PutIPv4(b, &ip)
	for n := 0; n <= 65535-IPv4Len; n += 13 {
		SetIPv4Len(b, n)
		if got := binary.BigEndian.Uint16(b[2:]); int(got) != n+IPv4Len {
			t.Fatalf("total length %d, want %d", got, n+IPv4Len)
		}
		if Checksum(b, 0) != 0 {
			t.Fatalf("length %d: header checksum wrong", n)
		}
	}
}

func TestParseSYNOptions(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		want SYNOptions
	}{
		{"none", nil, SYNOptions{}},
		{"linux", []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7}, SYNOptions{1460, 7, true}},
		{"scale 0", []byte{3, 3, 0}, SYNOptions{0, 0, true}},
		{"scale beyond 14", []byte{3, 3, 200}, SYNOptions{0, 14, true}},
		{"end of list", []byte{0, 2, 4, 5, 0xb4}, SYNOptions{}},
		{"first one counts", []byte{2, 4, 0, 1, 2, 4, 0, 2, 3, 3, 1, 3, 3, 2}, SYNOptions{1, 1, true}},
		{"length 0", []byte{2, 4, 0, 9, 8, 0, 3, 3, 1}, SYNOptions{MSS: 9}},
		{"length 1", []byte{8, 1, 3, 3, 1}, SYNOptions{}},
		{"length missing", []byte{2}, SYNOptions{}},
		{"beyond the end", []byte{2, 4, 5}, SYNOptions{}},
		{"mss of wrong length", []byte{2, 3, 5, 3, 3, 1}, SYNOptions{}},
		{"scale of wrong length", []byte{3, 2, 2, 4, 5, 6}, SYNOptions{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ParseSYNOptions(tt.in[:len(tt.in):len(tt.in)]); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzParseSYNOptions(f *testing.F) {
	f.Add([]byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7})
	f.Add([]byte{3, 3, 200, 0, 1, 1, 1, 5, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		o := ParseSYNOptions(b)
		if o.Scale > 14 || o.Scale != 0 && !o.HaveScale {
			t.Errorf("%+v", o)
		}
	})
}

func TestICMPError(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 5000)
	for _, tt := range []struct {
		name          string
		guest, remote netip.Addr
		typ, code     uint8
		info          uint32
		payload       []byte
		quoted        int
	}{
		{"port unreachable", guest4, remote4, 3, 3, 0, []byte("hello, world"), 8},
		{"no payload", guest4, remote4, 3, 3, 0, nil, 0},
		{"fragmentation needed", guest4, remote4, 3, 4, 1400, long, 8},
		{"port unreachable 6", guest6, remote6, 1, 4, 0, []byte("hello"), 5},
		{"packet too big", guest6, remote6, 2, 0, 1280, long, 1184},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &ICMPError{SrcMAC: ourMAC, DstMAC: guestMAC, Src: AddrOf(tt.remote), Type: tt.typ, Code: tt.code, Info: tt.info,
				Guest: AddrOf(tt.guest), Remote: AddrOf(tt.remote), GuestPort: 40000, RemotePort: 53, FlowLabel: 5, Payload: tt.payload}
			b := bytes.Repeat([]byte{0xaa}, ICMPErrorLen)
			b = b[:PutICMPError(b, e)]
			if len(b) < MinFrame {
				t.Errorf("%d bytes", len(b))
			}
			pkt := decode(t, b)
			hlen := IPv4Len
			if tt.guest.Is6() {
				hlen = IPv6Len
			}
			icmp := b[L3Off+hlen:]
			if icmp[0] != tt.typ || icmp[1] != tt.code || binary.BigEndian.Uint32(icmp[4:]) != tt.info {
				t.Errorf("icmp header % x", icmp[:8])
			}
			first := layers.LayerTypeIPv4
			if tt.guest.Is6() {
				first = layers.LayerTypeIPv6
				if l := pkt.Layer(first).(*layers.IPv6); l.FlowLabel != 5 || l.HopLimit != 255 {
					t.Errorf("ipv6 = %+v", l)
				}
			}
			quoted := gopacket.NewPacket(icmp[ICMPLen:ICMPLen+hlen+UDPLen+tt.quoted], first, gopacket.Default)
			u, ok := quoted.Layer(layers.LayerTypeUDP).(*layers.UDP)
			if !ok {
				t.Fatalf("no udp quoted: %v", quoted)
			}
			if u.SrcPort != 40000 || u.DstPort != 53 || !bytes.Equal(u.Payload, tt.payload[:tt.quoted]) {
				t.Errorf("quoted %+v", u)
			}
			if src, dst := quoted.NetworkLayer().NetworkFlow().Endpoints(); src.String() != tt.guest.String() || dst.String() != tt.remote.String() {
				t.Errorf("quoted from %v to %v", src, dst)
			}
			verify(t, quoted)
			if n := testing.AllocsPerRun(10, func() { PutICMPError(b[:cap(b)], e) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// TestICMPErrorAboutEcho: the guest's ping finds its own request in the error.
func TestICMPErrorAboutEcho(t *testing.T) {
	request := append([]byte{8, 0, 1, 2, 0x12, 0x34, 0, 7}, bytes.Repeat([]byte("x"), 3000)...)
	for _, tt := range []struct {
		name          string
		guest, remote netip.Addr
		quoted        int
	}{
		{"IPv4", guest4, remote4, 16},
		{"IPv6", guest6, remote6, 1192},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &ICMPError{SrcMAC: ourMAC, DstMAC: guestMAC, Src: AddrOf(tt.remote), Type: 3, Echo: true,
				Guest: AddrOf(tt.guest), Remote: AddrOf(tt.remote), Payload: request}
			b := make([]byte, ICMPErrorLen)
			b = b[:PutICMPError(b, e)]
			decode(t, b)
			hlen, first, proto := IPv4Len, gopacket.Decoder(layers.LayerTypeIPv4), layers.IPProtocolICMPv4
			if tt.guest.Is6() {
				hlen, first, proto = IPv6Len, layers.LayerTypeIPv6, layers.IPProtocolICMPv6
			}
			q := b[L3Off+hlen+ICMPLen:]
			if !bytes.Equal(q[hlen:], request[:tt.quoted]) {
				t.Errorf("quoted % x", q[hlen:])
			}
			switch ip := gopacket.NewPacket(q, first, gopacket.Default).NetworkLayer().(type) {
			case *layers.IPv4:
				if ip.Protocol != proto || int(ip.Length) != IPv4Len+tt.quoted {
					t.Errorf("%+v", ip)
				}
			case *layers.IPv6:
				if ip.NextHeader != proto || int(ip.Length) != tt.quoted {
					t.Errorf("%+v", ip)
				}
			}
		})
	}
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"192.0.2.1", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1", "2001:db8::1"} {
		a := netip.MustParseAddr(s)
		b := AddrOf(a)
		if NetIP(b) != a {
			t.Errorf("%v comes back as %v", a, NetIP(b))
		}
		if Is4(&b) != a.Is4() || IsLoopback(&b) != a.IsLoopback() || IsUnspecified(&b) != a.IsUnspecified() ||
			IsMulticast(&b) != (a.IsMulticast() || s == "255.255.255.255") || IsLinkLocal(&b) != a.IsLinkLocalUnicast() {
			t.Errorf("%v is misjudged", a)
		}
	}
	if AddrOf(netip.Addr{}) != (Addr{}) {
		t.Error("zero address")
	}
	if Addr4([4]byte{192, 0, 2, 1}) != AddrOf(netip.MustParseAddr("192.0.2.1")) {
		t.Error("Addr4")
	}
	if s := (MAC{0x9a, 0x55, 0, 1, 0xab, 0xff}).String(); s != "9a:55:00:01:ab:ff" {
		t.Error(s)
	}
}
