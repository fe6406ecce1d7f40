package flow

import (
	"testing"
	"time"
)

// TestContest: the faster way wins, a near miss is no reason to spend CPU time, and who is wrong
// learns so when the machine changes.
func TestContest(t *testing.T) {
	const us = Time(time.Microsecond)
	for _, row := range []struct {
		name              string
		looking, sleeping Time
		want              bool // to look
	}{
		{"an idle machine", 70 * us, 110 * us, true},
		{"a busy machine", 150 * us, 80 * us, false},
		{"hardly better", 95 * us, 100 * us, false},
		{"one message in ten is late", 70 * us, 110 * us, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			var c trial
			message := func(i int, looking, sleeping Time) {
				d := sleeping
				if c.poll() {
					d = looking
				}
				if row.name == "one message in ten is late" && i%10 == 0 {
					d = Time(time.Second)
				}
				c.note(d)
			}
			for i := range 2 * tryMessages {
				message(i, row.looking, row.sleeping)
			}
			looked := 0
			for i := range keepMessages {
				if c.poll() {
					looked++
				}
				message(i, row.looking, row.sleeping)
			}
			want := 0
			if row.want {
				want = keepMessages
			}
			if looked != want {
				t.Errorf("looked for %d of %d messages, want %d", looked, keepMessages, want)
			}
			// Now it is the other way round.
			for i := range 2 * tryMessages {
				message(i, row.sleeping, row.looking/2)
			}
			if c.poll() {
				t.Error("still looks for messages though that is slower now")
			}
		})
	}
}
