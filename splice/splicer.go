package splice

import (
	"context"
	"errors"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// Side is where a socket is.
type Side uint8

// The sides.
const (
	Host      Side = iota // the network namespace of this program
	Namespace             // the guest's
)

const (
	// spareWatches is the number of watches kept for later.
	spareWatches = 64
	// flowFiles is the number of descriptors a flow has: two sockets and a watch. Pipes are had
	// where possible.
	flowFiles = 3
)

// Config says how a Splicer works.
type Config struct {
	Log *zap.Logger
	// Announce tells of flows that begin and end; nil: nobody does.
	Announce *flow.Announcer
	// InNamespace runs a function on a thread in the guest's network namespace and returns what
	// that returns. The function does not wait. Any goroutine may call it.
	InNamespace func(func() error) error
	// Limit bounds the number of flows, together with others' if they share it; nil: flow.MaxFlows
	// of ours.
	Limit *flow.Limit
	// UDPTimeout and UDPStreamTimeout are the idle times after which datagram flows end.
	UDPTimeout, UDPStreamTimeout time.Duration
}

// Counters count what an operator may want to know. Each is only ever added to.
type Counters struct {
	TCP, UDP atomic.Uint64 // flows made
	Bytes    atomic.Uint64 // carried over connections
	Refused  atomic.Uint64 // connections that the other side refused
	Full     flow.Counter  // flows beyond the limit
	Failed   flow.Counter  // flows for want of descriptors or memory, or for another fault of ours
	Lost     atomic.Uint64 // datagrams the other side did not take
	Evicted  flow.Counter  // flows of datagrams that have ended to make room for others
	Panics   atomic.Uint64 // flows that ended by a fault
}

// Splicer carries flows from socket to socket.
type Splicer struct {
	cfg      Config
	counters Counters
	spinner  flow.Spinner[watch]
	pipes    pipes
	streams  [2][2]*pool // TCP sockets by side; IPv6 and IPv4
	packets  [2][2]*pool // UDP sockets likewise

	stopped atomic.Bool

	mu    sync.Mutex
	flows sync.WaitGroup // added to only under mu, and not once stopped
	live  map[*watch]struct{}
	spare []*watch
	idle  map[*datagrams]struct{} // flows of datagrams, which may give way
}

// New returns a splicer. Flows may be given to it at once, but nothing is kept ready for them
// before it runs.
func New(cfg Config) *Splicer {
	if cfg.Limit == nil {
		cfg.Limit = flow.NewLimit(flow.MaxFlows)
	}
	s := &Splicer{cfg: cfg, live: make(map[*watch]struct{}), idle: make(map[*datagrams]struct{})}
	cfg.Limit.AddReclaimer(reclaimer{s})
	s.pipes.size = pipeCapacity()
	here := func(f func() error) error { return f() }
	for side, inside := range []func(func() error) error{Host: here, Namespace: cfg.InNamespace} {
		for i, v4 := range []bool{false, true} {
			s.streams[side][i] = newPool(func() (int, error) { return sock.Stream(v4) }, inside)
			s.packets[side][i] = newPool(func() (int, error) { return sock.Packet(v4) }, inside)
		}
	}
	return s
}

// Counters returns the splicer's counters, which go on counting.
func (s *Splicer) Counters() *Counters { return &s.counters }

// Run keeps what new flows need until ctx ends; then it ends all flows and waits for them. Flows
// that come later are closed at once. It returns nil.
func (s *Splicer) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	for side := range s.streams {
		for i := range s.streams[side] {
			parts.Go(func() { s.streams[side][i].run(ctx) })
			parts.Go(func() { s.packets[side][i].run(ctx) })
		}
	}
	<-ctx.Done()
	s.stop()
	s.flows.Wait()
	parts.Wait()
	s.pipes.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.spare {
		w.close()
	}
	s.spare = nil
	return nil
}

// stop has all flows end.
func (s *Splicer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped.Store(true)
	for w := range s.live {
		w.ring()
	}
}

func (s *Splicer) stopping() bool { return s.stopped.Load() }

// TCP takes over fd, a non-blocking TCP socket that was accepted, and carries the connection to dst
// on side to. If that cannot be reached, the connection is reset. TCP does not wait.
func (s *Splicer) TCP(fd int, to Side, dst netip.AddrPort) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	refuse := func() {
		sock.Reset(fd)
		closeFD(fd)
	}
	s.start(&s.counters.TCP, refuse, func(w *watch) {
		defer s.announce(frame.ProtoTCP, fd, to, dst).End()
		s.serve(w, fd, to, dst)
	})
}

// announce tells of a flow that somebody has begun with the socket fd.
func (s *Splicer) announce(proto uint16, fd int, to Side, dst netip.AddrPort) *flow.Announced {
	if !s.cfg.Announce.On() {
		return nil
	}
	peer, _ := sock.Peer(fd)
	local, _ := sock.Local(fd)
	return s.cfg.Announce.Spliced(proto, to == Namespace, peer, local, dst)
}

// start counts a flow and runs serve in a goroutine with a watch of its own, or else calls refuse.
func (s *Splicer) start(count *atomic.Uint64, refuse func(), serve func(*watch)) {
	if !s.cfg.Limit.Acquire(flowFiles) {
		s.counters.Full.Hit(s.cfg.Log, "Too many flows, new ones are refused")
		refuse()
		return
	}
	if s.cfg.Limit.Scarce() {
		s.cfg.Limit.Reclaim() // in good time: it takes a moment to end
	}
	w, err := s.enter()
	if err != nil {
		s.cfg.Limit.Release(flowFiles)
		if !errors.Is(err, errStopped) {
			s.troubled("Unable to watch sockets of new flow", err)
		}
		refuse()
		return
	}
	count.Add(1)
	go func() {
		defer s.leave(w)
		serve(w)
	}()
}

var errStopped = errors.New("stopped")

// enter makes room for a flow and returns its watch.
func (s *Splicer) enter() (*watch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped.Load() {
		return nil, errStopped
	}
	var w *watch
	if n := len(s.spare); n > 0 {
		w = s.spare[n-1]
		s.spare = s.spare[:n-1]
	} else {
		var err error
		if w, err = newWatch(); err != nil {
			return nil, err
		}
	}
	s.live[w] = struct{}{}
	s.flows.Add(1)
	return w, nil
}

// leave is the edge of every flow: whatever it did, its sockets are closed by now, and its watch is
// free. A fault ends that flow only.
func (s *Splicer) leave(w *watch) {
	if v := recover(); v != nil {
		s.counters.Panics.Add(1)
		s.cfg.Log.Error("flow ended by a fault", zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
	}
	s.cfg.Limit.Release(flowFiles)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, w)
	if len(s.spare) < spareWatches && !s.stopped.Load() {
		w.idle()
		s.spare = append(s.spare, w)
	} else {
		w.close()
	}
	s.flows.Done()
}

// tcp returns an unconnected TCP socket on side to.
func (s *Splicer) tcp(to Side, v4 bool) (int, error) { return pick(&s.streams[to], v4).get() }

// udp returns an unconnected UDP socket on side to.
func (s *Splicer) udp(to Side, v4 bool) (int, error) { return pick(&s.packets[to], v4).get() }

func pick(p *[2]*pool, v4 bool) *pool {
	if v4 {
		return p[1]
	}
	return p[0]
}

// spin looks for the next message of w's flow for as long as that is worth while, and reports
// whether there is something.
func (s *Splicer) spin(w *watch) bool {
	r := &s.spinner
	if !r.Of(w) {
		return false
	}
	for r.ShouldSpin() {
		if w.look() {
			return true
		}
		r.Yield()
	}
	r.Missed()
	return false
}

// troubled logs why there is no flow. Others' refusals are none of our business, but the lack of
// descriptors or memory is, and is said once in a while; then there may be others that can make
// room.
func (s *Splicer) troubled(what string, err error) {
	s.cfg.Log.Debug(what, zap.Error(err))
	if flow.Exhausted(err) {
		s.counters.Failed.HitBy(s.cfg.Log, what, err)
		s.cfg.Limit.Reclaim()
		return
	}
	s.counters.Failed.Add(1)
}
