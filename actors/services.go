package actors

import (
	"context"
	"errors"
	"net/netip"
	"runtime/debug"
	"sync"

	"go.uber.org/zap"

	"fusilli/actors/dhcp"
	"fusilli/actors/dhcpv6"
	"fusilli/actors/flow"
	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/actors/tcp"
	"fusilli/tapio/frame"
)

// services are the mailboxes of the actors that answer what belongs to no flow. Each has its own,
// so that a flood of one kind of question costs the others nothing.
type services struct {
	neigh *flow.Port // ARP and NDP
	// TCP segments of no connection, what we answer for others, and what routers say
	refuse *flow.Port
	dhcp   *flow.Port // nil: there is no server
	dhcpv6 *flow.Port // nil: there is no server

	fragments *flow.Port // of IP packets

	budgets map[*flow.Port]*flow.Budget // of all but fragments, which are part of what flows carry
}

// servicePart is the part of a CPU for each service while flows have work.
const servicePart = 16

// budget has the services' time be limited while load is busy.
func (s *services) budget(load *flow.BulkLoad) {
	s.budgets = make(map[*flow.Port]*flow.Budget)
	for _, p := range []*flow.Port{s.neigh, s.refuse, s.dhcp, s.dhcpv6} {
		s.budgets[p] = &flow.Budget{Load: load, Part: servicePart}
	}
}

// ready reports whether p is no service, or one that has time for questions.
func (s *services) ready(p *flow.Port) bool {
	if !isService(p) || p == s.fragments {
		return true
	}
	a := s.budgets[p]
	return a.Delay(flow.Now()) == 0
}

func newServices(cfg *Config) services {
	port := func(wanted bool) *flow.Port {
		if !wanted {
			return nil
		}
		return flow.NewPort(flow.Key{})
	}
	return services{
		neigh: port(true), refuse: port(true), dhcp: port(cfg.DHCP != nil), dhcpv6: port(cfg.DHCPv6 != nil),
		fragments: port(true),
	}
}

// isService reports whether p is no flow's.
func isService(p *flow.Port) bool { return p.Key().Proto == 0 }

// claim returns the service that a datagram is for, drop if it is for one that there is not, and
// nil if it is for none.
func (s *services) claim(pkt *frame.Packet) *flow.Port {
	var p *flow.Port
	switch {
	case pkt.Kind != frame.UDP:
		return nil
	case !pkt.V6 && pkt.DstPort == dhcp.ServerPort:
		p = s.dhcp
	case pkt.V6 && pkt.DstPort == dhcpv6.ServerPort:
		p = s.dhcpv6
	default:
		return nil
	}
	if p == nil {
		return drop
	}
	return p
}

// startServices starts the services, which end with ctx, as goroutines of parts.
func (e *Engine) startServices(ctx context.Context, parts *sync.WaitGroup) {
	for _, s := range []struct {
		port   *flow.Port
		answer answer
		later  *adverts
	}{
		{e.services.neigh, e.answerNeigh, &e.adverts},
		{e.services.refuse, e.answerStray, nil},
		{e.services.dhcp, e.answerDHCP, nil},
		{e.services.dhcpv6, e.answerDHCPv6, nil},
	} {
		if s.port != nil {
			parts.Go(func() { e.serve(ctx, s.port, s.answer, s.later) })
		}
	}
	parts.Go(func() { e.reassemble(ctx) })
}

// answer writes the reply to the frame v, parsed as pkt, to out, and returns its length, 0 for
// none.
type answer func(v *flow.View, pkt *frame.Packet, out []byte) int

// serve is the goroutine of one service. later, if not nil, is what it sends unasked.
func (e *Engine) serve(ctx context.Context, p *flow.Port, answer answer, later *adverts) {
	defer p.Close()
	ready, due := later.begin()
	defer later.end()
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-p.Inbox():
			e.serveRun(&r, e.services.budgets[p], answer)
		case <-ready:
			later.next()
		case <-due:
			e.advertise(later.next())
		}
	}
}

// serveRun answers the frames of r, as many as budget, if it is not nil, has time for, and releases
// it. Whatever a frame brings about ends with its run.
func (e *Engine) serveRun(r *flow.Run, budget *flow.Budget, answer answer) {
	buf := e.env.Buffer()
	defer func() {
		if v := recover(); v != nil {
			e.env.Counters.Panics.Add(1)
			e.cfg.Log.Error("service stopped by a fault", zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
		}
		e.env.PutBuffer(buf)
		r.Release()
	}()
	var (
		v   flow.View
		pkt frame.Packet
	)
	begin := flow.Now()
	for r.Next(&v) {
		if frame.Parse(v.Frame, &pkt) != frame.OK {
			continue
		}
		if budget != nil && budget.Delay(begin) > 0 {
			e.env.Counters.ServiceDrops.Hit(e.cfg.Log, "Too many questions at a time, some get no answer")
			continue
		}
		e.send(buf[:answer(&v, &pkt, buf[:])])
		if budget != nil {
			now := flow.Now()
			budget.Charge(1, begin, now)
			begin = now
		}
	}
}

// send sends a frame of the services; one of no length is none.
func (e *Engine) send(b []byte) {
	if len(b) > 0 && e.env.Link.Write(b) != nil {
		e.env.Counters.LinkDropped.Add(1)
	}
}

// responder returns what answers about the link now: the IPv6 address that the guest is assigned
// may be one that it was seen with.
func (e *Engine) responder() neigh.Responder {
	r := e.cfg.Neigh
	if a := e.Rules().Assigned6; a.IsValid() {
		r.Prefix = a.As16()
	}
	return r
}

func (e *Engine) answerNeigh(v *flow.View, pkt *frame.Packet, out []byte) int {
	n := 0
	switch {
	case pkt.Kind == frame.ARP && e.cfg.V4:
		n = e.cfg.Neigh.ARP(v.Frame, out)
	case pkt.Kind == frame.NDP && e.cfg.V6:
		r := e.responder()
		if n = r.NDP(pkt, v.Frame, out); n > 0 {
			line := "NDP: received NS, sending NA"
			if v.Frame[pkt.L4] == neigh.RouterSolicitation {
				line = "NDP: received RS, sending RA"
			}
			e.cfg.Log.Info(line) // Log is limited
		}
	}
	if n < 0 {
		e.env.Counters.BadNeigh.Add(1)
		n = 0
	}
	return n
}

func (e *Engine) answerStray(v *flow.View, pkt *frame.Packet, out []byte) int {
	if pkt.Kind == frame.TooBig {
		e.tooBig(v.Frame, pkt)
		return 0
	}
	addrs := e.Rules()
	switch addrs.Verdict(uint16(pkt.Proto), netip.AddrPortFrom(frame.NetIP(pkt.Dst), pkt.DstPort)) {
	case rules.Refused:
		return frame.PutUnreachable(out, e.env.OurMAC, v.Frame, pkt)
	case rules.Answered:
		return frame.PutEchoReply(out, e.env.OurMAC, v.Frame, pkt)
	}
	if pkt.Kind != frame.TCP {
		return 0
	}
	e.env.Counters.NoFlow.Add(1)
	return tcp.Refuse(e.env, v.Frame, pkt, out)
}

// tooBig tells the connection that the message b of a router, parsed as pkt, is about.
func (e *Engine) tooBig(b []byte, pkt *frame.Packet) {
	q, ok := frame.QuotedTCP(b, pkt)
	if !ok {
		return
	}
	k := flow.Key{Guest: q.Dst, Remote: q.Src, GuestPort: q.DstPort, RemotePort: q.SrcPort, Proto: frame.ProtoTCP}
	if p := e.table.Lookup(&k); p != nil {
		p.TooBig(q.Seq, q.MTU)
	}
}

func (e *Engine) answerDHCP(v *flow.View, pkt *frame.Packet, out []byte) int {
	n, err := e.cfg.DHCP.Answer(pkt, v.Frame, out)
	if errors.Is(err, dhcp.ErrMalformed) {
		e.env.Counters.BadDHCP.Add(1)
	}
	return n
}

func (e *Engine) answerDHCPv6(v *flow.View, pkt *frame.Packet, out []byte) int {
	n, err := e.cfg.DHCPv6.Answer(pkt, v.Frame, out)
	switch {
	case err == nil:
		e.guestAddr.told6(frame.Src(v.Frame))
	case errors.Is(err, dhcpv6.ErrMalformed):
		e.env.Counters.BadDHCPv6.Add(1)
	}
	return n
}
