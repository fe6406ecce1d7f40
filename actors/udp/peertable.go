package udp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	// maxPeers bounds the peers of one socket: 2 MiB or so. Beyond it, who was not heard of for
	// longest gives way, first of those that have not answered.
	maxPeers = 4096
	// sharedRetries is how often a datagram is sent again that has met an error: any peer's may be
	// it.
	sharedRetries = 4
)

// peerTable is the peers of a guest's port that share one socket. It belongs to the actor.
type peerTable struct {
	port  uint16 // of the host
	peers map[remote]*peer

	// In the order in which they were last heard of: those that are more than a question and an
	// answer, and the others. Of peers that have begun, those that were answered are apart from
	// those that were not.
	streams, answered, waiting peerList

	looked flow.Time // when it was last found out whether somebody else has the port

	n       int      // of peers
	callers *callers // the peers have begun; nil: the guest has
}

// remote names a peer, which has the same address on both sides.
type remote struct {
	addr  frame.Addr
	port  uint16
	scope uint32 // interface of addr, if that is link-local
}

// tableEntry is what a peer has for being one of many.
type tableEntry struct {
	id     remote
	addr   unix.RawSockaddrInet6
	named  uint32       // length of addr; 0: the socket is connected
	member *flow.Member // nil: it is the one the port was made for

	list           *peerList
	before, behind *peer

	loose bool // it is not in the table
	called
}

func (w *peerTable) len() int { return w.n }

// expiry returns when the next peer is given up if nothing more happens.
func (w *peerTable) expiry(env *flow.Env) flow.Time {
	t := flow.Now() + flow.Time(max(env.UDPTimeout, env.UDPStreamTimeout))
	for _, p := range []*peer{w.waiting.first, w.answered.first} {
		if p != nil {
			t = min(t, p.lastAt+flow.Time(env.UDPTimeout))
		}
	}
	if p := w.streams.first; p != nil {
		t = min(t, p.lastAt+flow.Time(env.UDPStreamTimeout))
	}
	if w.callers != nil && w.n == 0 {
		t = min(t, w.callers.expiry(env))
	}
	return t
}

// touch notes that p was heard of just now.
func (w *peerTable) touch(p *peer) {
	list := &w.waiting
	answers := p.hostSeen
	if w.callers != nil {
		if answers = p.guestBatch; answers > 0 {
			list = &w.answered
			w.callers.answered(p)
		}
	}
	if answers > 0 && (p.hostSeen > 1 || p.guestBatch > 1) {
		list = &w.streams
	}
	if p.list == list && list.last == p {
		return
	}
	p.leaveList()
	list.add(p)
}

// longestIdle returns who is to give way.
func (w *peerTable) longestIdle() *peer {
	if p := w.answered.first; p != nil {
		return p
	}
	if p := w.waiting.first; p != nil {
		return p
	}
	return w.streams.first
}

// selectPeer makes the peer that the guest's datagram v is for the one that c is about. If that is
// nobody's of this flow it returns false, and either elsewhere, for a flow of its own, or not: then
// v is lost.
func (c *conn) selectPeer(o *outgoing, v *flow.View) (ok, elsewhere bool) {
	if c.table != nil && c.table.callers != nil {
		ok = c.answer(v)
		return ok, !ok
	}
	to := v.Frame[v.L3+16 : v.L3+20]
	at := c.key.Remote[12:]
	if c.hdr.v6 {
		to, at = v.Frame[v.L3+24:v.L3+40], c.key.Remote[:]
	}
	port := binary.BigEndian.Uint16(v.Frame[v.L4+2:])
	if port == c.key.RemotePort && string(to) == string(at) && (c.table == nil || c.list != nil) {
		return true, false
	}
	if c.table == nil {
		c.flush(o) // by the socket there is
		if !c.share() {
			return false, true
		}
	}
	id := remote{port: port}
	if c.hdr.v6 {
		id.addr = frame.Addr(to)
	} else {
		id.addr = frame.Addr4([4]byte(to))
	}
	p := c.table.peers[id]
	if p == nil {
		c.met++
		var err error
		if p, err = c.addPeer(id); err != nil {
			return false, errors.Is(err, flow.ErrExists)
		}
	}
	c.peer = p
	return true, false
}

// share has the flow go on with a socket that is connected to nobody, so that it can have other
// peers as well. It reports whether that is possible, which is found out once.
//
// None of the old peer's datagrams is lost: from the moment the new socket is there, it gets what
// the old one does not; and that gets no more when its queue is emptied and it is closed.
func (c *conn) share() bool {
	if c.port.Alone() {
		return false
	}
	fd, port, err := c.socketForAll()
	if err != nil {
		c.env.Log.Debug("Each peer has its own socket", zap.Stringer("host", c.host), zap.Error(err))
		c.port.KeepAlone()
		return false
	}
	c.fresh = true // another's datagram may have slipped in
	for c.fromHost() && !c.failed && !c.port.Stopped() {
	}
	c.readErrors()
	if err := c.port.Open(fd, c.fromHost); err != nil {
		c.failed = true
	}
	c.fd, c.fresh, c.bigSend, c.bigRecv = fd, false, true, true
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bulkBuffer)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bulkBuffer)
	c.out = [2]ipFields{{ttl: defaultTTL}, {ttl: defaultTTL}}
	c.table = &peerTable{port: port, peers: make(map[remote]*peer), looked: flow.Now()}
	c.include(c.peer, remote{addr: c.key.Remote, port: c.key.RemotePort})
	return true
}

var errListening = errors.New("the port is forwarded")

// socketForAll returns a socket with the port of the present one, which gets no more datagrams from
// then on.
func (c *conn) socketForAll() (fd int, port uint16, err error) {
	local, ok := sock.Local(c.fd)
	if !ok {
		return -1, 0, unix.ENOTCONN
	}
	port = local.Port()
	if !c.env.Sharing.Claim(c.port, port) {
		return -1, 0, errListening
	}
	fd, err = c.dialer.ShareUDP(c.fd)
	if err == nil {
		if e := sock.Aside(c.fd, c.host); e != 0 {
			unix.Close(fd)
			err = e
		}
	}
	if err != nil {
		c.env.Sharing.Disclaim(c.port, port)
	}
	return fd, port, err
}

// addPeer makes a peer. Errors are those of flow.Sharing's Join.
func (c *conn) addPeer(id remote) (*peer, error) {
	k := *c.port.Key()
	p := &peer{key: c.port.Key()}
	if k.Remote, k.RemotePort = id.addr, id.port; k != *p.key {
		if c.table.len() >= maxPeers {
			c.giveWay()
		}
		m, err := c.env.Sharing.Join(c.port, &k)
		if errors.Is(err, flow.ErrFull) && c.giveWay() {
			m, err = c.env.Sharing.Join(c.port, &k)
		}
		if err != nil {
			return nil, err
		}
		p.key, p.member = m.Alias.Key(), m
	}
	p.host = netip.AddrPortFrom(frame.NetIP(id.addr), id.port)
	p.segLimit = maxRow
	p.hdr.init(c.env, p.key)
	c.include(p, id)
	return p, nil
}

func remoteOf(sa *unix.RawSockaddrInet6) remote {
	a, _ := sock.AddrPort(sa)
	return remote{frame.AddrOf(a.Addr()), a.Port(), sock.Scope(sa)}
}

// include makes p, of which all is known but its address for the kernel, a member of the table.
func (c *conn) include(p *peer, id remote) {
	p.id = id
	p.named = sock.SetSockaddr(&p.addr, p.host)
	if p.lastAt == 0 {
		p.lastAt = flow.Now()
	}
	c.table.peers[id] = p
	c.table.n++
	c.table.touch(p)
}

// giveWay gives up a peer to make room for another, and reports whether there was one.
func (c *conn) giveWay() bool {
	p := c.table.longestIdle()
	if p == nil {
		return false
	}
	c.makeRoom(p)
	return true
}

// remove gives p up. c may still be about it.
func (c *conn) remove(p *peer) {
	c.table.n--
	if w := c.table.callers; w != nil {
		w.forget(c.table, p)
	} else {
		delete(c.table.peers, p.id)
	}
	p.leaveList()
	if p.member != nil {
		c.env.Sharing.Leave(p.member)
	}
}

// expire gives up the peers that were not heard of for too long by now.
func (c *conn) expire(now flow.Time) {
	for _, list := range []*peerList{&c.table.waiting, &c.table.answered} {
		for p := list.first; p != nil && p.lastAt+flow.Time(c.env.UDPTimeout) <= now; p = list.first {
			c.remove(p)
		}
	}
	for p := c.table.streams.first; p != nil && p.lastAt+flow.Time(c.env.UDPStreamTimeout) <= now; p = c.table.streams.first {
		c.remove(p)
	}
}

// over reports whether no peer is left.
func (w *peerTable) over(env *flow.Env, now flow.Time) bool {
	return w.n == 0 && (w.callers == nil || now >= w.callers.expiry(env))
}

// unshare gives up all peers, if there are many.
func (c *conn) unshare() {
	w := c.table
	if w == nil {
		return
	}
	if w.callers != nil && w.callers.l.Removed() {
		c.move()
	}
	for _, list := range []*peerList{&w.waiting, &w.answered, &w.streams} {
		for list.first != nil {
			c.remove(list.first)
		}
	}
	if w.callers != nil {
		w.callers.drained()
		return
	}
	c.env.Sharing.Disclaim(c.port, w.port)
}

// sender returns the peer that has sent message i, nil if that is a stranger.
func (c *conn) sender(in *incoming, i int) *peer {
	if c.table == nil {
		if in.from(i, c.host) {
			return c.peer
		}
		return nil // before the socket was connected
	}
	if c.table.callers != nil {
		return c.caller(in, i)
	}
	p := c.table.peers[remoteOf(&in.names[i])]
	if p == nil || !in.control[i].ToUs(int(in.msgs[i].Hdr.Controllen)) {
		c.env.Counters.Filtered.Add(1)
		c.lookAgain(flow.Now()) // perhaps it is for somebody else
		return nil
	}
	return p
}

// lookEvery is the time after which it is found out again whether somebody else has the port.
const lookEvery = flow.Time(time.Second)

// lookAgain has the flow end if somebody else has its port by now, who might miss what comes to it:
// the guest's next datagram begins with another port.
func (c *conn) lookAgain(now flow.Time) {
	w := c.table
	if w.callers != nil || now-w.looked < lookEvery {
		return
	}
	w.looked = now
	if c.dialer.Contested(c.fd) {
		c.env.Log.Debug("Somebody else has the port of a flow now", zap.Uint16("port", w.port))
		c.port.Stop()
	}
}

// about makes the peer that the report r is about the one that c is about, and reports whether
// there is one.
func (c *conn) about(r *sock.Report) bool {
	if c.table == nil {
		return true
	}
	p := c.table.peers[remote{frame.AddrOf(r.To.Addr()), r.To.Port(), r.Scope}]
	if p == nil {
		return false
	}
	c.peer = p
	return true
}

// retries is how often a datagram is sent again.
func (c *conn) retries() int {
	if c.table != nil {
		return sharedRetries
	}
	return 1
}

// peerList is peers in the order in which they were added.
type peerList struct {
	first, last *peer
	n           int
}

func (l *peerList) add(p *peer) {
	p.list, p.before, p.behind = l, l.last, nil
	if l.last != nil {
		l.last.behind = p
	} else {
		l.first = p
	}
	l.last = p
	l.n++
}

// leaveList takes p out of the list it is in, if any.
func (p *peer) leaveList() {
	l := p.list
	if l == nil {
		return
	}
	if p.before != nil {
		p.before.behind = p.behind
	} else {
		l.first = p.behind
	}
	if p.behind != nil {
		p.behind.before = p.before
	} else {
		l.last = p.before
	}
	p.list, p.before, p.behind = nil, nil, nil
	l.n--
}
