package flow

import (
	"sync"

	"fusilli/tapio/frame"
)

// Flows of one kind that were not answered yet, or only once: at most so many, and at most a
// quarter of all flows. Sockets that wait for an answer cost as much as others, and what asks
// without end, a scan or a flood, is all there is of most of them.
const (
	maxHalfOpen = 8192 // TCP connections that are not established
	// UDP flows; the kernel looks through all with one port when one more is bound to it
	maxUnanswered = 4096
	maxEchoes     = 1024
)

// kinds of flows, each with limits of its own.
const (
	tcpOut = iota
	tcpIn
	udpOut
	udpIn
	echo
	numKinds
)

// Evictor counts flows per protocol and direction, and picks one to evict when a limit is reached:
// flows that were answered once first, then unanswered ones, oldest first. So a flood evicts its
// own flows, and others still find room. An assured flow is evicted only if it is one of UDP that
// is idle, and no other is left.
//
// Any goroutine may use it.
type Evictor struct {
	limit *Limit
	most  int // flows of one kind

	mu    sync.Mutex
	kinds [numKinds]kind
}

type kind struct {
	n                  int
	max                int // in both queues
	unreplied, replied queue
	idle               queue // settled flows of UDP, see Evictor.LongestIdle
}

// NewEvictor returns an evictor for flows that count against limit.
func NewEvictor(limit *Limit) *Evictor {
	r := &Evictor{limit: limit, most: int(limit.max)}
	if r.most >= 1024 {
		r.most -= r.most / 4 // the others need some
	}
	for i, max := range []int{tcpOut: maxHalfOpen, tcpIn: maxHalfOpen, udpOut: maxUnanswered, udpIn: maxUnanswered, echo: maxEchoes} {
		r.kinds[i].max = max
		if quarter := int(limit.max) / 4; quarter >= 16 {
			r.kinds[i].max = min(max, quarter)
		}
	}
	return r
}

func kindOf(p *Port, fromHost bool) uint8 {
	k := uint8(echo)
	switch p.key.Proto {
	case frame.ProtoTCP:
		k = tcpOut
	case frame.ProtoUDP:
		k = udpOut
	default:
		return k
	}
	if fromHost {
		k++
	}
	return k
}

// Add adds p, which has just begun and was counted by the evictor's limit, and returns the flow
// that is to give way to it, or nil. It returns false if there are too many flows of p's kind
// already.
func (r *Evictor) Add(p *Port, fromHost bool) (victim *Port, ok bool) {
	p.kind = kindOf(p, fromHost)
	r.mu.Lock()
	defer r.mu.Unlock()
	k := &r.kinds[p.kind]
	switch {
	case k.n >= r.most:
		return k.victim(), false
	case k.unreplied.n+k.replied.n >= k.max:
		victim = k.victim()
	case r.limit.Scarce():
		victim = r.victim() // in good time: it takes a moment to end
	}
	k.n++
	p.evictor = r
	k.unreplied.add(p)
	return victim, true
}

// Remove removes p, if it is there.
func (r *Evictor) Remove(p *Port) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.evictor == nil {
		return
	}
	p.evictor = nil
	r.kinds[p.kind].n--
	p.leaveQueue()
}

// AddShared counts one more flow of UDP, which shares the socket of others, and reports whether it
// may exist. If so, RemoveShared is to be called at its end.
func (r *Evictor) AddShared(fromHost bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := &r.kinds[sharedKind(fromHost)]
	if k.n >= r.most {
		return false
	}
	k.n++
	return true
}

// RemoveShared counts one such flow less.
func (r *Evictor) RemoveShared(fromHost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kinds[sharedKind(fromHost)].n--
}

func sharedKind(fromHost bool) int {
	if fromHost {
		return udpIn
	}
	return udpOut
}

// Victim returns a flow that is to give way, so that there is room for another; nil if none is to.
func (r *Evictor) Victim() *Port {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.victim()
}

// victim returns that of the kind that has most.
func (r *Evictor) victim() *Port {
	best := &r.kinds[0]
	for i := range r.kinds {
		if k := &r.kinds[i]; k.unreplied.n+k.replied.n > best.unreplied.n+best.replied.n {
			best = k
		}
	}
	return best.victim()
}

func (k *kind) victim() *Port {
	p := k.replied.first
	if p == nil {
		p = k.unreplied.first
	}
	if p != nil {
		p.leaveQueue()
	}
	return p
}

// Stages of a flow, of which the actor knows the one it has told.
const (
	stageNew = iota
	stageSeenReply
	stageAssured
	stageEnding
)

// SeenReply notes that the flow was answered: it is missed less than others. Only the actor calls
// it.
func (p *Port) SeenReply() { p.reach(stageSeenReply) }

// Assured notes that both sides have agreed on the flow, which gives way to no other from here on,
// unless it is one of UDP that is idle. Only the actor calls it.
func (p *Port) Assured() { p.reach(stageAssured) }

func (p *Port) reach(stage uint8) {
	if p.stage >= stage {
		return
	}
	p.stage = stage
	r := p.evictor
	if r == nil {
		return // a flow that counts for nothing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.queue == nil {
		return // it is on its way out
	}
	p.leaveQueue()
	switch k := &r.kinds[p.kind]; {
	case stage == stageSeenReply:
		k.replied.add(p)
	case stage == stageAssured && p.key.Proto == frame.ProtoUDP:
		p.noted = Now()
		k.idle.add(p)
	}
}

// Ending notes that the flow is about to end, and cannot give way. Only the actor calls it.
func (p *Port) Ending() { p.reach(stageEnding) }

// Used notes that the flow of UDP has carried something at t. Only the actor calls it.
func (p *Port) Used(t Time) { p.used.Store(int64(t)) }

// MaxLooks is the number of flows that are looked at to find the one that was idle for longest.
const MaxLooks = 256

// LongestIdle returns the settled flow of UDP that was idle for longest, of those it looks at, and
// since when; nil if there is none.
func (r *Evictor) LongestIdle() (p *Port, last Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range [...]int{udpOut, udpIn} {
		if q, t := r.kinds[k].idle.longestIdle(); q != nil && (p == nil || t < last) {
			p, last = q, t
		}
	}
	return p, last
}

// Take reports whether p is among those that may give way, and is not any more.
func (r *Evictor) Take(p *Port) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := p.queue != nil
	p.leaveQueue()
	return in
}

// longestIdle is Idlest for one queue. Those that were used since they were last looked at go to
// its end.
func (q *queue) longestIdle() (best *Port, last Time) {
	p := q.first
	for range min(q.n, MaxLooks) {
		next := p.behind
		used := Time(p.used.Load())
		if best == nil || used < last {
			best, last = p, used
		}
		if used > p.noted {
			p.leaveQueue()
			q.add(p)
			p.noted = used
		}
		p = next
	}
	return best, last
}

// Evict tells the actor to end, to make room for another flow. Any goroutine may call it.
func (p *Port) Evict() { p.note(noteStop | noteEvict) }

// Evicted reports whether the actor was told to end for that reason.
func (p *Port) Evicted() bool { return p.notes.Load()&noteEvict != 0 }

// queue is flows in the order in which they were added. The evictor's mutex guards it.
type queue struct {
	first, last *Port
	n           int
}

func (q *queue) add(p *Port) {
	p.queue, p.before, p.behind = q, q.last, nil
	if q.last != nil {
		q.last.behind = p
	} else {
		q.first = p
	}
	q.last = p
	q.n++
}

// leaveQueue takes p out of the queue it is in, if any.
func (p *Port) leaveQueue() {
	q := p.queue
	if q == nil {
		return
	}
	if p.before != nil {
		p.before.behind = p.behind
	} else {
		q.first = p.behind
	}
	if p.behind != nil {
		p.behind.before = p.before
	} else {
		q.last = p.before
	}
	p.queue, p.before, p.behind = nil, nil, nil
	q.n--
}
