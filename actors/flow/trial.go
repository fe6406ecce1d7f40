package flow

import (
	"sync/atomic"
	"time"
)

const (
	// tryMessages is the number of messages each way is tried for, and keepMessages how many go the
	// better way then.
	tryMessages, keepMessages = 64, 2048
	// longest is what a message counts at most: one that was late for reasons of its own decides
	// nothing.
	longest = Time(time.Millisecond)
)

// trial finds out whether looking for messages is faster than sleeping until they come. It is
// where there is a CPU to spare; where others want it, whoever looks keeps those waiting that it
// waits for, and gets out of their way for longer than a wake-up takes. So both ways are tried in
// turn, and the better one is kept for a while. Looking must be a good deal better: it takes more
// CPU time.
//
// The zero value is ready for use. Any goroutine may call its methods; calls that cross each other
// may spoil a trial.
type trial struct {
	phase  atomic.Uint32
	n      atomic.Uint32 // messages in this phase
	sum    atomic.Int64  // of their times
	looked atomic.Int64  // sum of the phase of looking
	sleep  atomic.Bool   // the result
}

// Phases.
const (
	tryLooking = iota
	trySleeping
	keep
)

// note notes that a message came d after the one before.
func (c *trial) note(d Time) {
	sum := c.sum.Add(int64(min(d, longest)))
	n := c.n.Add(1)
	switch phase := c.phase.Load(); {
	case phase == tryLooking && n >= tryMessages:
		c.looked.Store(sum)
		c.next(trySleeping)
	case phase == trySleeping && n >= tryMessages:
		c.sleep.Store(c.looked.Load()*10 > sum*9)
		c.next(keep)
	case phase == keep && n >= keepMessages:
		c.next(tryLooking)
	}
}

func (c *trial) next(phase uint32) {
	c.n.Store(0)
	c.sum.Store(0)
	c.phase.Store(phase)
}

// poll reports whether messages are to be looked for now.
func (c *trial) poll() bool {
	switch c.phase.Load() {
	case tryLooking:
		return true
	case trySleeping:
		return false
	}
	return !c.sleep.Load()
}
