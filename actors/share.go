package actors

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// sharing says which UDP ports of the host are wanted by whom: a port has either sockets that
// listen for what strangers send to it (package forward), or one that a flow of the guest's shares
// with others.
type sharing struct {
	mu        sync.Mutex
	listeners map[uint16]int
	same      map[uint16]int // those among them that lead to the guest's port of the same number
	claims    map[uint16][]*flow.Port
}

// Listens says that somebody listens on the UDP port of the host, for the guest's port to, from now
// on, or does not any more. Flows that share a socket with that port end: the guest's next datagram
// gives each its own. Anyone may call it.
func (e *Engine) Listens(port, to uint16, on bool) {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners == nil {
		s.listeners, s.same = make(map[uint16]int), make(map[uint16]int)
	}
	count(s.listeners, port, on)
	if port == to {
		count(s.same, port, on)
	}
	if !on {
		return
	}
	for _, p := range s.claims[port] {
		p.Stop()
	}
}

// count counts one more with port, or one less.
func count(m map[uint16]int, port uint16, on bool) {
	if on {
		m[port]++
	} else if m[port]--; m[port] <= 0 {
		delete(m, port)
	}
}

// forwarded reports whether the guest's port of that number is forwarded by the same port of the
// host, and no other of the guest's is.
func (s *sharing) forwarded(port uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.same[port] > 0 && s.same[port] == s.listeners[port]
}

// Shared returns the ports of the host at which flows share a socket. Anyone may call it.
func (e *Engine) Shared() []uint16 {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.claims))
}

// shares is the flow.Sharing of an engine.
type shares struct{ *Engine }

// Claim implements flow.Sharing.
func (e shares) Claim(p *flow.Port, port uint16) bool {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners[port] > 0 {
		return false
	}
	if s.claims == nil {
		s.claims = make(map[uint16][]*flow.Port)
	}
	s.claims[port] = append(s.claims[port], p) // one of each family, as a rule
	return true
}

// Disclaim implements flow.Sharing.
func (e shares) Disclaim(p *flow.Port, port uint16) {
	s := &e.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	var rest []*flow.Port
	for _, q := range s.claims[port] {
		if q != p {
			rest = append(rest, q)
		}
	}
	if rest == nil {
		delete(s.claims, port)
		return
	}
	s.claims[port] = rest
}

// Join implements flow.Sharing. It counts and tells of the flow as of others.
func (e shares) Join(p *flow.Port, k *flow.Key) (*flow.Member, error) {
	m, err := e.join(p, k, false)
	if err == nil {
		m.Announced = e.cfg.Announce.FromGuest(k, netip.AddrPortFrom(frame.NetIP(k.Remote), k.RemotePort))
	}
	return m, err
}

// Meet implements flow.Sharing.
func (e shares) Meet(p *flow.Port, k *flow.Key, peer, local netip.AddrPort) (*flow.Member, error) {
	if e.cfg.NoUDP || !e.carries(k) {
		return nil, errNotCarried
	}
	m, err := e.join(p, k, true)
	if err == nil {
		m.Announced = e.cfg.Announce.FromHost(k, peer, local)
	}
	return m, err
}

func (e shares) join(p *flow.Port, k *flow.Key, fromHost bool) (*flow.Member, error) {
	if !e.evictor.AddShared(fromHost) {
		e.env.Counters.TableFull.Hit(e.cfg.Log, "Flow table is full, new flows are refused")
		return nil, flow.ErrFull
	}
	m := &flow.Member{Alias: flow.NewAlias(*k, p, true), FromHost: fromHost}
	if err := e.table.Add(m.Alias); err != nil {
		e.evictor.RemoveShared(fromHost)
		if err == flow.ErrFull {
			e.env.Counters.TableFull.Hit(e.cfg.Log, "Flow table is full, new flows are refused")
		}
		return nil, err
	}
	e.env.Counters.UDP.Add(1)
	return m, nil
}

// Leave implements flow.Sharing.
func (e shares) Leave(m *flow.Member) {
	e.table.Drop(m.Alias)
	e.evictor.RemoveShared(m.FromHost)
	m.Announced.End()
}

// Accept implements flow.Sharing.
func (e shares) Accept(fd int, k flow.Key) { e.AcceptUDP(fd, k, nil) }

// Elsewhere implements flow.Sharing.
func (e shares) Elsewhere(run flow.Run) { e.deal(run, nil) }

// deal has each datagram of run begin a flow of its own, if there is none yet, but for those of the
// flow but.
func (e *Engine) deal(run flow.Run, but *flow.Key) {
	var v flow.View
	for rest := run; ; {
		at := rest
		if !rest.Next(&v) {
			break
		}
		one := at.Until(&rest)
		var pkt frame.Packet
		if frame.Parse(v.Frame, &pkt) != frame.OK {
			one.Release()
			continue
		}
		k := keyOf(&pkt)
		if but != nil && k == *but {
			one.Release()
			continue
		}
		p := e.table.Lookup(&k)
		if p == nil {
			p = e.create(&k, v.Frame, &pkt)
		}
		if p == drop || p.Gone() || !p.Offer(one) {
			one.Release()
		}
	}
	run.Release()
}

// mayShare reports whether the guest's flow to dst, which leads to host, may share a socket with
// others of the same port: one to an ordinary host of the outside.
func mayShare(dst, host netip.AddrPort) bool {
	a := dst.Addr()
	return host == dst && unicast(a) && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

// sharer returns the port that the flow k may share a socket with, or nil.
func (e *Engine) sharer(k *flow.Key) *flow.Port {
	end := k.Endpoint()
	if p := e.table.Lookup(&end); p != nil && !p.Gone() && !p.Stopped() && !p.Alone() {
		return p
	}
	return nil
}

// offerToShare has the flow of p, which is new, be found by others that may share its socket. It
// returns nil if there is such a one already. What others have sent when p ends, since its peer
// cannot be reached or for whatever reason, goes on without it.
func (e *Engine) offerToShare(p *flow.Port) *flow.Alias {
	a := flow.NewAlias(p.Key().Endpoint(), p, false)
	if e.table.Add(a) != nil {
		return nil
	}
	p.Share(a)
	p.OnLost(func(run flow.Run) { e.deal(run, p.Key()) })
	return a
}
