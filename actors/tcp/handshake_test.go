package tcp

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// TestSYNThatCameLate: the guest has had the connection already, which is over for it, and the copy
// of its SYN that has opened another one is of no use to it. The peer of that is not left alone
// with it.
func TestSYNThatCameLate(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.offer(seg{flags: frame.SYN, seq: guestISN, wnd: 64240, opt: synOptions})
		b.serve()
		ours := b.receive()
		// What Linux answers in TIME-WAIT.
		b.offer(seg{flags: frame.ACK, seq: guestISN + 100, ack: ours.seq - 1000, wnd: 64240})
		if s := b.until("reset", func(s seg) bool { return s.flags&frame.RST != 0 }); s.flags != frame.RST || s.seq != ours.seq-1000 {
			t.Errorf("answer is %v", s)
		}
		again := b.until("SYN,ACK once more", func(s seg) bool { return s.flags == frame.SYN|frame.ACK })
		b.offer(seg{flags: frame.RST, seq: again.ack}) // no such connection
		b.over()
		peer, err := b.listen.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		peer.SetDeadline(time.Now().Add(patience))
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("host reads %v, want a reset", err)
		}
	})
}
