package tapio

import (
	"math"
	"sync/atomic"
)

// closed is added to a lifetime's calls by its end.
const closed = math.MinInt32

// fdRef keeps a descriptor open while calls that use it are under way: it counts them, and
// whoever brings the count down after the end closes the descriptor. It is the only thing that
// writers share, where os.File would have them wait for each other.
type fdRef struct{ calls atomic.Int32 }

// enter begins a call, which leave ends. It reports false after end: then there is no call. leave
// reports true to the one who has to close the descriptor.
func (l *fdRef) enter() (ok, last bool) {
	if l.calls.Add(1) > 0 {
		return true, false
	}
	return false, l.leave()
}

func (l *fdRef) leave() (last bool) { return l.calls.Add(-1) == closed }

// end lets no further call in and reports whether it was the first to do so. The first is itself a
// call under way, until leave.
func (l *fdRef) end() bool {
	for {
		n := l.calls.Load()
		if n < 0 {
			return false
		}
		if l.calls.CompareAndSwap(n, n+1+closed) {
			return true
		}
	}
}

// ended reports whether end was called.
func (l *fdRef) ended() bool { return l.calls.Load() < 0 }
