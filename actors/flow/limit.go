package flow

import (
	"sync"
	"sync/atomic"
	"time"
)

// InUse is how long after its last datagram a flow of UDP that is more than a question and an
// answer gives way to none.
const InUse = Time(5 * time.Second)

// Reclaimer has flows that count against a Limit and may give way to others. Any goroutine may call
// it.
type Reclaimer interface {
	// EvictUnanswered has one end that is easily missed, and reports whether there was one.
	EvictUnanswered() bool
	// LongestIdle returns the last time at which anything was carried by the flow of UDP for which
	// that is longest ago, and what has it end; nil if there is none.
	LongestIdle() (last Time, end func())
}

// Limit bounds the number of flows of all kinds together, and of the descriptors they have. Any
// goroutine may use it.
type Limit struct {
	max, files int64
	n, open    atomic.Int64

	mu     sync.Mutex
	givers []Reclaimer
}

// NewLimit returns a limit of max flows, with any number of descriptors.
func NewLimit(max int) *Limit { return &Limit{max: int64(max), files: 1 << 62} }

// NewFileLimit returns a limit of max flows that have at most files descriptors.
func NewFileLimit(max, files int) *Limit {
	return &Limit{max: min(int64(max), int64(files)), files: int64(files)}
}

// AddReclaimer has g make room when a flow was refused, or when Press is called.
func (l *Limit) AddReclaimer(g Reclaimer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.givers = append(l.givers, g)
}

// Acquire counts one more flow, with so many descriptors, and reports whether it may exist. If so,
// Give is to be called at its end.
func (l *Limit) Acquire(files int) bool {
	if l.n.Add(1) <= l.max {
		if l.open.Add(int64(files)) <= l.files {
			return true
		}
		l.open.Add(int64(-files))
	}
	l.n.Add(-1)
	l.Reclaim()
	return false
}

// Release counts one flow less, which had so many descriptors.
func (l *Limit) Release(files int) {
	l.n.Add(-1)
	l.open.Add(int64(-files))
}

// Reclaim asks for room: a flow could not be made for want of something. One that nobody has
// answered gives way, or else that of UDP which was idle for longest, and at least for InUse. Press
// reports whether there was one.
func (l *Limit) Reclaim() bool {
	for _, g := range l.all() {
		if g.EvictUnanswered() {
			return true
		}
	}
	return l.ReclaimIdle()
}

func (l *Limit) all() []Reclaimer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.givers
}

// ReclaimIdle is Press, but none gives way that nobody has answered.
func (l *Limit) ReclaimIdle() bool {
	oldest, end := Now()-InUse, func() {}
	found := false
	for _, g := range l.all() {
		if last, f := g.LongestIdle(); f != nil && last <= oldest {
			oldest, end, found = last, f, true
		}
	}
	end()
	return found
}

// Max returns the number of flows there may be.
func (l *Limit) Max() int { return int(l.max) }

// Len returns the number of flows there are now.
func (l *Limit) Len() int { return int(l.n.Load()) }

// Scarce reports whether there will soon be no room for more.
func (l *Limit) Scarce() bool {
	return l.max-l.n.Load() < l.max/64 || l.files-l.open.Load() < l.files/64
}
