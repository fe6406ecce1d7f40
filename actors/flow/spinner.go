package flow

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spinFor is how long after a message the answer is looked for without going to sleep. Waking
	// a sleeping thread costs 20 to 30 µs on a virtual machine, and each exchange has two of them
	// on our side; an answer over a local link comes within two more.
	spinFor = Time(120 * time.Microsecond)
	// smallMessage is the length in bytes up to which data counts as request or answer.
	smallMessage = 4096
	// spinAfter and spinAfterMax are the numbers of messages in turn that are needed before the
	// next one is looked for: the former at first and as long as spinPays messages were found for
	// each one looked for in vain; else it doubles, up to the latter.
	spinAfter, spinAfterMax = 4, 512
	spinPays                = 4
	// spinRow is the number of messages after which one is waited for in the ordinary way, so that
	// other flows' events are seen, which the runtime does not look for while somebody runs.
	spinRow = 32
)

// Side is where a message comes from.
type Side uint32

// The sides of a flow.
const (
	_ Side = iota
	FromGuest
	FromHost
)

// Spinner notices request and response traffic: single small messages that alternate between the
// sides, one exchange after the other. While it goes on and answers come quickly, those who wait
// look for the next message for a short while before they sleep. Bulk transfers, several busy
// flows, slow peers and silence all end it. So does a trial that shows that spinning does not pay,
// for want of an idle CPU. T identifies a flow.
//
// The zero value is ready for use, and all methods may be called by anyone. It is a guess about the
// near future: calls that cross each other may spoil it, and nothing worse.
type Spinner[T any] struct {
	side  atomic.Uint32
	owner atomic.Pointer[T]
	score atomic.Uint32 // messages in turn
	need  atomic.Uint32 // how many make it worth while, but at least spinAfter
	hits  atomic.Uint32 // messages since one was looked for in vain
	last  atomic.Int64  // time of the last message
	pays  trial         // whether looking is the faster way now
}

// Message notes that n bytes came from side for the flow of p.
func (r *Spinner[T]) Message(p *T, side Side, n int) {
	if runtime.NumCPU() == 1 {
		return // whom we wait for needs the CPU
	}
	if n > smallMessage || Side(r.side.Swap(uint32(side))) == side {
		if r.score.Load() != 0 {
			r.score.Store(0)
		}
		return
	}
	now := int64(Now())
	d := now - r.last.Swap(now)
	r.owner.Store(p)
	if r.score.Add(1) > r.enough() {
		r.hits.Add(1)
		r.pays.note(Time(d))
	}
}

func (r *Spinner[T]) enough() uint32 { return max(r.need.Load(), spinAfter) }

// ShouldSpin reports whether the next message is worth looking for now.
func (r *Spinner[T]) ShouldSpin() bool {
	return r.score.Load() > r.enough() && r.pays.poll() && r.hits.Load()%spinRow != 0 && Now()-Time(r.last.Load()) < spinFor
}

// Yield lets other goroutines, and other threads that want this CPU, go first. It is what is to be
// done between two looks.
func (r *Spinner[T]) Yield() {
	runtime.Gosched()
	unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}

// Missed is called by who has looked for a message in vain, before it sleeps.
func (r *Spinner[T]) Missed() {
	if r.score.Load() <= r.enough() || Now()-Time(r.last.Load()) < spinFor {
		return
	}
	r.score.Store(0)
	if r.hits.Swap(0) >= spinPays {
		r.need.Store(spinAfter)
	} else {
		r.need.Store(min(r.enough()*2, spinAfterMax))
	}
}

// Extend gives the next message its full time again: what has just happened, a new connection, is
// part of an exchange without being a message.
func (r *Spinner[T]) Extend() {
	if r.score.Load() > r.enough() {
		r.last.Store(int64(Now()))
	}
}

// AwaitsHost reports whether p's flow waits for the host's answer to a message of the guest. Only
// then the socket is looked at: the next message comes from the guest, and the reader, which may be
// asleep, is woken for it by a thread that sleeps.
func (r *Spinner[T]) AwaitsHost(p *T) bool {
	return Side(r.side.Load()) == FromGuest && r.Of(p)
}

// Of reports whether the last message was one of p's flow.
func (r *Spinner[T]) Of(p *T) bool { return r.owner.Load() == p }
