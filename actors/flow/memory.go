package flow

import "sync/atomic"

// Shares of a ceiling, which bounds all memory that the flows of one guest can make us hold.
const (
	// DefaultMemory is the ceiling unless another is chosen, and LeastMemory the lowest that can
	// be.
	DefaultMemory = 96 << 20
	LeastMemory   = 8 << 20

	defaultBudget = DefaultMemory / 3 // see Budget

	// creditStep is what a flow takes of a Budget at a time, while that is plenty.
	creditStep = 16 << 10
	// shareOf is the part of what is free of a Budget that one flow may be promised.
	shareOf = 64
)

// MemoryBudget bounds the bytes that flows hold together: data from the guest that their sockets
// did not take, and segments that came before their turn. It works as the dynamic threshold of a
// switch's buffer does: what one flow may be promised is a part of what is free, so that a few that
// are stuck do not take all, and many that are get little each.
//
// A flow takes from it by its Credit. The zero value is a budget of a third of DefaultMemory.
type MemoryBudget struct {
	max  int64
	_    [56]byte // used changes with the flows, max never
	used atomic.Int64
	_    [56]byte
}

// SetMax sets the size of the budget, before the first flow begins.
func (b *MemoryBudget) SetMax(n int) { b.max = int64(n) }

// Used returns the bytes that are taken now.
func (b *MemoryBudget) Used() int { return int(b.used.Load()) }

// Free returns the bytes that are not taken.
func (b *MemoryBudget) Free() int { return int(b.size() - b.used.Load()) }

func (b *MemoryBudget) size() int64 {
	if b.max == 0 {
		return defaultBudget
	}
	return b.max
}

// Scarce reports whether more than half of it is taken.
func (b *MemoryBudget) Scarce() bool { return b.used.Load() > b.size()/2 }

// Share returns how much more one flow may be promised now. A quarter of the budget is never
// promised: it is for what promises did not foresee.
func (b *MemoryBudget) Share() int { return max(b.Free()-int(b.size()/4), 0) / shareOf }

// Credit is what one flow has taken of a Budget, in steps, so that flows seldom meet there. The
// flow's actor owns it.
type Credit struct {
	got, used int
}

// Used returns the bytes in use.
func (c *Credit) Used() int { return c.used }

// Take takes n bytes and reports whether they were free. No flow gets more than there is left
// for all others together.
func (c *Credit) Take(b *MemoryBudget, n int) bool {
	need := c.used + n - c.got
	if need > 0 && !c.fetch(b, need, n) {
		return false
	}
	c.used += n
	return true
}

// fetch takes need bytes from b, and perhaps more.
func (c *Credit) fetch(b *MemoryBudget, need, n int) bool {
	free := b.Free()
	if c.used+n > free {
		return false
	}
	if step := max(need, creditStep); step <= free/shareOf && c.add(b, step) {
		return true
	}
	return c.add(b, need)
}

func (c *Credit) add(b *MemoryBudget, n int) bool {
	if b.used.Add(int64(n)) > b.size() {
		b.used.Add(int64(-n))
		return false
	}
	c.got += n
	return true
}

// Give gives n bytes back.
func (c *Credit) Give(b *MemoryBudget, n int) {
	c.used -= n
	if spare := c.got - c.used; c.used == 0 || spare > 2*creditStep {
		b.used.Add(int64(-spare))
		c.got = c.used
	}
}
