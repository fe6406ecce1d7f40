package forward

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/config"
)

// Side is where a listener is.
type Side uint8

// The sides.
const (
	Host      Side = iota // the network namespace of the program
	Namespace             // the guest's
)

// String is the name in messages.
func (s Side) String() string { return [...]string{"HOST", "SPLICE"}[s] }

const (
	maxEvents  = 64                     // listeners asked about at a time
	maxAccepts = 16                     // connections accepted from one listener at a time
	restTime   = 100 * time.Millisecond // pause of a listener when descriptors have run out
)

// listener is the socket of one port of a rule.
type listener struct {
	rule *rule
	*socket
	slot uint32
	port uint16
}

// socket is what a listener has in common with those that take its place when rules change.
type socket struct {
	fd      int
	watched bool       // by the poller
	inbound *inbound   // it is served by an actor of the guest's link; nil: it is not
	begins  *gathering // of the goroutine that receives; nil: nothing has begun so far
}

// to is the port on the other side.
func (l *listener) to() uint16 { return l.rule.To + (l.port - l.rule.Ports.First) }

// poller shows which listeners have something, to one goroutine.
type poller struct {
	file *os.File
	raw  syscall.RawConn
	fd   int
}

func (p *poller) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	p.fd, p.file = fd, os.NewFile(uintptr(fd), "listeners")
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
	}
	return err
}

// side has the listeners of one network namespace. The goroutines in serve, one for connections and
// one for datagrams, are the only ones that receive from them, but for those of datagrams that lead
// to the guest's link: these an actor there serves while there is anything.
type side struct {
	f     *Forwarder
	which Side
	open  opening
	// do runs a function on a thread in that namespace.
	do func(func() error) error

	streams, datagrams poller

	mu        sync.Mutex // guards what follows
	listeners []*listener
	free      []uint32

	udp udp // of serve
}

func newSide(f *Forwarder, which Side, do func(func() error) error) (*side, error) {
	s := &side{f: f, which: which, do: do}
	if err := s.streams.open(); err != nil {
		return nil, err
	}
	if err := s.datagrams.open(); err != nil {
		s.streams.file.Close()
		return nil, err
	}
	s.open = opening{v4: f.cfg.IPv4, v6: f.cfg.IPv6, freeBind: f.cfg.FreeBind}
	if which == Host {
		s.open.scope = f.cfg.Scope
	}
	s.udp.init(s)
	return s, nil
}

// attach makes the socket fd the listener of port of r. It belongs to the side from now on, also if
// it is closed because of an error.
func (s *side) attach(r *rule, port uint16, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &listener{rule: r, socket: &socket{fd: fd}, port: port}
	if n := len(s.free); n > 0 {
		l.slot, s.free = s.free[n-1], s.free[:n-1]
	} else {
		l.slot = uint32(len(s.listeners))
		s.listeners = append(s.listeners, nil)
	}
	if err := s.watch(l); err != nil {
		s.free = append(s.free, l.slot)
		unix.Close(fd)
		return err
	}
	s.listeners[l.slot] = l
	r.listeners[port] = l
	r.open.Add(port)
	return nil
}

func (s *side) poller(l *listener) *poller {
	if l.rule.Protocol == config.TCP {
		return &s.streams
	}
	return &s.datagrams
}

// watch has the poller show l. s.mu is held.
func (s *side) watch(l *listener) error {
	if l.watched {
		return nil
	}
	err := unix.EpollCtl(s.poller(l).fd, unix.EPOLL_CTL_ADD, l.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.slot)})
	l.watched = err == nil
	return err
}

// unwatch has the poller not show l. s.mu is held.
func (s *side) unwatch(l *listener) {
	if l.watched {
		l.watched = false
		unix.EpollCtl(s.poller(l).fd, unix.EPOLL_CTL_DEL, l.fd, nil)
	}
}

// len is the number of listeners.
func (s *side) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.listeners) - len(s.free)
}

// has reports whether l is open. s.mu is held.
func (s *side) has(l *listener) bool {
	return int(l.slot) < len(s.listeners) && s.listeners[l.slot] == l
}

// detach closes the listener of port of r.
func (s *side) detach(r *rule, port uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := r.listeners[port]
	if l == nil {
		return
	}
	delete(r.listeners, port)
	r.open.Remove(port)
	s.listeners[l.slot] = nil
	s.free = append(s.free, l.slot)
	s.unwatch(l) // an actor may have the socket open
	unix.Close(l.fd)
	l.inbound.end(true)
	s.tell(r, port, false)
}

// tell tells the flows over the guest's link whether port of r is listened on.
func (s *side) tell(r *rule, port uint16, on bool) {
	if s.which == Host && r.Protocol == config.UDP && s.f.cfg.Tap != nil {
		s.f.cfg.Tap.Listens(port, r.To+(port-r.Ports.First), on)
	}
}

// serve handles what the poller shows until the side is closed.
func (s *side) serve(p *poller) {
	var events [maxEvents]unix.EpollEvent
	for {
		n := 0
		err := p.raw.Read(func(fd uintptr) bool {
			n = epollWait(int(fd), events[:])
			return n != 0
		})
		if err != nil {
			break
		}
		for i := range events[:max(n, 0)] {
			s.handle(&events[i])
		}
		if p == &s.datagrams {
			s.udp.finish(false)
		}
	}
	if p == &s.datagrams {
		s.udp.finish(true)
	}
}

func epollWait(fd int, events []unix.EpollEvent) int {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

func (s *side) handle(ev *unix.EpollEvent) {
	var l *listener
	s.mu.Lock()
	if slot := int(ev.Fd); slot < len(s.listeners) {
		l = s.listeners[slot]
	}
	s.mu.Unlock()
	switch {
	case l == nil: // closed since
	case l.rule.Protocol == config.TCP:
		s.accept(l)
	case s.which == Host && s.f.cfg.Tap != nil:
		s.lend(l)
	default:
		s.udp.receive(l, ev.Events&unix.EPOLLERR != 0)
	}
}

// accepted is a connection that was accepted.
type accepted struct {
	fd   int
	peer endpoint
}

// accept takes connections off l and sends them on their way.
func (s *side) accept(l *listener) {
	var conns [maxAccepts]accepted
	n, failed := 0, 0
	s.mu.Lock()
	if s.has(l) {
	loop:
		for tries := 0; tries < maxAccepts; tries++ {
			fd, peer, e := accept(l.fd)
			switch {
			case e == 0:
				conns[n] = accepted{fd, peer}
				n++
			case e == unix.EAGAIN:
				break loop
			case exhausted(e):
				s.rest(l, e)
				break loop
			default: // of one connection, as a rule: accept(2)
				if failed++; failed == maxAccepts {
					s.rest(l, e)
				}
			}
		}
	}
	s.mu.Unlock()
	for _, c := range conns[:n] {
		s.begin(l, c.fd, c.peer)
	}
}

// rest takes l out of sight for a while, because of e. s.mu is held.
func (s *side) rest(l *listener, e error) {
	s.f.Spent.HitBy(s.f.cfg.Log, "Can't accept connections", e)
	s.unwatch(l) // or we would be woken at once
	time.AfterFunc(restTime, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.has(l) && l.inbound == nil {
			s.watch(l) // worked before
		}
	})
}

// begin sends the accepted connection fd on its way.
func (s *side) begin(l *listener, fd int, peer endpoint) {
	if !peer.unicast() {
		s.f.warn(fmt.Sprintf("Invalid endpoint from TCP accept(): %s", describe(peer.AddrPort)))
		reset(fd)
		return
	}
	local := localOf(fd)
	if !local.IsValid() {
		reset(fd)
		return
	}
	if !s.f.connection(s.which, l, fd, peer, local) {
		reset(fd)
	}
}

// close closes all listeners and ends serve.
func (s *side) close() {
	s.mu.Lock()
	for _, l := range s.listeners {
		if l != nil {
			s.unwatch(l)
			unix.Close(l.fd)
			l.inbound.end(false)
			delete(l.rule.listeners, l.port)
			l.rule.open.Remove(l.port)
			s.tell(l.rule, l.port, false)
		}
	}
	s.listeners, s.free = nil, nil
	s.mu.Unlock()
	s.streams.file.Close()
	s.datagrams.file.Close()
}
