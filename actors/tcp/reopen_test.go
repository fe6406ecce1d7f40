package tcp

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// left returns the flags and sequence number of the first segment that the actor, which has ended,
// left.
func (b *bed) left() (flags uint8, seq uint32) {
	b.t.Helper()
	r, ok := b.port.HandedOver()
	if !ok {
		b.t.Fatal("nothing is left to a new flow")
	}
	defer r.Release()
	var v flow.View
	if !r.Next(&v) {
		b.t.Fatal("the run that is left is empty")
	}
	h := frame.TCPHeader(v.Frame[v.L4:v.End])
	return h.Flags(), h.Seq()
}

// TestGuestReboots: a guest that has lost its state and uses the same ports is asked about the
// connection it does not know (RFC 5961, section 4), and its answer frees them.
func TestGuestReboots(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	newISN := b.snd + 1<<20
	b.offer(seg{flags: frame.SYN, seq: newISN, wnd: 64240, opt: synOptions})
	s := b.until("challenge", func(s seg) bool { return s.flags == frame.ACK })
	if s.seq != b.rcv || s.ack != b.snd {
		t.Errorf("challenge is %v", s)
	}
	b.offer(seg{flags: frame.RST, seq: s.ack}, seg{flags: frame.SYN, seq: newISN, wnd: 64240, opt: synOptions})
	b.over()
	if _, err := b.host.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("host reads %v, want a reset", err)
	}
	if fl, seq := b.left(); fl != frame.SYN || seq != newISN {
		t.Errorf("flags %02x, sequence number %d are left", fl, seq)
	}
}

// TestPortsUsedAgainBeforeTheLastAck: the guest's last acknowledgement was lost, and it is done.
func TestPortsUsedAgainBeforeTheLastAck(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	b.host.CloseWrite()
	b.until("FIN", func(s seg) bool { return s.flags&frame.FIN != 0 })
	b.send(seg{data: data(0, 10), flags: frame.FIN}) // does not acknowledge ours
	b.read(10)
	b.acked()
	old := seg{flags: frame.SYN, seq: b.snd - 1, wnd: 64240, opt: synOptions}
	b.offer(old)
	b.until("challenge", func(s seg) bool { return s.flags == frame.ACK })
	newISN := b.snd + 1<<20
	b.offer(seg{flags: frame.SYN, seq: newISN, wnd: 64240, opt: synOptions})
	b.over()
	b.eof()
	if fl, seq := b.left(); fl != frame.SYN || seq != newISN {
		t.Errorf("flags %02x, sequence number %d are left", fl, seq)
	}
}

// TestPortsUsedAgainWithTheLastAck: the guest's last acknowledgement and its next SYN with the same
// ports are read in one go.
func TestPortsUsedAgainWithTheLastAck(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	b.send(seg{data: data(0, 10), flags: frame.FIN})
	b.read(10)
	b.eof()
	b.acked()
	b.host.Close()
	b.until("FIN", func(s seg) bool { return s.flags&frame.FIN != 0 })
	newISN := b.snd + 1<<20
	b.offer(seg{flags: frame.ACK, seq: b.snd, ack: b.rcv + 1, wnd: b.wnd},
		seg{flags: frame.SYN, seq: newISN, wnd: 64240, opt: synOptions})
	b.over()
	if fl, seq := b.left(); fl != frame.SYN || seq != newISN {
		t.Errorf("flags %02x, sequence number %d are left", fl, seq)
	}
}
