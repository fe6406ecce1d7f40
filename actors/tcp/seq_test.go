package tcp

import (
	"testing"

	"fusilli/tapio/frame"
)

// TestSequenceNumbersWrap: before and behind are told apart across 2^31 and 2^32 (RFC 9293, section
// 3.4).
func TestSequenceNumbersWrap(t *testing.T) {
	for _, base := range []uint32{0, 1, 1<<31 - 1, 1 << 31, 1<<31 + 1, 1<<32 - 1} {
		for _, d := range []uint32{1, 1000, 1 << 30, 1<<31 - 1} {
			a, b := base, base+d
			if !seqLT(a, b) || seqLT(b, a) || !seqGT(b, a) || seqGT(a, b) || !seqGE(b, a) || seqGE(a, b) {
				t.Errorf("%#x is not before %#x", a, b)
			}
		}
		if seqLT(base, base) || seqGT(base, base) || !seqGE(base, base) {
			t.Errorf("%#x is not itself", base)
		}
	}
}

// TestMSSOfTheGuest: data for it comes in segments of what its SYN says, within what can be.
func TestMSSOfTheGuest(t *testing.T) {
	for _, tt := range []struct {
		name string
		opt  []byte
		mss  int
	}{
		{"none", nil, defaultMSS},
		{"0", []byte{2, 4, 0, 0}, defaultMSS},
		{"1", []byte{2, 4, 0, 1}, leastMSS},
		{"536", []byte{2, 4, 2, 0x18}, 536},
		{"1460", []byte{2, 4, 5, 0xb4}, 1460},
		{"that of a jumbo frame", []byte{2, 4, 0x23, 0x28}, 9000},
		{"the most", []byte{2, 4, 0xff, 0xff}, 0},
		{"of a wrong length", []byte{2, 3, 5, 0}, defaultMSS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				b := newBed(t, fam)
				b.offer(seg{flags: frame.SYN, seq: guestISN, wnd: 64240, opt: tt.opt})
				b.play()
				b.until("SYN,ACK", func(s seg) bool {
					b.turn()
					return s.flags == frame.SYN|frame.ACK
				})
				want := tt.mss
				if want == 0 {
					want = maxSegment(fam.guest.Is6())
				}
				if b.c.mss != want {
					t.Errorf("segments of %d bytes, want %d", b.c.mss, want)
				}
			})
		})
	}
}
