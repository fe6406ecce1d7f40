package actors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/actors/tcp"
	"fusilli/actors/udp"
	"fusilli/tapio/frame"
)

// Reasons for the host's flows not to be, beside those of Engine.start.
var (
	errGone       = errors.New("socket is not connected")
	errNotCarried = errors.New("not carried")
)

// AcceptTCP connects fd, an accepted and non-blocking stream socket, with the guest: k is the
// connection as the guest's link shows it, Guest and GuestPort what the guest listens on, Remote
// and RemotePort who the peer is for it. Its protocol is filled in.
//
// fd belongs to the engine from here on. It is reset if there can be no such flow: a family or
// protocol that is not carried, addresses nobody can have, a full table, a connection with this key
// that does not end within queuedAcceptTime, or an engine that has ended. AcceptTCP may be called
// by anyone at any time, and does not block.
func (e *Engine) AcceptTCP(fd int, k flow.Key) {
	k.Proto = frame.ProtoTCP
	err := e.acceptTCP(fd, &k)
	for errors.Is(err, flow.ErrExists) && !e.queueAccept(fd, &k) {
		err = e.acceptTCP(fd, &k)
	}
	if err != nil && !errors.Is(err, flow.ErrExists) {
		e.refuse(fd, &k, err)
	}
}

func (e *Engine) acceptTCP(fd int, k *flow.Key) error {
	peer, ok := sock.Peer(fd)
	if !ok {
		return errGone
	}
	if e.cfg.NoTCP || !e.carries(k) || frame.IsMulticast(&k.Guest) {
		return errNotCarried
	}
	key := *k
	return e.start(flow.NewPort(key), &e.env.Counters.TCP, func(p *flow.Port) {
		defer e.announce(&key, peer, fd).End()
		tcp.ServeAccepted(e.env, p, fd, peer)
	}, true)
}

// refuse resets the accepted connection fd.
func (e *Engine) refuse(fd int, k *flow.Key, err error) {
	e.refused(k, err)
	sock.Reset(fd)
	unix.Close(fd)
}

// queuedAcceptTime is how long an accepted connection waits for the end of the one that has its
// key: its peer has seen that end, or it could not have used its port again, but our guest may not
// yet have.
const queuedAcceptTime = 3 * time.Second

// queueAccept has fd be the next connection of k when the present one has ended, if that is soon;
// fd is reset if not, or if another one waits already. It returns false if there is no present one.
func (e *Engine) queueAccept(fd int, k *flow.Key) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.table.Lookup(k) == nil {
		return false
	}
	if _, ok := e.queuedAccepts[*k]; ok {
		e.refuse(fd, k, flow.ErrExists)
		return true
	}
	if e.queuedAccepts == nil {
		e.queuedAccepts = make(map[flow.Key]*queuedAccept)
	}
	h := &queuedAccept{fd: fd}
	key := *k
	h.timer = time.AfterFunc(queuedAcceptTime, func() {
		if e.dropQueuedAccept(&key, h) {
			e.refuse(fd, &key, flow.ErrExists)
		}
	})
	e.queuedAccepts[key] = h
	return true
}

// queuedAccept is an accepted connection that waits for the end of another.
type queuedAccept struct {
	fd    int
	timer *time.Timer
}

// dropQueuedAccept reports whether h was still queued for k, and takes it out.
func (e *Engine) dropQueuedAccept(k *flow.Key, h *queuedAccept) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.queuedAccepts[*k] != h {
		return false
	}
	delete(e.queuedAccepts, *k)
	return true
}

// nextQueuedAccept begins the connection that has waited for the end of k's, if there is one.
func (e *Engine) nextQueuedAccept(k *flow.Key) {
	e.mu.Lock()
	h := e.queuedAccepts[*k]
	delete(e.queuedAccepts, *k)
	e.mu.Unlock()
	if h != nil {
		h.timer.Stop()
		e.AcceptTCP(h.fd, *k)
	}
}

// AcceptUDP makes a flow of fd, a non-blocking datagram socket that is bound and connected to its
// peer, and of the datagrams in first, which the guest gets before any that are still in the
// socket. k is the flow as the guest's link shows it, as with AcceptTCP; its Guest may be a
// multicast address. first may be empty and is not used any more when AcceptUDP returns.
//
// fd belongs to the engine from here on. It is closed if there can be no such flow, see AcceptTCP,
// or if there is one already; that gets first all the same, since what is sent to a group never
// reaches the socket of its flow.
//
// AcceptUDP may be called by anyone at any time, and does not block.
func (e *Engine) AcceptUDP(fd int, k flow.Key, first [][]byte) {
	k.Proto = frame.ProtoUDP
	err := errNotCarried
	if peer, ok := sock.Peer(fd); !ok {
		err = errGone
	} else if !e.cfg.NoUDP && e.carries(&k) {
		kept := make([][]byte, len(first))
		for i, d := range first {
			kept[i] = bytes.Clone(d)
		}
		err = e.start(flow.NewPort(k), &e.env.Counters.UDP, func(p *flow.Port) {
			defer e.announce(&k, peer, fd).End()
			udp.ServeAccepted(e.env, p, fd, peer, kept)
		}, true)
	}
	if errors.Is(err, flow.ErrExists) {
		udp.Deliver(e.env, &k, first)
		unix.Close(fd)
		return
	}
	if err != nil {
		e.refused(&k, err)
		unix.Close(fd)
	}
}

// listenerProto is the protocol in the keys of ports that serve listeners: one that no frame has.
const listenerProto = frame.ProtoUDP | 1<<15

// ServeUDP has the guest's link carry what comes to fd, a non-blocking datagram socket of l's, and
// the guest's answers to that: all peers share the socket, and each is a flow of its own to the
// table, the limits, the counters and the log. That goes on until nobody has anything to say, until
// stop is called, or until the engine ends; then l is told.
//
// fd belongs to the engine from here on. Errors are those of Engine.start; fd is closed then.
// ServeUDP may be called by anyone at any time, and does not wait.
func (e *Engine) ServeUDP(fd int, l flow.Listener) (stop func(), err error) {
	k := flow.Key{Proto: listenerProto}
	binary.NativeEndian.PutUint64(k.Guest[:], e.listeners.Add(1))
	p := flow.NewPort(k)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err = errEnded; !e.ended {
		err = e.table.Insert(p)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	e.flows.Go(func() {
		works := false // if there is a fault
		defer func() { l.Ended(works) }()
		defer e.end(p)
		works = udp.ServeListener(e.env, p, fd, l)
	})
	return p.Stop, nil
}

// carries reports whether k, of a flow that the host asks for, names two ends there can be.
func (e *Engine) carries(k *flow.Key) bool {
	v4 := frame.Is4(&k.Guest)
	return v4 == frame.Is4(&k.Remote) && (v4 && e.cfg.V4 || !v4 && e.cfg.V6) &&
		k.GuestPort != 0 && k.RemotePort != 0 &&
		!frame.IsUnspecified(&k.Guest) && !frame.IsLoopback(&k.Guest) &&
		!frame.IsUnspecified(&k.Remote) && !frame.IsLoopback(&k.Remote) && !frame.IsMulticast(&k.Remote)
}

// announce tells of the flow k that peer has begun with the socket fd.
func (e *Engine) announce(k *flow.Key, peer netip.AddrPort, fd int) *flow.Announced {
	if !e.cfg.Announce.On() {
		return nil
	}
	local, _ := sock.Local(fd)
	return e.cfg.Announce.FromHost(k, peer, local)
}

func (e *Engine) refused(k *flow.Key, err error) {
	e.cfg.Log.Debug("flow from the host is refused", zap.Stringer("guest", addrPort(k.Guest, k.GuestPort)),
		zap.Stringer("remote", addrPort(k.Remote, k.RemotePort)), zap.Error(err))
}

func addrPort(a frame.Addr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(frame.NetIP(a), port)
}
