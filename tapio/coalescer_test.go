package tapio

import (
	"testing"
	"time"
)

// TestPace: frames of a bulk transfer gather, for as long as half of what a socket holds takes to
// come.
func TestPace(t *testing.T) {
	const us = time.Microsecond
	for _, tt := range []struct {
		name string
		n    int
		gap  time.Duration
		nap  time.Duration
	}{
		{"segments of a bulk transfer", 1518, 10 * us, paceLong},
		{"some at a time", 100 * 1518, 300 * us, 194 * us},
		{"long frames", 65538, 300 * us, paceTwo},
		{"too fast for the socket", 65538, 60 * us, 0},
		{"acknowledgements", 20 * 54, 300 * us, 0},
		{"requests", 70, 30 * us, 0},
		{"slow ones", 1518, 3 * time.Millisecond, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p coalescer
			now := time.Now()
			next := func(gap time.Duration, n int) time.Duration {
				now = now.Add(gap)
				p.took(n, n > 32<<10 && n%1518 != 0)
				return p.nap(now)
			}
			for range paceStreak {
				if nap := next(tt.gap, tt.n); nap != 0 {
					t.Errorf("%v at once", nap)
				}
			}
			for range 100 {
				next(tt.gap, tt.n)
			}
			if nap := next(tt.gap, tt.n); (nap - tt.nap).Abs() > 10*us {
				t.Errorf("%v, want %v", nap, tt.nap)
			}
			if nap := next(tt.gap, 70); nap != 0 {
				t.Errorf("%v after a short frame", nap)
			}
			for range paceStreak {
				for range paceBreak + 1 {
					next(tt.gap, tt.n)
				}
				next(tt.gap, 70)
			}
			if nap := next(tt.gap, tt.n); tt.nap != 0 && nap == 0 {
				t.Error("a short frame now and then counts as much")
			}
			for range 2 * paceStreak {
				next(tt.gap, tt.n)
				next(tt.gap, 70)
			}
			if nap := next(tt.gap, tt.n); nap != 0 {
				t.Errorf("%v after many short ones", nap)
			}
			for range 2 * paceStreak {
				next(tt.gap, tt.n)
			}
			if nap := next(2*paceGap-us, tt.n); nap != 0 {
				t.Errorf("%v after a lapse", nap)
			}
			if nap := next(tt.gap, tt.n); tt.nap != 0 && nap == 0 {
				t.Error("a lapse ends it")
			}
			if nap := next(time.Second, tt.n); nap != 0 {
				t.Errorf("%v after silence", nap)
			}
			if nap := next(tt.gap, tt.n); nap != 0 {
				t.Errorf("%v soon after silence", nap)
			}
		})
	}
}
