package actors

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

const (
	// beginPart is the part of a CPU for flows that begin while others have work: some thousand a
	// second.
	beginPart = 8

	// maxOpening is the number of flows of the guest's that make their sockets at a time. None of
	// the calls for that waits for anything, so that more would not be faster; but the flows that
	// there are already get their turn once in so many, however many want to begin.
	maxOpening = 1
	// Frames that open flows and wait for that: as many, and as many bytes of slab.
	maxWaitingFrames = 4096
	maxWaitingBytes  = 512 << 10

	// Whoever waits for the link or a socket is not among those whose turn it is before the
	// scheduler has asked the kernel for them. While others can run it does that once in 10 ms
	// only: a transfer gets one window in that time. It does so at once when nobody can run, that
	// is while we sleep.
	maxUnpolled = flow.Time(1e6)        // 1 ms
	pollTime    = 20 * time.Microsecond // up to 1 ms if there is nothing else to do

	minTurn, maxTurn = flow.Time(50e3), flow.Time(10e6) // 50 µs, 10 ms
)

// admission opens few flows at a time: opening one costs as much as carrying some hundred kilobytes
// of another. Further ones wait in order, as copies of the frames that open them, and each flow
// that has opened admits the next. A frame that does not fit is dropped; the guest repeats it.
//
// Any goroutine may use it.
type admission struct {
	e *Engine

	// when somebody has last slept for those who wait for the link or a socket, in flow.Time
	polled atomic.Int64
	until  atomic.Int64 // when the turn is over of those that begin, likewise

	budget flow.Budget  // for those that begin
	since  atomic.Int64 // when the flow that opens was admitted, in flow.Time
	// how long run waits before it admits the next; that one counts as opening
	delays chan flow.Time
	full   atomic.Bool // no more can wait

	mu      sync.Mutex
	opening int
	ended   bool // nobody waits any more
	// frames that wait, from next on; while there are any, opening is not 0
	queue []waitingFrame
	asked map[flow.Key]struct{} // flows of TCP whose SYN is among them or was just admitted
	next  int
	bytes int
	slab  *flow.Slab // where the next one goes; nil: none is held
}

// waitingFrame is a frame that waits for admission, and the flow it opens.
type waitingFrame struct {
	run flow.Run
	key flow.Key
}

// open makes d the admission of e.
func (d *admission) open(e *Engine) {
	d.e = e
	d.budget = flow.Budget{Load: &e.env.Load, Part: beginPart}
	d.delays = make(chan flow.Time, maxOpening)
}

// lose counts a frame that finds no room to wait.
func (d *admission) lose() {
	d.e.env.Counters.NotAdmitted.Hit(d.e.cfg.Log, "Too many new flows at a time, some are lost")
}

// admit reports whether the flow that the frame b, parsed as pkt, opens may begin now: then opened
// is to be called when it has. If not, the frame waits or is lost.
func (d *admission) admit(b []byte, pkt *frame.Packet) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	var rest flow.Time
	if d.opening < maxOpening && len(d.queue) == 0 {
		now := flow.Now()
		if rest = d.budget.Delay(now); rest == 0 || d.ended {
			d.opening++
			d.since.Store(int64(now))
			return true
		}
	}
	k := keyOf(pkt)
	if _, ok := d.asked[k]; ok {
		// A SYN that is repeated. Kept, it might be let in when its connection has been and gone.
		return false
	}
	if len(d.queue)-d.next >= maxWaitingFrames || d.bytes+len(b) > maxWaitingBytes || !d.wait(b, pkt, &k) {
		d.full.Store(d.opening > 0)
		d.lose()
		return false
	}
	if pkt.Kind == frame.TCP {
		if d.asked == nil {
			d.asked = make(map[flow.Key]struct{})
		}
		d.asked[k] = struct{}{}
	}
	if rest > 0 {
		d.opening++
		d.delays <- rest
	}
	return false
}

// wait adds a copy of b to the queue, if there is a slab for it.
func (d *admission) wait(b []byte, pkt *frame.Packet, k *flow.Key) bool {
	var room []byte
	if d.slab != nil {
		if room = d.slab.Room(); room == nil {
			d.letGo()
		}
	}
	if d.slab == nil {
		if d.slab = d.e.pool.Get(); d.slab == nil {
			return false
		}
		room = d.slab.Room()
	}
	start := d.slab.Used()
	d.slab.Append(copy(room, b), pkt)
	run := d.slab.Run(start)
	d.queue = append(d.queue, waitingFrame{run, *k})
	d.bytes += run.Len()
	return true
}

// opened says that a flow which was let in has begun, or has not and never will. The reader does
// not call it.
func (d *admission) opened() {
	d.charge()
	d.admitNext(d.yieldTurn)
}

// admitNext has the next one that waits begin, after turns, or later if its time has not come.
func (d *admission) admitNext(turns func()) {
	for {
		c, ok := d.pop()
		if !ok {
			return
		}
		turns()
		d.since.Store(int64(flow.Now()))
		begun := d.e.begin(&c.run)
		if c.key.Proto == frame.ProtoTCP {
			d.forget(&c.key)
		}
		if begun {
			return
		}
		d.charge()
	}
}

// charge charges the time that the flow took to open.
func (d *admission) charge() { d.budget.Charge(1, flow.Time(d.since.Load()), flow.Now()) }

// run admits the flows that had to wait for the budget, until ctx ends; then all that wait.
func (d *admission) run(ctx context.Context) {
	clock := time.NewTimer(0)
	defer clock.Stop()
	for {
		select {
		case <-ctx.Done():
			if d.close() {
				d.admitNext(d.yieldTurn)
			}
			return
		case rest := <-d.delays:
			clock.Reset(time.Duration(rest))
		}
		select {
		case <-ctx.Done():
			d.close()
			d.admitNext(d.yieldTurn)
			return
		case <-clock.C:
			d.admitNext(d.yieldTurn)
		}
	}
}

// close ends all waiting, and reports whether a flow waits for run.
func (d *admission) close() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	select {
	case <-d.delays:
		return true
	default:
		return false
	}
}

// yieldTurn lets other goroutines have their turn, when those that begin flows have had as much
// time as the others had before: without it the next to begin would go before all others, and with
// one at a time those that wait would starve among thousands of busy flows.
func (d *admission) yieldTurn() {
	now := flow.Now()
	if now < flow.Time(d.until.Load()) {
		return
	}
	if last := d.polled.Load(); now < flow.Time(last)+maxUnpolled || !d.polled.CompareAndSwap(last, int64(now)) {
		runtime.Gosched()
	} else {
		time.Sleep(pollTime)
	}
	then := flow.Now()
	d.until.Store(int64(then + min(max(then-now, minTurn), maxTurn)))
}

// pop returns the frame that has waited longest, whose flow is inside then, unless there is none or
// it has to wait for its time.
func (d *admission) pop() (waitingFrame, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full.Store(false)
	if len(d.queue) == 0 {
		d.opening--
		return waitingFrame{}, false
	}
	if rest := d.budget.Delay(flow.Now()); rest > 0 && !d.ended {
		d.delays <- rest
		return waitingFrame{}, false
	}
	c := d.queue[d.next]
	d.queue[d.next] = waitingFrame{}
	d.next++
	d.bytes -= c.run.Len()
	switch {
	case d.next == len(d.queue):
		d.queue, d.next = nil, 0
		d.letGo()
	case d.next == maxWaitingFrames:
		d.queue, d.next = append([]waitingFrame(nil), d.queue[d.next:]...), 0
	}
	return c, true
}

// forget has a SYN for the flow k wait again.
func (d *admission) forget(k *flow.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if delete(d.asked, *k); len(d.asked) == 0 {
		d.asked = nil
	}
}

func (d *admission) letGo() {
	if d.slab != nil {
		d.slab.Release()
		d.slab = nil
	}
}

// begin makes the flow that run, of one frame, opens, and reports whether it has begun. The run is
// used up.
func (e *Engine) begin(run *flow.Run) bool {
	var v flow.View
	var pkt frame.Packet
	at := *run
	if !at.Next(&v) || frame.Parse(v.Frame, &pkt) != frame.OK {
		run.Release()
		return false
	}
	k := keyOf(&pkt)
	p := e.table.Lookup(&k)
	begun := false
	if p == nil {
		var o openPlan
		if p = e.plan(&k, v.Frame, &pkt, &o); o.serve != nil {
			p = e.open(&k, &o)
			begun = p != drop && !o.exists
		}
	}
	if p == drop || p.Gone() || !p.Offer(*run) {
		run.Release()
	}
	return begun
}
