package tapio

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: only a row of single segments, one soon after the other, counts as busy.
func TestPace(t *testing.T) {
	for _, tt := range []struct {
		name string
		n    int
		gap  time.Duration
		busy bool
	}{
		{"segments of a bulk transfer", 1518, 30 * time.Microsecond, true},
		{"a few at a time", 5 * 1518, 120 * time.Microsecond, true},
		{"requests", 70, 30 * time.Microsecond, false},
		{"large frames", 65538, 200 * time.Microsecond, false},
		{"slow ones", 1518, time.Millisecond, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p pace
				for range 2 * paceStreak {
					time.Sleep(tt.gap)
					p.woken(tt.n)
				}
				if busy := p.streak >= paceStreak; busy != tt.busy {
					t.Errorf("streak of %d", p.streak)
				}
				time.Sleep(time.Second)
				if p.woken(tt.n); p.streak >= paceStreak {
					t.Error("busy after silence")
				}
			})
		})
	}
}
