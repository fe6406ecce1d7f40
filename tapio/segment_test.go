package tapio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"fusilli/tapio/frame"
)

var (
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 1}
	ourMAC   = frame.MAC{2, 0, 0, 0, 0, 2}
	guest4   = netip.MustParseAddr("192.0.2.10")
	remote4  = netip.MustParseAddr("198.51.100.20")
	guest6   = netip.MustParseAddr("2001:db8::10")
	remote6  = netip.MustParseAddr("2001:db8:1::20")
)

// pattern returns n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// row makes a frame from remote to guest with size bytes of payload in each segment, the checksum
// left to the receiver. Without a size it is a single one.
func row(src, dst netip.Addr, udp bool, t *frame.TCPFields, size int, payload []byte) []byte {
	b := make([]byte, frame.MaxFrame)
	ip := frame.IP{Src: frame.AddrOf(src), Dst: frame.AddrOf(dst), Proto: frame.ProtoTCP, TTL: 64, ID: 0xfffe, DF: true}
	hlen, off, v := frame.TCPLen+t.Options, uint16(16), frame.Vnet{Flags: frame.NeedsCsum}
	etherType := uint16(frame.EtherIPv4)
	if size > 0 {
		v.GSOType, v.GSOSize = frame.GSOTCPv4, uint16(size)
	}
	if src.Is6() {
		etherType = frame.EtherIPv6
		if size > 0 {
			v.GSOType = frame.GSOTCPv6
		}
	}
	if udp {
		ip.Proto, hlen, off = frame.ProtoUDP, frame.UDPLen, 6
		if size > 0 {
			v.GSOType = frame.GSOUDP
		}
	} else if t.Flags&frame.CWR != 0 && size > 0 {
		v.GSOType |= frame.GSOECN
	}
	ip.Len = hlen + len(payload)
	frame.PutEth(b, guestMAC, ourMAC, etherType)
	l4 := frame.L3Off + frame.PutIP(b[frame.L3Off:], &ip)
	sum := frame.Fold(frame.PseudoSum(&ip.Src, &ip.Dst, ip.Proto, ip.Len))
	if udp {
		frame.PutUDP(b[l4:], t.SrcPort, t.DstPort, len(payload), sum)
	} else {
		f := *t
		f.Sum = sum
		frame.PutTCP(b[l4:], &f)
		for i := range t.Options {
			b[l4+frame.TCPLen+i] = 1
		}
	}
	n := l4 + hlen + copy(b[l4+hlen:], payload)
	v.HdrLen = uint16(l4 + hlen - frame.VnetLen)
	v.CsumStart, v.CsumOffset = uint16(l4-frame.VnetLen), off
	frame.PutVnet(b, v)
	return b[:n]
}

// decode has gopacket read a finished frame and check it.
func decode(t *testing.T, b []byte) gopacket.Packet {
	t.Helper()
	pkt := gopacket.NewPacket(bytes.Clone(b[frame.VnetLen:]), layers.LayerTypeEthernet, gopacket.Default)
	if e := pkt.ErrorLayer(); e != nil {
		t.Fatalf("decode: %v", e.Error())
	}
	for _, l := range pkt.Layers() {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			l.SetNetworkLayerForChecksum(pkt.NetworkLayer())
		}
	}
	err, wrong := pkt.VerifyChecksums()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range wrong {
		t.Errorf("checksum of layer %d is wrong: %+v", m.LayerIndex, m)
	}
	return pkt
}

// finish completes the checksum of a frame that the segmenter left to the link.
func finish(t *testing.T, b []byte) []byte {
	t.Helper()
	v := frame.GetVnet(b)
	if v.Flags != frame.NeedsCsum || v.GSOType != frame.GSONone {
		t.Fatalf("vnet = %+v", v)
	}
	var s segmenter
	if err := s.reset(b, false); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, frame.MaxFrame)
	return out[:s.next(out)]
}

func TestSegment(t *testing.T) {
	for _, fam := range []struct{ src, dst netip.Addr }{{remote4, guest4}, {remote6, guest6}} {
		for _, tt := range []struct {
			name    string
			udp     bool
			flags   uint8
			options int
			size, n int // payload in a segment, in all
			want    int // frames
		}{
			{"tcp", false, frame.ACK | frame.PSH | frame.FIN, 0, 1000, 9999, 10},
			{"tcp with options", false, frame.ACK | frame.PSH, 12, 1000, 3000, 3},
			{"tcp with congestion window reduced", false, frame.ACK | frame.CWR | frame.PSH, 0, 100, 250, 3},
			{"tcp of one segment", false, frame.ACK | frame.PSH, 0, 1000, 10, 1},
			{"tcp of no payload", false, frame.ACK, 0, 1000, 0, 1},
			{"tcp of 64 KiB", false, frame.ACK | frame.PSH, 0, 1460, 65400, 45},
			{"tcp without segments", false, frame.ACK | frame.PSH, 0, 0, 777, 1},
			{"udp", true, 0, 0, 1000, 9999, 10},
			{"udp of odd sizes", true, 0, 0, 333, 999, 3},
			{"udp of one byte each", true, 0, 0, 1, 4, 4},
			{"udp without segments", true, 0, 0, 0, 777, 1},
		} {
			for _, partial := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%v/partial=%v", tt.name, fam.src, partial), func(t *testing.T) {
					if tt.size == 0 && partial {
						t.Skip("the link takes it as it is")
					}
					payload := pattern(tt.n)
					in := row(fam.src, fam.dst, tt.udp, &frame.TCPFields{SrcPort: 80, DstPort: 4000, Seq: 0xfffffff0, Ack: 9,
						Flags: tt.flags, Window: 77, Options: tt.options}, tt.size, payload)
					in = in[:frame.Pad(in[:cap(in)], len(in))] // as who makes a frame does
					before := bytes.Clone(in)
					var s segmenter
					if err := s.reset(in, partial); err != nil {
						t.Fatal(err)
					}
					out := make([]byte, frame.MaxFrame)
					var got []byte
					count := 0
					for n := s.next(out); n != 0; n = s.next(out) {
						if n < frame.MinFrame {
							t.Errorf("frame of %d bytes", n)
						}
						b := out[:n]
						if partial {
							b = finish(t, b)
						}
						pkt := decode(t, b)
						if v := frame.GetVnet(b); v != (frame.Vnet{}) {
							t.Errorf("vnet = %+v", v)
						}
						if tt.size > 0 && n > frame.L3Off+frame.IPv6Len+frame.TCPLen+tt.options+tt.size && n > frame.MinFrame {
							t.Errorf("%d bytes for a payload of %d", n, tt.size)
						}
						if l, ok := pkt.NetworkLayer().(*layers.IPv4); ok && l.Id != uint16(0xfffe+count) {
							t.Errorf("frame %d has id %d", count, l.Id)
						}
						count++
						if tt.udp {
							l := pkt.Layer(layers.LayerTypeUDP).(*layers.UDP)
							if l.SrcPort != 80 || l.DstPort != 4000 || int(l.Length) != len(l.Payload)+8 {
								t.Errorf("udp %+v", l)
							}
							got = append(got, l.Payload...)
							continue
						}
						l := pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
						if seq := 0xfffffff0 + uint32(len(got)); l.Seq != seq {
							t.Errorf("seq %d, want %d", l.Seq, seq)
						}
						first, last := count == 1, count == tt.want
						if l.FIN != (last && tt.flags&frame.FIN != 0) || l.PSH != (last && tt.flags&frame.PSH != 0) ||
							l.CWR != (first && tt.flags&frame.CWR != 0) || !l.ACK || l.Ack != 9 || l.Window != 77 {
							t.Errorf("frame %d: %+v", count, l)
						}
						got = append(got, l.Payload...)
					}
					if count != tt.want {
						t.Errorf("%d frames, want %d", count, tt.want)
					}
					if !bytes.Equal(got, payload) {
						t.Errorf("payload of %d bytes came out as %d bytes", len(payload), len(got))
					}
					if !bytes.Equal(in, before) {
						t.Error("the frame, only lent, was written to")
					}
				})
			}
		}
	}
}

func TestSegmentRefuses(t *testing.T) {
	good := row(remote4, guest4, false, &frame.TCPFields{SrcPort: 1, DstPort: 2}, 10, pattern(100))
	good6 := row(remote6, guest6, true, &frame.TCPFields{SrcPort: 1, DstPort: 2}, 10, pattern(100))
	change := func(b []byte, off int, c byte) []byte {
		b = bytes.Clone(b)
		b[off] = c
		return b
	}
	vnet := func(f func(v *frame.Vnet)) []byte {
		b := bytes.Clone(good)
		v := frame.GetVnet(b)
		f(&v)
		frame.PutVnet(b, v)
		return b
	}
	for name, b := range map[string][]byte{
		"empty":                    {},
		"short":                    good[:frame.L3Off-1],
		"headers only in part":     good[:frame.L3Off+frame.IPv4Len+18],
		"no checksum to complete":  vnet(func(v *frame.Vnet) { v.Flags = 0 }),
		"no size":                  vnet(func(v *frame.Vnet) { v.GSOSize = 0 }),
		"unknown type":             vnet(func(v *frame.Vnet) { v.GSOType = 3 }),
		"other ip version":         vnet(func(v *frame.Vnet) { v.GSOType = frame.GSOTCPv6 }),
		"other protocol":           vnet(func(v *frame.Vnet) { v.GSOType = frame.GSOUDP }),
		"checksum start too early": vnet(func(v *frame.Vnet) { v.CsumStart = 2 }),
		"checksum start too late":  vnet(func(v *frame.Vnet) { v.CsumStart = 500 }),
		"not where layer 4 begins": vnet(func(v *frame.Vnet) { v.CsumStart = 40 }),
		"tcp header too short":     change(good, frame.L3Off+frame.IPv4Len+12, 0x40),
		"tcp header too long":      change(good[:frame.L3Off+frame.IPv4Len+24], frame.L3Off+frame.IPv4Len+12, 0xf0),
		"extension header":         change(good6, frame.L3Off+6, 0),
	} {
		t.Run(name, func(t *testing.T) {
			var s segmenter
			if err := s.reset(b[:len(b):len(b)], false); !errors.Is(err, ErrRefused) {
				t.Errorf("reset = %v", err)
			}
		})
	}
}

func FuzzSegment(f *testing.F) {
	tcp := &frame.TCPFields{SrcPort: 1, DstPort: 2}
	f.Add(row(remote4, guest4, false, tcp, 10, pattern(100)), false)
	f.Add(row(remote6, guest6, false, tcp, 10, pattern(100)), true)
	f.Add(row(remote4, guest4, true, tcp, 10, pattern(100)), true)
	f.Add(row(remote6, guest6, true, tcp, 0, pattern(100)), false)
	out := make([]byte, frame.MaxFrame)
	f.Fuzz(func(t *testing.T, b []byte, partial bool) {
		var s segmenter
		if s.reset(b[:len(b):len(b)], partial) != nil {
			return
		}
		count := 0
		for n := s.next(out); n != 0; n = s.next(out) {
			count++
			if n < frame.MinFrame || n > max(len(b), frame.MinFrame) {
				t.Errorf("%d bytes out of %d", n, len(b))
			}
			if out[1] != frame.GSONone && binary.LittleEndian.Uint16(b[4:]) != 0 && s.row {
				t.Error("segments in a segment")
			}
		}
		if count == 0 || count > len(b) {
			t.Errorf("%d frames", count)
		}
	})
}

func TestSegmentAllocs(t *testing.T) {
	in := row(remote4, guest4, false, &frame.TCPFields{SrcPort: 1, DstPort: 2}, 1000, pattern(60000))
	sink := func([]byte) error { return nil }
	WriteSoft(in, 0, sink)
	if n := testing.AllocsPerRun(100, func() { WriteSoft(in, 0, sink) }); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSegment(b *testing.B) {
	in := row(remote4, guest4, false, &frame.TCPFields{SrcPort: 1, DstPort: 2}, 1448, pattern(60000))
	sink := func([]byte) error { return nil }
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		WriteSoft(in, 0, sink)
	}
}
