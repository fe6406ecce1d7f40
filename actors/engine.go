package actors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

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

// maxSlabs bounds the memory for frames between reader and actors: 64 MiB.
const maxSlabs = 512

// Config says what an Engine translates between.
type Config struct {
	Link tapio.Link // closed by Run
	Log  *zap.Logger

	OurMAC   frame.MAC // source of all frames to the guest
	GuestMAC frame.MAC // destination until the guest has sent a frame
	MTU      int       // of the link, in bytes of IP packet; 0: not known

	Neigh  neigh.Responder
	Rules  rules.Rules
	Host   sock.Host
	V4, V6 bool // which families are carried

	MaxFlows                     int // 0: flow.MaxFlows
	UDPTimeout, UDPStreamTimeout time.Duration
	PeekOff4, PeekOff6           bool
}

// Engine carries flows between a guest's link and the host's sockets.
type Engine struct {
	cfg   Config
	env   *flow.Env
	table *flow.Table
	pool  *flow.Pool

	services chan flow.Run
	flows    sync.WaitGroup
	full     atomic.Bool // the table is full, and that was logged
}

// New returns an engine that is not running yet.
func New(cfg Config) *Engine {
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = flow.MaxFlows
	}
	e := &Engine{
		cfg:   cfg,
		table: flow.NewTable(cfg.MaxFlows),
		pool:  flow.NewPool(maxSlabs),
		env: &flow.Env{
			Link: cfg.Link, Log: cfg.Log, OurMAC: cfg.OurMAC, MTU: cfg.MTU,
			PeekOff4: cfg.PeekOff4, PeekOff6: cfg.PeekOff6,
			UDPTimeout: cfg.UDPTimeout, UDPStreamTimeout: cfg.UDPStreamTimeout,
		},
		services: make(chan flow.Run, serviceMailbox),
	}
	e.env.SetGuestMAC(cfg.GuestMAC)
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
		close(e.services) // the reader is the only one who sends
	})
	parts.Go(e.serve)
	<-ended.Done()
	e.cfg.Link.Close()
	parts.Wait()
	e.table.Each((*flow.Port).Stop)
	e.flows.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return failure
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
	for e.env.Rhythm.Hot() {
		e.env.Rhythm.Yield()
		if n, err := q.TryRead(room); n != 0 || err != nil {
			return n, err
		}
	}
	e.env.Rhythm.Cool()
	return 0, nil
}

// lose reads and drops one frame.
func (e *Engine) lose(q tapio.Link) error {
	b := e.env.Buffer()
	defer e.env.PutBuffer(b)
	_, err := q.Read(b[:])
	e.env.Counters.SlabsOut.Add(1)
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
	port  *flow.Port // whom it is for; nil: the services
	any   bool       // there is a run

	key  flow.Key // of the last frame that belonged to a flow
	last *flow.Port
}

// sort adds the frame b, parsed as pkt, to the run it belongs to.
func (r *reader) sort(slab *flow.Slab, b []byte, pkt *frame.Packet) {
	e := r.e
	if e.env.SetGuestMAC(frame.MAC(b[frame.VnetLen+6:])) {
		e.cfg.Log.Debug("New guest MAC address observed")
	}
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

// find returns the port the frame is for, making a flow if the frame opens one; nil for the
// services, drop if there is none.
func (r *reader) find(b []byte, pkt *frame.Packet) *flow.Port {
	e := r.e
	k := flow.Key{Guest: pkt.Src, Remote: pkt.Dst, GuestPort: pkt.SrcPort, RemotePort: pkt.DstPort, Proto: uint16(pkt.Proto)}
	switch pkt.Kind {
	case frame.TCP, frame.UDP, frame.ICMPEcho, frame.ICMPv6Echo:
		if pkt.V6 && !e.cfg.V6 || !pkt.V6 && !e.cfg.V4 {
			return drop
		}
	default:
		return nil
	}
	if r.last != nil && k == r.key {
		if !r.last.Gone() {
			return r.last
		}
		r.last = nil
	}
	p := e.table.Lookup(&k)
	if p == nil {
		p = e.create(&k, b, pkt)
	}
	if p != nil && p != drop {
		r.key, r.last = k, p
	}
	return p
}

// deliver hands the run over, if there is one.
func (r *reader) deliver(slab *flow.Slab) {
	if !r.any {
		return
	}
	r.any = false
	run := slab.Run(r.start)
	if r.port != nil {
		if !r.port.Offer(run) {
			run.Release()
			r.e.env.Counters.MailboxFull.Add(1)
		}
		return
	}
	select {
	case r.e.services <- run:
	default:
		run.Release()
		r.e.env.Counters.ServiceDrops.Add(1)
	}
}

// create makes the flow that the frame b, parsed as pkt, opens, and returns its port; nil if the
// frame opens none but wants an answer, drop if it wants none.
func (e *Engine) create(k *flow.Key, b []byte, pkt *frame.Packet) *flow.Port {
	src, dst := netip.AddrFrom16(pkt.Src).Unmap(), netip.AddrFrom16(pkt.Dst).Unmap()
	if !unicast(src) || pkt.SrcPort == 0 && pkt.Kind != frame.ICMPEcho && pkt.Kind != frame.ICMPv6Echo {
		return drop
	}
	host := e.cfg.Rules.Out(k.Proto, netip.AddrPortFrom(dst, pkt.DstPort))
	var serve func(*flow.Port)
	switch pkt.Kind {
	case frame.TCP:
		if !unicast(dst) || pkt.DstPort == 0 {
			return drop
		}
		if !tcp.Opens(b[pkt.L4:pkt.End]) {
			return nil
		}
		e.env.Counters.TCP.Add(1)
		serve = func(p *flow.Port) { tcp.Serve(e.env, p, &e.cfg.Host, host) }
	case frame.UDP:
		if dst.IsUnspecified() || pkt.DstPort == 0 || pkt.DstPort == 67 && !pkt.V6 || pkt.DstPort == 547 && pkt.V6 {
			return drop
		}
		e.env.Counters.UDP.Add(1)
		serve = func(p *flow.Port) { udp.Serve(e.env, p, &e.cfg.Host, host) }
	default:
		if !unicast(dst) {
			return drop
		}
		e.env.Counters.ICMP.Add(1)
		serve = func(p *flow.Port) { icmp.Serve(e.env, p, &e.cfg.Host, host.Addr()) }
	}
	p := flow.NewPort(*k)
	if err := e.table.Insert(p); err != nil {
		e.env.Counters.TableFull.Add(1)
		if !e.full.Swap(true) {
			e.cfg.Log.Warn("Flow table is full, new flows are refused", zap.Int("flows", e.cfg.MaxFlows))
		}
		return drop
	}
	e.flows.Go(func() {
		defer e.end(p)
		serve(p)
	})
	return p
}

// end is the edge of every flow: whatever its actor did, it is out of the table and its port is
// closed.
func (e *Engine) end(p *flow.Port) {
	if v := recover(); v != nil {
		e.env.Counters.Panics.Add(1)
		e.cfg.Log.Error("flow ended by a fault", zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
	}
	e.table.Remove(p)
	p.Close()
}

func unicast(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
