package udp

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	// maxCallers bounds the peers of one listener, and maxCallersAsked and maxCallersAnswered those
	// of them that the guest has not answered, and that are no more than a question and an answer.
	// maxOfSource bounds the former for peers of one address, or of one /64 of IPv6, which one
	// machine may have all of.
	maxCallers         = 32768
	maxCallersAsked    = 1024
	maxCallersAnswered = 4096
	maxOfSource        = 256

	// maxForeigners is the number of datagrams that lead elsewhere before what they begin does not
	// wait for more.
	maxForeigners = 1024

	// maxMoved bounds the flows that get a socket of their own when their port is not forwarded any
	// more.
	maxMoved = 1024

	// visit is how long the actor goes on with new peers before others have their turn, and pause
	// how long it then sleeps: only while nobody runs does the scheduler ask the kernel at once
	// whose turn it is.
	visit = flow.Time(500 * time.Microsecond)
	pause = 20 * time.Microsecond
)

// callers is the peers of a table that have begun themselves: those of a port of the host that
// leads to the guest. peerTable.peers has them by their addresses on the host's side; those of one
// address that have spoken to different ones of ours are a chain there.
type callers struct {
	l     flow.Listener
	local uint16 // port of the host
	byKey map[flow.Key]*peer

	sources map[netip.Prefix]*source // of those that the guest has not answered

	lastAt     flow.Time // last datagram of anybody
	meeting    flow.Time // when the first new peer of this batch came; 0: none has
	begun      flow.Time // when the actor has last slept among new peers, or begun to receive
	from       flow.Sender
	foreign    bool // the last sender's flow leads elsewhere
	foreigners int  // datagrams that led elsewhere since Drained was called
}

// called is what a peer has for being one of many that have begun.
type called struct {
	at      frame.Addr // whom of us it speaks to
	iface   uint32
	ours    bool
	scope   uint32
	source  sock.Source
	sibling *peer // with the same address, but another at
	of      *source
	slot    int // in of
}

// source is the peers of one address that the guest has not answered, the oldest of which gives
// way.
type source struct {
	prefix netip.Prefix
	slots  []*peer
	next   int // of slots, when it is full
	n      int // of slots that are used
}

// ServeListener carries what comes to fd, a non-blocking datagram socket of l's, and what the guest
// answers, until there was nothing for long enough or the port is told to stop, and leaves the port
// closed.
func ServeListener(env *flow.Env, port *flow.Port, fd int, l flow.Listener) bool {
	defer port.Close()
	c := newServer(env, port, fd, l)
	sock.PrepareUDP(fd)
	if err := port.Open(fd, c.fromHost); err != nil {
		c.noSocket(err)
		return false
	}
	defer c.unshare()
	c.readErrors() // of what earlier ones have sent
	for c.fromHost(); c.step(); {
		if !port.Spin(&env.Spinner) {
			port.Wait(true, 0)
		}
	}
	return !c.failed
}

// newServer returns what serves fd, which has yet to be opened.
func newServer(env *flow.Env, port *flow.Port, fd int, l flow.Listener) *conn {
	c := &conn{env: env, port: port, fd: fd, accepted: true, shares: true}
	c.out = [2]ipFields{{ttl: defaultTTL}, {ttl: defaultTTL}}
	c.one = peer{key: port.Key()}
	c.peer = &c.one
	c.table = &peerTable{peers: make(map[remote]*peer), callers: &callers{
		l: l, byKey: make(map[flow.Key]*peer), sources: make(map[netip.Prefix]*source), lastAt: flow.Now(),
	}}
	if local, ok := sock.Local(fd); ok {
		c.table.callers.local = local.Port()
	}
	return c
}

// expiry is peerTable.expiry for callers: the actor ends when there is none, and there was nothing
// for a while.
func (w *callers) expiry(env *flow.Env) flow.Time { return w.lastAt + flow.Time(env.UDPTimeout) }

// caller returns the peer that has sent message i; nil if that is nobody's of the guest, or if
// there is no room.
func (c *conn) caller(in *incoming, i int) *peer {
	w := c.table.callers
	w.foreign = false
	m := &in.msgs[i].Hdr
	at, iface, ours, ok := in.control[i].Destination(int(m.Controllen))
	if !ok || m.Flags&unix.MSG_TRUNC != 0 {
		return nil
	}
	id := remoteOf(&in.names[i])
	head := c.table.peers[id]
	for p := head; p != nil; p = p.sibling {
		if p.at == at && p.iface == iface {
			return p
		}
	}
	now := flow.Now()
	if w.meeting == 0 {
		w.meeting = now
	}
	c.met++
	if c.env.Peers.Delay(now) > 0 {
		c.env.Counters.NotAdmitted.Hit(c.env.Log, "Too many new flows at a time, some are lost")
		return nil
	}
	peer, _ := sock.AddrPort(&in.names[i])
	w.from = flow.Sender{Peer: peer, Scope: id.scope, At: frame.NetIP(at), Ours: ours, Iface: iface}
	k, ok := w.l.Route(&w.from)
	if !ok {
		w.foreign = true
		return nil
	}
	if p := w.byKey[k]; p != nil {
		if p.id == id {
			p.speaksTo(at, iface, ours) // by another address of ours from now on
		}
		return p
	}
	return c.greet(k, id, &in.names[i], m.Namelen)
}

// greet makes the peer that has just sent for the first time.
func (c *conn) greet(k flow.Key, id remote, name *unix.RawSockaddrInet6, named uint32) *peer {
	w := c.table.callers
	of := w.source(w.from.Peer.Addr())
	switch {
	case of.full() != nil:
		c.makeRoom(of.full())
	case c.table.waiting.n >= maxCallersAsked:
		c.makeRoom(c.table.waiting.first)
	case c.table.len() >= maxCallers:
		c.giveWay()
	}
	local := netip.AddrPortFrom(w.from.At, w.local)
	member, err := c.env.Sharing.Meet(c.port, &k, w.from.Peer, local)
	if err == flow.ErrFull && c.giveWay() {
		member, err = c.env.Sharing.Meet(c.port, &k, w.from.Peer, local)
	}
	switch {
	case err == flow.ErrExists: // the guest has begun it, with another socket
		p := &peer{key: &k, host: w.from.Peer}
		p.loose = true
		p.hdr.init(c.env, &k)
		return p
	case err != nil:
		return nil
	}
	p := &peer{key: member.Alias.Key(), host: w.from.Peer, segLimit: maxRow}
	p.member, p.id, p.addr, p.named, p.scope = member, id, *name, named, w.from.Scope
	p.speaksTo(frame.AddrOf(w.from.At), w.from.Iface, w.from.Ours)
	p.hdr.init(c.env, p.key)
	p.lastAt = flow.Now()
	p.sibling = c.table.peers[id]
	c.table.peers[id] = p
	c.table.n++
	w.byKey[*p.key] = p
	w.sources[of.prefix] = of
	of.add(p)
	c.table.touch(p)
	return p
}

// speaksTo has what is sent to p come from at, unless that is no address of ours.
func (p *peer) speaksTo(at frame.Addr, iface uint32, ours bool) {
	p.at, p.iface, p.ours = at, iface, ours
	if p.source = (sock.Source{}); ours {
		p.source.Set(frame.NetIP(at), iface)
	}
}

// makeRoom gives up p to make room for another.
func (c *conn) makeRoom(p *peer) {
	c.env.Counters.Evicted.Hit(c.env.Log, "Too many flows without an answer, the oldest give way to others")
	c.remove(p)
}

// forget takes p, which was given up, out of what callers know.
func (w *callers) forget(c *peerTable, p *peer) {
	delete(w.byKey, *p.key)
	w.answered(p)
	if head := c.peers[p.id]; head != p {
		for ; head != nil; head = head.sibling {
			if head.sibling == p {
				head.sibling = p.sibling
				break
			}
		}
	} else if p.sibling != nil {
		c.peers[p.id] = p.sibling
	} else {
		delete(c.peers, p.id)
	}
	p.sibling = nil
}

// answered takes p off those that the guest has not answered, if it is there.
func (w *callers) answered(p *peer) {
	of := p.of
	if of == nil {
		return
	}
	p.of = nil
	of.slots[p.slot] = nil
	if of.n--; of.n == 0 {
		delete(w.sources, of.prefix)
	}
}

// source returns what there is of a, which may be new.
func (w *callers) source(a netip.Addr) *source {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	prefix, _ := a.Prefix(bits)
	if of := w.sources[prefix]; of != nil {
		return of
	}
	return &source{prefix: prefix}
}

// full returns who gives way if another one is added, or nil.
func (s *source) full() *peer {
	if len(s.slots) < maxOfSource {
		return nil
	}
	return s.slots[s.next]
}

// add adds p, for which there is room.
func (s *source) add(p *peer) {
	p.of = s
	s.n++
	if len(s.slots) < maxOfSource {
		p.slot = len(s.slots)
		s.slots = append(s.slots, p)
		return
	}
	p.slot = s.next
	s.slots[s.next] = p
	s.next = (s.next + 1) % maxOfSource
}

// answer makes the peer that the guest's datagram v is for the one that c is about, and reports
// whether there is one.
func (c *conn) answer(v *flow.View) bool {
	k := keyOf(v)
	if c.list != nil && k == *c.key {
		return true
	}
	p := c.table.callers.byKey[k]
	if p == nil {
		return false
	}
	c.peer = p
	return true
}

// keyOf returns the key of the flow that the guest's datagram v belongs to.
func keyOf(v *flow.View) flow.Key {
	ip, l4 := v.Frame[v.L3:], v.Frame[v.L4:]
	k := flow.Key{GuestPort: uint16(l4[0])<<8 | uint16(l4[1]), RemotePort: uint16(l4[2])<<8 | uint16(l4[3]), Proto: frame.ProtoUDP}
	if ip[0]>>4 == 6 {
		k.Guest, k.Remote = frame.Addr(ip[8:24]), frame.Addr(ip[24:40])
	} else {
		k.Guest, k.Remote = frame.Addr4([4]byte(ip[12:16])), frame.Addr4([4]byte(ip[16:20]))
	}
	return k
}

// elsewhere hands over message i, whose sender's flow does not lead to the guest.
func (c *conn) elsewhere(in *incoming, i int) {
	w := c.table.callers
	b, _, size, _ := in.take(i)
	if w.foreigners++; w.foreigners == maxForeigners {
		defer w.drained()
	}
	for data := b[flow.Headroom:]; ; {
		n := min(size, len(data))
		w.l.Elsewhere(&w.from, data[:n])
		if data = data[n:]; len(data) == 0 {
			return
		}
	}
}

// drained begins what leads elsewhere, when all of it that waits was received.
func (w *callers) drained() {
	if w.foreigners > 0 {
		w.foreigners = 0
		w.l.Drained()
	}
}

// metCallers accounts for the new peers of a batch, and lets others have their turn when it is
// time.
func (c *conn) metCallers() {
	w := c.table.callers
	if w.meeting == 0 {
		return
	}
	now := flow.Now()
	c.env.Peers.Charge(c.met, w.meeting, now)
	w.meeting, c.met = 0, 0
	if now-w.begun > visit {
		time.Sleep(pause)
		w.begun = flow.Now()
	}
}

// move has the flows that were in use last go on with a socket each: the port is not forwarded any
// more. What has come by now is theirs.
func (c *conn) move() {
	type moved struct {
		fd int
		k  flow.Key
	}
	var all []moved
	l := c.table.callers.l
	for _, list := range []*peerList{&c.table.streams, &c.table.answered, &c.table.waiting} {
		for p := list.last; p != nil && len(all) < maxMoved; p = p.before {
			fd, err := l.Connect(&flow.Sender{Peer: p.host, Scope: p.scope, At: frame.NetIP(p.at), Iface: p.iface, Ours: p.ours})
			if err != nil {
				c.noSocket(err)
				continue
			}
			all = append(all, moved{fd, *p.key})
		}
	}
	for c.fromHost() && !c.failed { // nothing comes to the old one from here on
	}
	for _, m := range all {
		if p := c.table.callers.byKey[m.k]; p != nil {
			c.remove(p)
		}
		c.env.Sharing.Accept(m.fd, m.k)
	}
}
