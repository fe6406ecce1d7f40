package tcp

import (
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// TestGuestClosesWhatThePeerHasReset: the guest's FIN comes when the peer's reset is in the socket
// already, which cannot be shut down any more (shutdown(2): ENOTCONN). The guest is reset: it does
// not wait for an acknowledgement that never comes.
func TestGuestClosesWhatThePeerHasReset(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.establish(b.play)
		b.host.SetLinger(0)
		b.host.Close()
		for sock.Poll(b.c.fd, 0) == 0 { // over loopback it is there at once, or in a moment
		}
		if err := unix.Shutdown(b.c.fd, unix.SHUT_WR); err != unix.ENOTCONN {
			t.Fatalf("shutdown of a socket that was reset: %v", err)
		}
		b.send(seg{flags: frame.FIN})
		b.turn()
		if !b.c.failed || b.c.finDone {
			t.Fatalf("failed %v, end passed on %v", b.c.failed, b.c.finDone)
		}
		b.c.step()
		s := b.until("reset", func(s seg) bool { return s.flags&frame.RST != 0 })
		if s.seq != b.rcv || !b.c.over || !b.c.reset {
			t.Errorf("%v, want sequence number %d; over %v", s, b.rcv, b.c.over)
		}
	})
}
