package udp

import (
	"bytes"
	"testing"

	"fusilli/actors/frag"
	"fusilli/tapio/frame"
)

// TestLongDatagramsInPieces: a guest whose device takes no frames longer than the MTU gets every
// datagram all the same, also of a row.
func TestLongDatagramsInPieces(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		b, c := openConn(t, fam, p)
		b.env.Fragment = true
		from := expect(t, p, [][]byte{[]byte("hello")})
		all := datagrams([]int{4000, 4000, 4000, 1400, 1400, 60000, 10})
		for _, d := range all {
			if _, err := p.WriteToUDPAddrPort(d, from); err != nil {
				t.Fatal(err)
			}
		}
		c.fromHost()
		table := frag.New(frag.MaxDatagrams)
		for i := 0; i < len(all); {
			f := b.frame()
			if f[1] == frame.GSONone && len(f)-frame.L3Off > b.env.MTU {
				t.Fatalf("frame of %d bytes", len(f))
			}
			var pkt frame.Packet
			if why := frame.Parse(f, &pkt); why != frame.OK {
				t.Fatal(why)
			}
			if pkt.Kind == frame.Fragment {
				whole, o := table.Add(f, &pkt, 0)
				if o == frag.Kept {
					continue
				}
				if o != frag.Whole {
					t.Fatal(o)
				}
				f = bytes.Clone(whole)
				if frame.Parse(f, &pkt); pkt.Kind != frame.UDP {
					t.Fatalf("%+v", pkt)
				}
			}
			data := f[pkt.Payload:pkt.End]
			for len(data) > 0 {
				n := len(data)
				if pkt.GSO > 0 {
					n = min(n, int(pkt.GSO))
				}
				if !bytes.Equal(data[:n], all[i]) {
					t.Fatalf("datagram %d: %d bytes, want %d", i, n, len(all[i]))
				}
				data = data[n:]
				i++
			}
		}
	})
}
