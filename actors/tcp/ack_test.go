package tcp

import (
	"testing"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

type gate struct{}

func (gate) Full() bool    { return false }
func (gate) OnRoom(func()) {}

// TestAckLater: only data of a bulk transfer waits for its acknowledgement, and not for long.
func TestAckLater(t *testing.T) {
	for _, tt := range []struct {
		name   string
		mss    int
		unseen uint32 // bytes not acknowledged
		window uint32
		prompt int
		noGate bool
		want   bool
	}{
		{"a segment", 1460, 1460, 1 << 20, 0, false, true},
		{"several", 1460, 4 * 1460, 1 << 20, 0, false, true},
		{"enough", 1460, ackLeast, 1 << 20, 0, false, false},
		{"a long segment", 65480, 65480, 1 << 20, 0, false, true},
		{"two of them", 65480, 2 * 65480, 1 << 20, 0, false, false},
		{"a request", 1460, 100, 1 << 20, 0, false, false},
		{"the window closes", 1460, 1460, ackLeast - 1, 0, false, false},
		{"the window closes for long segments", 65480, 65480, 2*65480 - 1, 0, false, false},
		{"the connection is young", 1460, 1460, 1 << 20, 1, false, false},
		{"a link with offloads", 1460, 1460, 1 << 20, 0, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := flow.NewPort(flow.Key{})
			defer p.Close()
			c := &conn{env: &flow.Env{Backpressure: gate{}}, port: p, mss: tt.mss, rcvNxt: 1 << 20, prompt: tt.prompt}
			c.ackSent, c.rcvEdge = c.rcvNxt-tt.unseen, c.rcvNxt+tt.window
			if tt.noGate {
				c.env.Backpressure = nil
			}
			if got := c.ackLater(); got != tt.want {
				t.Errorf("later = %v", got)
			}
			if (c.ackBy != 0) != tt.want {
				t.Errorf("to be sent by %v", c.ackBy)
			}
		})
	}
}

// TestPromptAcks: who may wait for acknowledgements gets them at once.
func TestPromptAcks(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(b *bed)
		want bool
	}{
		{"one segment after the other", func(b *bed) {
			b.c.fromHost()
			b.send(seg{data: data(guestMSS, guestMSS)})
			b.turn()
		}, false},
		{"it has waited for a second one", func(b *bed) {
			b.c.fromHost()
			b.c.onTime(flow.Now() + ackDelay)
			b.c.fromHost()
			b.receive()
			b.send(seg{data: data(guestMSS, guestMSS)})
			b.turn()
		}, true},
		{"a gap was filled", func(b *bed) {
			b.offer(seg{flags: frame.ACK, seq: b.snd + guestMSS, ack: b.rcv, wnd: b.wnd, data: data(2*guestMSS, guestMSS)})
			b.turn()
			b.receive()
			b.send(seg{data: data(guestMSS, guestMSS)})
			b.turn()
			b.c.fromHost()
			b.receive()
			b.snd += guestMSS
			b.send(seg{data: data(3*guestMSS, guestMSS)})
			b.turn()
			b.c.ackNow = false
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.env.Backpressure = gate{}
			b.establish(b.play)
			b.c.prompt = 0
			b.send(seg{data: data(0, guestMSS)})
			b.turn()
			tt.do(b)
			b.c.fromHost()
			if prompt := b.c.ackSent == b.c.rcvNxt; prompt != tt.want {
				t.Errorf("acknowledged at once: %v", prompt)
			}
		})
	}
}
