package flow

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// bulk is the number of bytes after which a flow is one that has work for long.
	bulk = 1 << 20
	// busyRate is the rate at which such flows together count as busy, in bytes a second: with less
	// they find the time for it beside everything else. It is measured over busyStep at least, and
	// holds for busyFor.
	busyRate = 4 << 20
	busyStep = Time(10 * time.Millisecond)
	busyFor  = Time(200 * time.Millisecond)
)

// BulkLoad knows whether flows that last have work to do, for whom the time should be that others
// would take. Short flows, one after the other, are no such load, however many they are.
//
// Any goroutine may use it; the zero value is idle.
type BulkLoad struct {
	moved atomic.Uint64 // bytes
	until atomic.Int64  // when it ends to be busy, in Time

	seenAt atomic.Int64 // when moved was seen last, in Time
	seen   atomic.Uint64
}

// Busy reports whether there is such work.
func (l *BulkLoad) Busy(now Time) bool {
	if at := l.seenAt.Load(); now >= Time(at)+busyStep && l.seenAt.CompareAndSwap(at, int64(now)) {
		n := l.moved.Load()
		if moved := n - l.seen.Swap(n); float64(moved) >= busyRate*time.Duration(now-Time(at)).Seconds() {
			l.until.Store(int64(now + busyFor))
		}
	}
	return now < Time(l.until.Load())
}

// Message notes that n bytes came from side for the flow of p. Only p's actor calls it.
func (e *Env) Message(p *Port, side Side, n int) {
	e.Spinner.Message(p, side, n)
	if p.moved += uint64(n); p.moved >= bulk {
		e.Load.moved.Add(uint64(n))
	}
}

const (
	// allowed is the most that is saved up of an allowance, and portion what is waited for when it
	// is used up: to wake up costs as much as to begin a flow.
	allowed = Time(2 * time.Millisecond)
	portion = Time(250 * time.Microsecond)
	// dearest is the most that one piece of work counts for. It is measured by the clock, and may
	// have waited for others.
	dearest = Time(200 * time.Microsecond)
)

// Budget is the time of a CPU for work of a kind that may come without end, while a Load is busy:
// one part of Part. While it is not, or Load is nil, there is no limit.
//
// Any goroutine may use it.
type Budget struct {
	Load *BulkLoad
	Part int

	mu sync.Mutex
	at Time // when left was true
	// left is what may be used now, a debt if it is negative.
	left Time
}

// Delay returns how long work has to wait for its turn now; 0: not at all.
func (a *Budget) Delay(now Time) Time {
	if a.Load == nil || !a.Load.Busy(now) {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refill(now); a.left > 0 {
		return 0
	}
	return (portion - a.left) * Time(a.Part)
}

// Charge says that n pieces of work took the time from begin to now.
func (a *Budget) Charge(n int, begin, now Time) {
	if a.Load == nil || !a.Load.Busy(now) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refill(now)
	a.left -= min(now-begin, Time(n)*dearest)
}

func (a *Budget) refill(now Time) {
	if now > a.at {
		a.left = min(a.left+(now-a.at)/Time(a.Part), allowed)
		a.at = now
	}
}
