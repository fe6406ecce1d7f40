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
	fd   int
	slot uint32
	port uint16
}

// to is the port on the other side.
func (l *listener) to() uint16 { return l.rule.To + (l.port - l.rule.Ports.First) }

// side has the listeners of one network namespace. serve is the only goroutine that receives from
// them.
type side struct {
	f     *Forwarder
	which Side
	open  opening
	// do runs a function on a thread in that namespace.
	do func(func() error) error

	epoll *os.File
	raw   syscall.RawConn
	epfd  int

	mu        sync.Mutex // guards what follows
	listeners []*listener
	free      []uint32

	udp udp // of serve
}

func newSide(f *Forwarder, which Side, do func(func() error) error) (*side, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	s := &side{f: f, which: which, do: do, epfd: fd, epoll: os.NewFile(uintptr(fd), "listeners")}
	s.open = opening{v4: f.cfg.IPv4, v6: f.cfg.IPv6, freeBind: f.cfg.FreeBind}
	if which == Host {
		s.open.scope = f.cfg.Scope
	}
	if s.raw, err = s.epoll.SyscallConn(); err != nil {
		s.epoll.Close()
		return nil, err
	}
	s.udp.init(s)
	return s, nil
}

// attach makes the socket fd the listener of port of r. It belongs to the side from now on, also if
// it is closed because of an error.
func (s *side) attach(r *rule, port uint16, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &listener{rule: r, fd: fd, port: port}
	if n := len(s.free); n > 0 {
		l.slot, s.free = s.free[n-1], s.free[:n-1]
	} else {
		l.slot = uint32(len(s.listeners))
		s.listeners = append(s.listeners, nil)
	}
	if err := unix.EpollCtl(s.epfd, unix.EPOLL_CTL_ADD, fd, l.event(unix.EPOLLIN)); err != nil {
		s.free = append(s.free, l.slot)
		unix.Close(fd)
		return err
	}
	s.listeners[l.slot] = l
	r.listeners[port] = l
	r.open.Add(port)
	return nil
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

func (l *listener) event(events uint32) *unix.EpollEvent {
	return &unix.EpollEvent{Events: events, Fd: int32(l.slot)}
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
	unix.Close(l.fd) // which takes it out of the epoll instance
	s.tell(r, port, false)
}

// tell tells the flows over the guest's link whether port of r is listened on.
func (s *side) tell(r *rule, port uint16, on bool) {
	if s.which == Host && r.Protocol == config.UDP && s.f.cfg.Tap != nil {
		s.f.cfg.Tap.Listens(port, on)
	}
}

// serve handles what arrives until the side is closed.
func (s *side) serve() {
	var events [maxEvents]unix.EpollEvent
	for {
		n := 0
		err := s.raw.Read(func(fd uintptr) bool {
			n = epollWait(int(fd), events[:])
			return n != 0
		})
		if err != nil {
			return
		}
		for i := range events[:max(n, 0)] {
			s.handle(&events[i])
		}
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
func (s *side) rest(l *listener, e unix.Errno) {
	s.f.Spent.ReachedBy(s.f.cfg.Log, "Can't accept connections", e)
	unix.EpollCtl(s.epfd, unix.EPOLL_CTL_MOD, l.fd, l.event(0)) // or we would be woken at once
	time.AfterFunc(restTime, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.has(l) {
			unix.EpollCtl(s.epfd, unix.EPOLL_CTL_MOD, l.fd, l.event(unix.EPOLLIN)) // worked before
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
			unix.Close(l.fd)
			delete(l.rule.listeners, l.port)
			l.rule.open.Remove(l.port)
			s.tell(l.rule, l.port, false)
		}
	}
	s.listeners, s.free = nil, nil
	s.mu.Unlock()
	s.epoll.Close()
}
