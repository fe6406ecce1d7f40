package tcp

import (
	"bytes"
	"testing"

	"fusilli/tapio/frame"
)

// TestBothAskAtOnce: the guest's SYN crosses ours; it answers ours with SYN,ACK, or ours with ACK.
func TestBothAskAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		seg  seg
	}{
		{"SYN,ACK", seg{flags: frame.SYN | frame.ACK, seq: guestISN, wnd: 64240, opt: synOptions}},
		{"ACK", seg{flags: frame.ACK, seq: guestISN + 1, wnd: 4096}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newAccepted(t, families[0])
			b.serveAccepted()
			b.called()
			b.offer(seg{flags: frame.SYN, seq: guestISN, wnd: 64240, opt: synOptions})
			s := b.receive()
			if s.flags != frame.SYN|frame.ACK || s.ack != guestISN+1 || s.seq+1 != b.rcv {
				t.Fatalf("answer to the guest's SYN is %v", s)
			}
			tt.seg.ack = b.rcv
			b.offer(tt.seg)
			b.snd = guestISN + 1
			b.send(seg{data: data(0, 10)})
			if got := b.read(10); !bytes.Equal(got, data(0, 10)) {
				t.Error("host gets other bytes")
			}
			b.acked()
			b.host.Write(data(0, 10))
			b.until("data", func(s seg) bool { return bytes.Equal(s.data, data(0, 10)) && s.flags&frame.SYN == 0 })
			b.rcv += 10
			b.send(seg{flags: frame.FIN})
			b.eof()
		})
	}
}
