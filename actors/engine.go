package actors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/dhcp"
	"fusilli/actors/dhcpv6"
	"fusilli/actors/flow"
	"fusilli/actors/icmp"
	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/actors/sock"
	"fusilli/actors/tcp"
	"fusilli/actors/udp"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// Config says what an Engine translates between.
type Config struct {
	Link         tapio.Link         // closed by Run
	Backpressure tapio.Backpressure // Link's, if it has one
	Log          *zap.Logger

	Announce *flow.Announcer // nil: flows come and go silently

	OurMAC   frame.MAC // source of frames to the guest
	GuestMAC frame.MAC // destination until the guest has sent a frame
	MTU      int       // of the link, in bytes of IP packet; 0: not known

	// Fragment has packets longer than MTU go to the guest as fragments; else as they are, which
	// the tap of a kernel takes.
	Fragment bool

	Neigh  neigh.Responder
	DHCP   *dhcp.Server   // nil: none
	DHCPv6 *dhcpv6.Server // nil: none
	Rules  rules.Rules
	Host   sock.Host
	V4, V6 bool // which families are carried

	NoTCP, NoUDP, NoICMP bool // protocols that are not

	// Guest is where the guest is taken to be until it is seen elsewhere. Frozen4 and Frozen6 make
	// that stay so; IPv6 link-local addresses are always observed.
	Guest            rules.Guest
	Frozen4, Frozen6 bool

	// HostHas reports whether an address is one of the host's, which a guest is not believed to
	// have unless its kernel says so; nil: none is. One goroutine calls it, and may wait.
	HostHas func(netip.Addr) bool

	// of flows, which others may share; nil: flow.MaxFlows of our own
	Limit *flow.Limit
	// ceiling of what flows hold, in bytes, flow.LeastMemory or more; 0: flow.DefaultMemory
	Memory                       int
	UDPTimeout, UDPStreamTimeout time.Duration
	SYNRetries, SYNLinear        uint8 // see flow.Env; SYNRetries 0: 7 and 4
	RTOMax                       time.Duration
	PeekOff4, PeekOff6           bool
}

// Engine carries flows between a guest's link and the host's sockets.
type Engine struct {
	cfg   Config
	env   *flow.Env
	table *flow.Table
	pool  *flow.Pool

	datagrams int // that are put together of fragments at a time

	services  services
	adverts   adverts
	greeted   atomic.Bool // the guest was
	guestAddr guestAddr
	evictor   *flow.Evictor
	admission admission
	sharing   sharing

	listeners atomic.Uint64 // that were served so far

	mu            sync.Mutex // between a flow's beginning and the engine's end
	ended         bool       // no more flows
	queuedAccepts map[flow.Key]*queuedAccept
	flows         sync.WaitGroup
}

var errEnded = errors.New("engine has ended")

// New returns an engine that is not running yet.
func New(cfg Config) *Engine {
	if cfg.Limit == nil {
		cfg.Limit = flow.NewLimit(flow.MaxFlows)
	}
	if cfg.SYNRetries == 0 {
		cfg.SYNRetries, cfg.SYNLinear = 7, 4
	}
	if cfg.Host.Ports == nil {
		cfg.Host.Ports = new(sock.Ports)
	}
	slabs, datagrams, held := divide(cfg.Memory)
	e := &Engine{
		cfg:       cfg,
		table:     flow.NewTable(cfg.Limit),
		pool:      flow.NewPool(slabs),
		datagrams: datagrams,
		env: &flow.Env{
			Link: cfg.Link, Log: cfg.Log, OurMAC: cfg.OurMAC, MTU: cfg.MTU, Fragment: cfg.Fragment && cfg.MTU > 0,
			PeekOff4: cfg.PeekOff4, PeekOff6: cfg.PeekOff6,
			SYNRetries: cfg.SYNRetries, SYNLinear: cfg.SYNLinear, RTOMax: cfg.RTOMax,
			UDPTimeout: cfg.UDPTimeout, UDPStreamTimeout: cfg.UDPStreamTimeout,
			Closer: flow.NewCloser(),
		},
		services: newServices(&cfg),
		adverts:  newAdverts(),
	}
	cfg.Host.Ports.Forwarded = e.sharing.forwarded
	e.env.Held.SetMax(held)
	e.evictor = flow.NewEvictor(cfg.Limit)
	e.admission.open(e)
	e.services.budget(&e.env.Load)
	e.env.Peers = flow.Budget{Load: &e.env.Load, Part: beginPart}
	e.env.EvictOne = cfg.Limit.Reclaim
	cfg.Limit.AddReclaimer(reclaimer{e})
	e.env.SetGuestMAC(cfg.GuestMAC)
	e.guestAddr.begin(&cfg, e.env.SetGuestMAC)
	e.env.Present = e.present
	e.env.Sharing = shares{e}
	if t := cfg.Neigh.Neighbours; t != nil {
		e.env.MACOf = t.Lookup
	}
	if cfg.Backpressure != nil {
		e.env.Backpressure = cfg.Backpressure
		cfg.Backpressure.OnRoom(e.env.Room)
	}
	return e
}

// Counters returns the engine's counters, which go on counting.
func (e *Engine) Counters() *flow.Counters { return &e.env.Counters }

// Flows returns the number of flows there are now.
func (e *Engine) Flows() int { return e.table.Len() }

// Run carries frames until ctx ends, which returns nil, or until the link fails, which returns
// why. Everything it has started has ended when it returns, and the link is closed.
func (e *Engine) Run(ctx context.Context) error {
	ended, end := context.WithCancel(ctx)
	defer end()

	var parts sync.WaitGroup
	var failure error
	parts.Go(func() {
		failure = e.read(e.cfg.Link)
		end()
	})
	e.startServices(ended, &parts)
	parts.Go(func() { e.verify(ended) })
	parts.Go(func() { e.admission.run(ended) })
	<-ended.Done()
	e.cfg.Link.Close()
	parts.Wait()
	e.endFlows()
	e.env.Closer.End()
	if ctx.Err() != nil {
		return nil
	}
	return failure
}

// endFlows ends all flows and waits for that. None begins any more: what a flow leaves when it ends
// may open another one.
func (e *Engine) endFlows() {
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	e.table.Each((*flow.Port).Stop)
	e.flows.Wait()
}

// read takes frames off q until q is closed or fails.
func (e *Engine) read(q tapio.Link) error {
	var (
		r    = reader{e: e}
		pkt  frame.Packet
		slab = e.pool.Get()
	)
	defer func() { slab.Release() }()
	for {
		room := slab.Room()
		if room == nil {
			r.deliver(slab)
			if slab.Idle() {
				slab.Reset()
				r.start = 0
				continue
			}
			next := e.pool.Get()
			if next == nil {
				// Nobody has caught up. What comes meanwhile is lost, as on a card whose ring
				// is full.
				if err := e.lose(q); err != nil {
					return readError(err)
				}
				continue
			}
			slab.Release()
			slab = next
			r.start = 0
			continue
		}
		n, err := q.TryRead(room)
		if n == 0 && err == nil {
			r.deliver(slab)
			if slab.Idle() {
				slab.Reset()
				r.start = 0
				room = slab.Room()
			}
			if n, err = e.spin(q, room); n == 0 && err == nil {
				n, err = q.Read(room)
			}
		}
		if err != nil {
			r.deliver(slab)
			return readError(err)
		}
		if why := frame.Parse(room[:n], &pkt); why != 0 {
			e.env.Counters.Dropped[why].Add(1)
			continue
		}
		r.sort(slab, room[:n], &pkt)
	}
}

// spin looks for a frame for as long as that is worth while; 0 and nil if there is none.
func (e *Engine) spin(q tapio.Link, room []byte) (int, error) {
	for e.env.Spinner.ShouldSpin() {
		e.env.Spinner.Yield()
		if n, err := q.TryRead(room); n != 0 || err != nil {
			return n, err
		}
	}
	e.env.Spinner.Missed()
	return 0, nil
}

// lose reads and drops one frame.
func (e *Engine) lose(q tapio.Link) error {
	b := e.env.Buffer()
	defer e.env.PutBuffer(b)
	_, err := q.Read(b[:])
	e.env.Counters.SlabsOut.Hit(e.cfg.Log, "Frames come faster than they are dealt with, some are lost")
	return err
}

func readError(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return fmt.Errorf("read from the guest's link: %w", err)
}

// reader is what the reader goroutine keeps between frames: the run that grows at the end of the
// slab, and for whom it is.
type reader struct {
	e     *Engine
	start int        // where the run begins
	port  *flow.Port // whom it is for
	any   bool       // there is a run

	key  flow.Key // of the last frame that belonged to a flow
	last *flow.Port

	last4, last6 station // sources of the last packets
	turn         uint32  // of seen, when they were noted
}

// sort adds the frame b, parsed as pkt, to the run it belongs to.
func (r *reader) sort(slab *flow.Slab, b []byte, pkt *frame.Packet) {
	port := r.find(b, pkt)
	if port == drop {
		return
	}
	if r.any && r.port != port {
		r.deliver(slab)
	}
	if !r.any {
		r.any, r.port, r.start = true, port, slab.Used()
	}
	slab.Append(len(b), pkt)
}

// drop stands for a frame that goes nowhere.
var drop = flow.NewPort(flow.Key{})

// look notes where the frame b, parsed as pkt, comes from.
func (r *reader) look(b []byte, pkt *frame.Packet) {
	s := &r.e.guestAddr
	mac := frame.Src(b)
	if turn := s.turn.Load(); turn != r.turn {
		r.last4, r.last6, r.turn = station{}, station{}, turn
	}
	switch {
	case pkt.Kind == frame.ARP:
		if r.e.cfg.V4 {
			s.listen(b, pkt)
			from := neigh.Sender(b)
			s.note(&from, mac)
		}
	case !pkt.V6:
		if (pkt.Src != r.last4.addr || mac != r.last4.mac) && r.e.cfg.V4 {
			r.last4 = station{pkt.Src, mac}
			s.note(&r.last4.addr, mac)
		}
	case r.e.cfg.V6:
		if pkt.Kind == frame.NDP {
			s.listen(b, pkt)
		}
		if pkt.Src != r.last6.addr || mac != r.last6.mac {
			r.last6 = station{pkt.Src, mac}
			s.note(&r.last6.addr, mac)
		}
	}
}

// find returns the port the frame is for, making a flow if the frame opens one; drop if there is
// none.
func (r *reader) find(b []byte, pkt *frame.Packet) *flow.Port {
	e := r.e
	if pkt.Kind == frame.TooBig { // and its source need not be the guest
		return e.services.refuse
	}
	r.look(b, pkt)
	k := keyOf(pkt)
	switch pkt.Kind {
	case frame.TCP, frame.UDP, frame.ICMPEcho, frame.ICMPv6Echo, frame.Fragment:
		if pkt.V6 && !e.cfg.V6 || !pkt.V6 && !e.cfg.V4 {
			return drop
		}
		if pkt.Kind == frame.Fragment {
			return e.services.fragments
		}
	default:
		return e.services.neigh
	}
	if r.last != nil && k == r.key {
		if !r.last.Gone() {
			return r.last
		}
		r.last = nil
	}
	p := e.table.Lookup(&k)
	if p == nil {
		if p = e.create(&k, b, pkt); *p.Key() != k {
			return p // a service, drop, or one that may take the flow as its own
		}
	}
	r.key, r.last = k, p
	return p
}

// deliver hands the run over, if there is one.
func (r *reader) deliver(slab *flow.Slab) {
	if !r.any {
		return
	}
	r.any = false
	if !r.e.services.ready(r.port) {
		r.e.env.Counters.ServiceDrops.Hit(r.e.cfg.Log, "Too many questions at a time, some get no answer")
		return
	}
	run := slab.Run(r.start)
	if r.port.Offer(run) {
		return
	}
	if !isService(r.port) {
		// The actor may only want a turn: while frames come without a gap, the reader does not
		// sleep.
		if runtime.Gosched(); r.port.Offer(run) {
			return
		}
	}
	run.Release()
	if isService(r.port) {
		r.e.env.Counters.ServiceDrops.Hit(r.e.cfg.Log, "Too many questions at a time, some get no answer")
	} else {
		r.e.env.Counters.MailboxFull.Add(1)
	}
}

// keyOf returns the key of the flow that a frame, parsed as pkt, belongs to.
func keyOf(pkt *frame.Packet) flow.Key {
	return flow.Key{Guest: pkt.Src, Remote: pkt.Dst, GuestPort: pkt.SrcPort, RemotePort: pkt.DstPort, Proto: uint16(pkt.Proto)}
}

// create makes the flow that the frame b, parsed as pkt, opens, and returns its port; if it opens
// none, or has to wait for that, that of the service or the other flow it is for, or drop.
func (e *Engine) create(k *flow.Key, b []byte, pkt *frame.Packet) *flow.Port {
	if pkt.Kind == frame.TCP && e.admission.full.Load() && tcp.Opens(b[pkt.L4:pkt.End]) {
		e.admission.lose() // before anything is found out about it
		return drop
	}
	var o openPlan
	p := e.plan(k, b, pkt, &o)
	if o.serve == nil {
		if !isService(p) && e.env.Peers.Delay(flow.Now()) > 0 {
			e.admission.lose() // the first datagram for another peer of a flow's
			return drop
		}
		return p
	}
	if !e.admission.admit(b, pkt) {
		return drop
	}
	if p = e.open(k, &o); p == drop || o.exists {
		e.admission.admitNext(func() {}) // the reader does not wait
	}
	return p
}

// openPlan is how a flow of the guest's begins.
type openPlan struct {
	serve  func(*flow.Port) // nil: it does not
	made   *atomic.Uint64   // counts it
	shares bool             // others may use its socket
	exists bool             // somebody else was faster
}

// plan finds out how the flow begins that the frame b, parsed as pkt, opens. If it opens none, plan
// returns the port of the service the frame is for, or of the flow whose socket it may share, or
// drop.
func (e *Engine) plan(k *flow.Key, b []byte, pkt *frame.Packet, o *openPlan) *flow.Port {
	if p := e.services.claim(pkt); p != nil {
		return p
	}
	src, dst := netip.AddrFrom16(pkt.Src).Unmap(), netip.AddrFrom16(pkt.Dst).Unmap()
	if !unicast(src) || pkt.SrcPort == 0 && pkt.Kind != frame.ICMPEcho && pkt.Kind != frame.ICMPv6Echo {
		return drop
	}
	addrs := e.Rules()
	switch addrs.Verdict(k.Proto, netip.AddrPortFrom(dst, pkt.DstPort)) {
	case rules.Silent:
		return drop
	case rules.Refused, rules.Answered:
		return e.services.refuse
	}
	host := addrs.Out(k.Proto, netip.AddrPortFrom(dst, pkt.DstPort))
	switch pkt.Kind {
	case frame.TCP:
		if e.cfg.NoTCP || !unicast(dst) || pkt.DstPort == 0 {
			return drop
		}
		if !tcp.Opens(b[pkt.L4:pkt.End]) {
			return e.services.refuse
		}
		o.made = &e.env.Counters.TCP
		o.serve = func(p *flow.Port) { tcp.Serve(e.env, p, &e.cfg.Host, host) }
	case frame.UDP:
		if e.cfg.NoUDP || dst.IsUnspecified() || pkt.DstPort == 0 {
			return drop
		}
		if o.shares = mayShare(netip.AddrPortFrom(dst, pkt.DstPort), host) && e.namesake(k, host) == nil; o.shares {
			if p := e.sharer(k); p != nil {
				return p
			}
		}
		o.made = &e.env.Counters.UDP
		o.serve = func(p *flow.Port) { udp.Serve(e.env, p, e.dialer(p.Key(), host), host) }
	default:
		if e.cfg.NoICMP || !unicast(dst) {
			return drop
		}
		o.made = &e.env.Counters.ICMP
		o.serve = func(p *flow.Port) { icmp.Serve(e.env, p, &e.cfg.Host, host.Addr()) }
	}
	if e.cfg.Announce.On() {
		silent := o.serve
		o.serve = func(p *flow.Port) {
			defer e.cfg.Announce.FromGuest(p.Key(), host).End()
			silent(p)
		}
	}
	return nil
}

// open begins the flow k, which was let in, as o says, and returns its port: that of another one if
// o says so then, drop if there is none.
func (e *Engine) open(k *flow.Key, o *openPlan) *flow.Port {
	p := flow.NewPort(*k)
	p.OnOpened(e.admission.opened)
	var offer *flow.Alias
	if o.shares {
		offer = e.offerToShare(p)
	}
	err := e.start(p, o.made, o.serve, false)
	if err != nil && offer != nil {
		e.table.Drop(offer)
		p.Close() // or what somebody has offered by now stays
	}
	switch {
	case errors.Is(err, flow.ErrExists):
		o.exists = true
		if p = e.table.Lookup(k); p != nil {
			return p // made by the host a moment ago
		}
		return drop
	case err != nil:
		return drop
	}
	return p
}

// start has serve run the flow of p, which is new, and counts it as made. All flows begin here. It
// may be called by anyone; errors are those of flow.Table's Insert, and errEnded.
func (e *Engine) start(p *flow.Port, made *atomic.Uint64, serve func(*flow.Port), fromHost bool) error {
	if p.Key().Proto == frame.ProtoTCP {
		p.OnLost(e.again)
	}
	p.CloseBy(e.env.Closer)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return errEnded
	}
	if err := e.admit(p, fromHost); err != nil {
		return err
	}
	made.Add(1)
	e.flows.Go(func() {
		defer e.end(p)
		serve(p)
	})
	return nil
}

// admit counts p among the flows. Errors are those of flow.Table's Insert.
func (e *Engine) admit(p *flow.Port, fromHost bool) error {
	err := e.table.Insert(p)
	if errors.Is(err, flow.ErrExists) {
		return err
	}
	var victim *flow.Port
	ok := false
	if err == nil {
		if victim, ok = e.evictor.Add(p, fromHost); !ok {
			e.table.Remove(p)
		}
	} // else the limit has seen to it
	if !e.evict(victim) && err == nil && (e.cfg.Limit.Scarce() || !ok && p.Key().Proto == frame.ProtoUDP) {
		e.cfg.Limit.ReclaimIdle() // the new one has no answer yet, and would give way to itself
	}
	if !ok {
		e.env.Counters.TableFull.Hit(e.cfg.Log, "Flow table is full, new flows are refused")
		return flow.ErrFull
	}
	return nil
}

// evict has the flow of p, if it is not nil, end to make room for another one. It reports whether
// it does.
func (e *Engine) evict(p *flow.Port) bool {
	if p == nil {
		return false
	}
	e.env.Counters.Evicted.Hit(e.cfg.Log, "Too many flows without an answer, the oldest give way to others")
	p.Evict()
	return true
}

// reclaimer is the flow.Reclaimer of an engine.
type reclaimer struct{ *Engine }

// EvictUnanswered implements flow.Reclaimer.
func (e reclaimer) EvictUnanswered() bool { return e.evict(e.evictor.Victim()) }

// LongestIdle implements flow.Reclaimer.
func (e reclaimer) LongestIdle() (flow.Time, func()) {
	p, last := e.evictor.LongestIdle()
	if p == nil {
		return 0, nil
	}
	return last, func() {
		if e.evictor.Take(p) {
			e.env.Counters.Evicted.Add(1)
			e.env.Counters.EvictedIdle.Hit(e.cfg.Log, "Too many flows, those of UDP that are idle for longest give way to others")
			p.Evict()
		}
	}
}

// end is the edge of every flow: whatever its actor did, it is out of the table and its port is
// closed.
func (e *Engine) end(p *flow.Port) {
	if v := recover(); v != nil {
		e.env.Counters.Panics.Add(1)
		e.cfg.Log.Error("flow ended by a fault", zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
	}
	e.evictor.Remove(p)
	e.table.Remove(p)
	if a := p.Shared(); a != nil {
		e.table.Drop(a)
	}
	p.Close()
	p.Opened() // if it has not said so
	if run, ok := p.HandedOver(); ok {
		e.again(run)
	}
	e.nextQueuedAccept(p.Key())
}

func unicast(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
