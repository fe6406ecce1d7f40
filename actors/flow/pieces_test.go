package flow

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"fusilli/actors/frag"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// pieceLink keeps what is written.
type pieceLink struct {
	tapio.Link
	frames [][]byte
}

func (l *pieceLink) Write(b []byte) error {
	l.frames = append(l.frames, bytes.Clone(b))
	return nil
}

// TestPiecesFitTheLink: a datagram longer than the MTU arrives whole at a guest whose device takes
// no longer frames.
func TestPiecesFitTheLink(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, mtu := range []int{1280, 1500, 9000} {
			for _, n := range []int{mtu - 100, mtu, mtu + 1, 4096, 65507 - 8, 65507} {
				t.Run(fmt.Sprintf("v6=%v/%d at %d", v6, n, mtu), func(t *testing.T) {
					l := &pieceLink{}
					e := &Env{Link: l, MTU: mtu, Fragment: true}
					src, dst := frame.AddrOf(netip.MustParseAddr("192.0.2.9")), frame.AddrOf(netip.MustParseAddr("10.0.2.15"))
					etherType := uint16(frame.EtherIPv4)
					if v6 {
						src, dst = frame.AddrOf(netip.MustParseAddr("2001:db8::9")), frame.AddrOf(netip.MustParseAddr("2001:db8::15"))
						etherType = frame.EtherIPv6
					}
					b := make([]byte, frame.MaxFrame)
					frame.PutEth(b, frame.MAC{2, 1}, frame.MAC{2, 2}, etherType)
					l4 := frame.L3Off + frame.PutIP(b[frame.L3Off:], &frame.IP{Src: src, Dst: dst, Proto: frame.ProtoUDP, TTL: 61, TOS: 0xb8, DF: true, Len: 8 + n})
					pseudo := frame.PseudoSum(&src, &dst, frame.ProtoUDP, 8+n)
					frame.PutUDP(b[l4:], 53, 4000, n, frame.Fold(pseudo))
					frame.PutVnet(b, frame.Vnet{Flags: frame.NeedsCsum, CsumStart: uint16(l4 - frame.VnetLen), CsumOffset: 6})
					for i := range n {
						b[l4+8+i] = byte(i * 7 >> 3)
					}
					data := bytes.Clone(b[l4+8 : l4+8+n])
					if err := e.Write(b[:l4+8+n]); err != nil {
						t.Fatal(err)
					}
					if l4-frame.L3Off+8+n <= mtu {
						if len(l.frames) != 1 || l.frames[0][0] != frame.NeedsCsum {
							t.Error("a packet that fits is changed")
						}
						return
					}
					table := frag.New(frag.MaxDatagrams)
					var p frame.Packet
					for i, f := range l.frames {
						if len(f)-frame.L3Off > mtu {
							t.Errorf("fragment of %d bytes", len(f)-frame.L3Off)
						}
						if !v6 && frame.Fold(frame.Sum(f[frame.L3Off:frame.L3Off+20], 0)) != 0xffff {
							t.Errorf("header % x", f[frame.L3Off:frame.L3Off+20])
						}
						if why := frame.Parse(f, &p); why != frame.OK || p.Kind != frame.Fragment {
							t.Fatalf("fragment %d: %v, %+v", i, why, p)
						}
						whole, o := table.Add(f, &p, 0)
						if i < len(l.frames)-1 {
							if o != frag.Kept {
								t.Fatalf("fragment %d: %v", i, o)
							}
							continue
						}
						if o != frag.Whole {
							t.Fatalf("last fragment: %v", o)
						}
						if why := frame.Parse(whole, &p); why != frame.OK || p.TTL != 61 || p.TOS != 0xb8 || p.SrcPort != 53 {
							t.Fatalf("whole: %v, %+v", why, p)
						}
						if !bytes.Equal(whole[p.Payload:p.End], data) {
							t.Error("data differ")
						}
						if frame.Fold(frame.Sum(whole[p.L4:p.End], pseudo)) != 0xffff {
							t.Error("checksum is wrong")
						}
					}
				})
			}
		}
	}
}
