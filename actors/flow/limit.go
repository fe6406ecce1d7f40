package flow

import "sync/atomic"

// Limit bounds the number of flows of all kinds together, and of the descriptors they have. Any
// goroutine may use it.
type Limit struct {
	max, files int64
	n, open    atomic.Int64
	onFull     func()
}

// NewLimit returns a limit of max flows, with any number of descriptors.
func NewLimit(max int) *Limit { return &Limit{max: int64(max), files: 1 << 62} }

// NewFileLimit returns a limit of max flows that have at most files descriptors.
func NewFileLimit(max, files int) *Limit {
	return &Limit{max: min(int64(max), int64(files)), files: int64(files)}
}

// OnFull has f called when a flow was refused, or when Press is: it may make room. f is set before
// anybody else has the limit.
func (l *Limit) OnFull(f func()) { l.onFull = f }

// Take counts one more flow, with so many descriptors, and reports whether it may exist. If so, Give is
// to be called at its end.
func (l *Limit) Take(files int) bool {
	if l.n.Add(1) <= l.max {
		if l.open.Add(int64(files)) <= l.files {
			return true
		}
		l.open.Add(int64(-files))
	}
	l.n.Add(-1)
	l.Press()
	return false
}

// Give counts one flow less, which had so many descriptors.
func (l *Limit) Give(files int) {
	l.n.Add(-1)
	l.open.Add(int64(-files))
}

// Press asks for room: a flow could not be made for want of something.
func (l *Limit) Press() {
	if l.onFull != nil {
		l.onFull()
	}
}

// Len returns the number of flows there are now.
func (l *Limit) Len() int { return int(l.n.Load()) }

// scarce reports whether there will soon be no room for more.
func (l *Limit) scarce() bool {
	return l.max-l.n.Load() < l.max/64 || l.files-l.open.Load() < l.files/64
}
