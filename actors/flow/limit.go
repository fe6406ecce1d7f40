package flow

import "sync/atomic"

// Limit bounds the number of flows of all kinds together. Any goroutine may use it.
type Limit struct {
	max int64
	n   atomic.Int64
}

// NewLimit returns a limit of max flows.
func NewLimit(max int) *Limit { return &Limit{max: int64(max)} }

// Take counts one more flow, and reports whether it may exist. If so, Give is to be called at its end.
func (l *Limit) Take() bool {
	if l.n.Add(1) <= l.max {
		return true
	}
	l.n.Add(-1)
	return false
}

// Give counts one flow less.
func (l *Limit) Give() { l.n.Add(-1) }

// Len returns the number of flows there are now.
func (l *Limit) Len() int { return int(l.n.Load()) }
