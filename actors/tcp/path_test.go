package tcp

import (
	"testing"
)

// TestRouterBehindTheGuest says that segments are too big: what is on the way is sent again in
// shorter ones, and so is what follows. What it says about anything else is not believed.
func TestRouterBehindTheGuest(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.establish(b.play)
		all := data(0, 4*guestMSS)
		b.host.Write(all)
		b.wantData(all[:4*guestMSS])
		header := 40
		if fam.guest.Is6() {
			header = 60
		}
		refused := func(seq uint32, mtu int) {
			b.port.TooBig(seq, mtu)
			if seq, mtu, ok := b.port.Refused(); ok {
				b.c.tooBig(seq, mtu)
			}
		}
		refused(b.rcv-1, 1300)
		refused(b.rcv+uint32(len(all)), 1300)
		refused(b.rcv+1<<30, 1300)
		refused(b.rcv, 1500)
		b.c.fromHost()
		b.quiet()
		refused(b.rcv+guestMSS, 1300)
		if b.c.mss != 1300-header {
			t.Fatalf("segments of %d bytes", b.c.mss)
		}
		b.c.fromHost()
		n, _ := b.link.TryRead(b.buf)
		if n == 0 {
			t.Fatal("nothing is sent again")
		}
		if gso := int(b.buf[4]) | int(b.buf[5])<<8; gso != 1300-header {
			t.Errorf("row of segments of %d bytes", gso)
		}
		refused(b.rcv, 68)
		least := 68 - header
		if least < leastMSS {
			least = leastMSS
		}
		if fam.guest.Is6() {
			least = leastMTU6 - header
		}
		if b.c.mss != least {
			t.Errorf("segments of %d bytes, want %d", b.c.mss, least)
		}
	})
}
