package tcp

import (
	"testing"

	"fusilli/actors/flow"
)

type gate struct{}

func (gate) Full() bool    { return false }
func (gate) OnRoom(func()) {}

// TestAckLater: only data of a bulk transfer waits for its acknowledgement, and not for long.
func TestAckLater(t *testing.T) {
	for _, tt := range []struct {
		name   string
		unseen uint32 // bytes not acknowledged
		window uint32
		prompt int
		noGate bool
		want   bool
	}{
		{"a segment", 1460, 1 << 20, 0, false, true},
		{"several", 4 * 1460, 1 << 20, 0, false, true},
		{"enough", ackEvery, 1 << 20, 0, false, false},
		{"a request", 100, 1 << 20, 0, false, false},
		{"the window closes", 1460, ackEvery - 1, 0, false, false},
		{"the connection is young", 1460, 1 << 20, 1, false, false},
		{"a link with offloads", 1460, 1 << 20, 0, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := flow.NewPort(flow.Key{})
			defer p.Close()
			c := &conn{env: &flow.Env{Gate: gate{}}, port: p, mss: 1460, rcvNxt: 1 << 20, prompt: tt.prompt}
			c.ackSent, c.rcvEdge = c.rcvNxt-tt.unseen, c.rcvNxt+tt.window
			if tt.noGate {
				c.env.Gate = nil
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
