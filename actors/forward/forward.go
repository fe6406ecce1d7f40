package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/rules"
	"fusilli/autodetect/ports"
	"fusilli/config"
)

// Tap begins flows over the guest's link. Any goroutine may call it; it does not wait.
type Tap interface {
	// AcceptTCP takes over fd, an accepted connection.
	AcceptTCP(fd int, k flow.Key)
	// ServeUDP takes over fd, one more descriptor of the socket of l, and receives from that and
	// answers by it, until l was told that this has ended: for want of anything to do, or because
	// stop was called.
	ServeUDP(fd int, l flow.Listener) (stop func(), err error)
	// Listens says that the UDP port of the host is listened on for the guest's port to from now
	// on, or is not any more: flows of the guest's must not take what is for the listener.
	Listens(port, to uint16, on bool)
	// Shared returns the UDP ports of the host that have a socket of flows of the guest's: bound
	// like that of a service, but none.
	Shared() []uint16
	// Guest returns where the guest was last seen, and Rules the addresses with a meaning.
	Guest() rules.Guest
	Rules() rules.Rules
}

// Splicer begins flows from socket to socket. Any goroutine may call it; it does not wait.
type Splicer interface {
	// TCP takes over fd, an accepted connection, and connects it to dst on side to.
	TCP(fd int, to Side, dst netip.AddrPort)
	// UDP takes over fd, bound and connected, and first, what has been received already. On side to
	// it sends from src, whose address may be unspecified, to dst.
	UDP(fd int, to Side, src, dst netip.AddrPort, first [][]byte)
}

// Config says what a Forwarder forwards to.
type Config struct {
	Log    *zap.Logger
	Policy rules.Policy
	Tap    Tap     // nil: Policy.SpliceOnly
	Splice Splicer // nil: none

	// InNamespace runs a function on a thread in the guest's network namespace and returns what it
	// returns; nil: the guest is no namespace.
	InNamespace func(func() error) error

	IPv4, IPv6 bool   // which families are listened on
	FreeBind   bool   // addresses need not exist
	Scope      uint32 // interface of link-local addresses on the host
}

// Forwarder listens. Its methods may be called side by side, and while it runs.
type Forwarder struct {
	cfg   Config
	sides [2]*side // Namespace is nil if the guest is none
	scans [2]*ports.Scanner
	files int // that the process may have open, asked once: the sandbox does not let it ask again
	limit int // most listeners, of both sides

	Spent    flow.Counter // how often there was no descriptor or memory for what wanted to come in
	Failed   flow.Counter // how often a flow of UDP could not begin for another reason
	warnings limiter
	circles  atomic.Pointer[circles] // among the ports that are listened on

	mu     sync.Mutex // guards what follows, see the package comment
	closed bool
	rules  [2][]*rule // by direction
	last   view       // what the listeners of rules to be scanned for were made from
	quiet  bool       // and they all could be
}

// rule is one rule and its listeners.
type rule struct {
	config.Rule
	listeners map[uint16]*listener // by port
	open      ports.Set            // the ports of listeners
	failed    map[uint16]error     // a port that is wanted, but cannot be had: why
}

var (
	errNoNamespace = errors.New("the guest is no namespace")
	errConflict    = errors.New("conflicts with an existing rule")
	errNoRule      = errors.New("no such rule")
)

// New returns a forwarder without rules. The caller runs or closes it.
func New(cfg Config) (*Forwarder, error) {
	files := openFiles()
	f := &Forwarder{cfg: cfg, files: files, limit: listenerLimit(files)}
	here := func(fn func() error) error { return fn() }
	var err error
	if f.sides[Host], err = newSide(f, Host, here); err != nil {
		return nil, err
	}
	if cfg.InNamespace == nil {
		return f, nil
	}
	if f.sides[Namespace], err = newSide(f, Namespace, cfg.InNamespace); err == nil {
		err = f.openScans()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openScans opens what is needed to look for bound ports, while nothing forbids it yet.
func (f *Forwarder) openScans() error {
	for which, s := range f.sides {
		err := s.do(func() (err error) {
			f.scans[which], err = ports.Open()
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// listenerLimit is how many of a number of descriptors listeners may have: the rest is for flows.
func listenerLimit(files int) int {
	return files - min(max(files/8, 64), 4096)
}

func openFiles() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 1 << 10
	}
	return int(min(lim.Cur, 1<<30))
}

// LimitText says what a user can do when descriptors run out.
func (f *Forwarder) LimitText() string {
	return fmt.Sprintf("Each port takes an open file: of %d (RLIMIT_NOFILE), %d can be ports. Raise the limit or forward fewer ports",
		f.files, f.limit)
}

// from is the side on which connections of a direction are listened for, and to the one they lead
// to.
func from(dir config.Direction) Side { return Side(dir) }
func to(dir config.Direction) Side   { return 1 - Side(dir) }

// Add listens for list as well, all of it or, if an error is returned, none. In either case it
// returns the ports that could not be had: with an error these are why, and without one they belong
// to rules that do not insist on each port. The order of rules does not matter.
func (f *Forwarder) Add(dir config.Direction, list ...config.Rule) ([]Failure, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sides[from(dir)]
	switch {
	case f.closed:
		return nil, os.ErrClosed
	case s == nil:
		return nil, errNoNamespace
	}
	tcp, udp, err := f.check(dir, list)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		for _, old := range f.rules[dir] {
			if r.Conflicts(old.Rule) {
				return nil, fmt.Errorf("%s: %w", r, errConflict)
			}
		}
	}
	if err := f.refuseCircles(f.with(dir, list)); err != nil {
		return nil, err
	}
	defer f.lookForCircles()
	bound, err := f.boundFor(dir, tcp, udp)
	if err != nil {
		return nil, err
	}
	var failures []Failure
	var failure error
	made := make([]*rule, 0, len(list))
	for _, cr := range list {
		r := &rule{Rule: cr, listeners: make(map[uint16]*listener), failed: make(map[uint16]error)}
		made = append(made, r)
		var want ports.Set
		if cr.Scan {
			want = wanted(&cr, &bound)
		} else {
			fill(&want, cr.Ports)
		}
		failed := f.listen(s, r, &want)
		failures = append(failures, failed...)
		switch {
		case len(failed) == 0 || cr.Weak && cr.Scan:
		case !cr.Weak:
			failure = errListen
		case len(r.listeners) > 0 || failure != nil:
		case exhausted(failed[len(failed)-1].Err) && f.count() > 0:
			// Others have them: that is no fault of this rule.
		default:
			failure = errAll(s.which, &cr)
		}
	}
	if failure != nil {
		for _, r := range made {
			f.unlisten(s, r)
		}
		return failures, failure
	}
	f.rules[dir] = append(f.rules[dir], made...)
	f.quiet = false
	return failures, nil
}

// with returns the rules of both directions, with list added to those of one. f.mu is held.
func (f *Forwarder) with(dir config.Direction, list []config.Rule) (lists [2][]config.Rule) {
	for d := range lists {
		for _, r := range f.rules[d] {
			lists[d] = append(lists[d], r.Rule)
		}
	}
	lists[dir] = append(lists[dir], list...)
	return lists
}

// check reports what is wrong with a list of rules by itself, and which protocols have rules to be
// scanned for.
func (f *Forwarder) check(dir config.Direction, list []config.Rule) (tcp, udp bool, err error) {
	if len(list) > 0 && f.sides[from(dir)] == nil {
		return false, false, errNoNamespace
	}
	for i, r := range list {
		for _, old := range list[:i] {
			if r.Conflicts(old) {
				return false, false, fmt.Errorf("%s: %w", r, errConflict)
			}
		}
		if r.Scan && f.scans[Host] == nil {
			return false, false, fmt.Errorf("%s: %w", r, errNoNamespace)
		}
		tcp = tcp || r.Scan && r.Protocol == config.TCP
		udp = udp || r.Scan && r.Protocol == config.UDP
	}
	return tcp, udp, nil
}

// Remove ends listening for list, all of it or, if one is not there, none. Flows that have begun go
// on.
func (f *Forwarder) Remove(dir config.Direction, list ...config.Rule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	kept := append([]*rule{}, f.rules[dir]...)
	var gone []*rule
	for _, r := range list {
		found := false
		for i, old := range kept {
			if old.Rule == r {
				gone, found = append(gone, old), true
				kept = append(kept[:i], kept[i+1:]...)
				break
			}
		}
		if !found {
			return fmt.Errorf("%s: %w", r, errNoRule)
		}
	}
	for _, r := range gone {
		f.unlisten(f.sides[from(dir)], r)
	}
	f.rules[dir] = kept
	f.quiet = false
	f.lookForCircles()
	return nil
}

// List returns the rules of a direction, in the order in which they were added.
func (f *Forwarder) List(dir config.Direction) []config.Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]config.Rule, len(f.rules[dir]))
	for i, r := range f.rules[dir] {
		list[i] = r.Rule
	}
	return list
}

// Listeners returns the number of ports of a direction that are listened on.
func (f *Forwarder) Listeners(dir config.Direction) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.rules[dir] {
		n += len(r.listeners)
	}
	return n
}

// Run looks after the listeners until ctx ends; then all are closed, and it returns.
func (f *Forwarder) Run(ctx context.Context) {
	var parts sync.WaitGroup
	for _, s := range f.sides {
		if s != nil {
			parts.Go(func() { s.serve(&s.streams) })
			parts.Go(func() { s.serve(&s.datagrams) })
		}
	}
	if f.scans[Host] != nil {
		parts.Go(func() { f.scan(ctx) })
	}
	<-ctx.Done()
	f.Close()
	parts.Wait()
	for _, s := range f.sides {
		if s != nil {
			s.udp.close()
		}
	}
}

// Close closes all listeners. Nothing can be added any more. It may be called again.
func (f *Forwarder) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	for i := range f.sides {
		if f.sides[i] != nil {
			f.sides[i].close()
		}
		if f.scans[i] != nil {
			f.scans[i].Close()
		}
	}
}

// listenChunk is the number of sockets opened by one visit to a namespace.
const listenChunk = 1024

// listen opens the listeners of r for the ports in want, and returns those it could not. f.mu is
// held.
func (f *Forwarder) listen(s *side, r *rule, want *ports.Set) []Failure {
	var failures []Failure
	var spent error // of this port and all after it
	next, last := int(r.Ports.First), int(r.Ports.Last)
	for next <= last {
		chunk := func() error {
			for tries := 0; next <= last && tries < listenChunk; next++ {
				port := uint16(next)
				if !want.Has(port) {
					continue
				}
				tries++
				device, err := false, spent
				if err == nil {
					device, err = f.listenPort(s, r, port)
				}
				if err == nil {
					continue
				}
				r.failed[port] = err
				failures = add(failures, Failure{Side: s.which, Rule: r.Rule, Ports: config.PortRange{First: port, Last: port}, Device: device, Err: err})
				if exhausted(err) {
					spent = err
				}
			}
			return nil
		}
		if err := s.do(chunk); err != nil { // the namespace's thread has ended, and so do we
			return add(failures, Failure{Side: s.which, Rule: r.Rule, Ports: r.Ports, Err: err})
		}
	}
	return failures
}

// listenPort opens one listener, on a thread in the side's namespace.
func (f *Forwarder) listenPort(s *side, r *rule, port uint16) (device bool, err error) {
	if f.count() >= f.limit {
		return false, unix.EMFILE
	}
	s.tell(r, port, true) // before it is so
	fd, device, err := s.open.listen(&r.Rule, port)
	if err == nil {
		err = s.attach(r, port, fd)
	}
	if err != nil {
		s.tell(r, port, false)
	}
	return device, err
}

// count is the number of listeners there are.
func (f *Forwarder) count() int {
	n := 0
	for _, s := range f.sides {
		if s != nil {
			n += s.len()
		}
	}
	return n
}

// unlisten closes all listeners of r. f.mu is held.
func (f *Forwarder) unlisten(s *side, r *rule) {
	for port := range r.listeners {
		s.detach(r, port)
	}
	clear(r.failed)
}

// route says where a flow leads that arrived at l.
func (f *Forwarder) route(which Side, l *listener, peer netip.AddrPort, at netip.Addr) rules.Route {
	var r rules.Route
	if which == Namespace {
		r = rules.Outbound(peer, at, l.to())
	} else {
		var known rules.Rules
		var guest rules.Guest
		if f.cfg.Tap != nil {
			known, guest = f.cfg.Tap.Rules(), f.cfg.Tap.Guest()
		}
		r = known.Inbound(f.cfg.Policy, guest, peer, at, l.rule.Target, l.to())
	}
	if r.Place == rules.Tap && f.cfg.Tap == nil || (r.Place == rules.Namespace || r.Place == rules.Host) && f.cfg.Splice == nil {
		r = rules.Route{}
	}
	if f.circular(which, l, r, at) {
		f.warn(fmt.Sprintf("Port leads back to itself, refused: %s %s %s -> %s", which, l.rule.Protocol, describe(peer), describe(netip.AddrPortFrom(at, l.port))))
		return rules.Route{}
	}
	if r.Place == rules.Nowhere {
		f.warn(fmt.Sprintf("No rules to forward %s %s %s -> %s", which, l.rule.Protocol, describe(peer), describe(netip.AddrPortFrom(at, l.port))))
	}
	return r
}

// connection begins the flow of the accepted connection fd. If it leads nowhere it returns false,
// and fd is the caller's.
func (f *Forwarder) connection(which Side, l *listener, fd int, peer, local endpoint) bool {
	switch r := f.route(which, l, peer.AddrPort, local.Addr()); r.Place {
	case rules.Tap:
		f.cfg.Tap.AcceptTCP(fd, key(r, unix.IPPROTO_TCP))
	case rules.Namespace:
		f.cfg.Splice.TCP(fd, Namespace, r.Dst)
	case rules.Host:
		f.cfg.Splice.TCP(fd, Host, r.Dst)
	default:
		return false
	}
	return true
}

// datagrams begins a flow of datagrams.
func (f *Forwarder) datagrams(which Side, fd int, r rules.Route, first [][]byte) {
	switch r.Place {
	case rules.Namespace:
		f.cfg.Splice.UDP(fd, Namespace, r.Src, r.Dst, first)
	case rules.Host:
		f.cfg.Splice.UDP(fd, Host, r.Src, r.Dst, first)
	}
}

// key is a flow as the guest's link sees it.
func key(r rules.Route, proto uint16) flow.Key {
	return flow.Key{
		Guest: r.Dst.Addr().As16(), Remote: r.Src.Addr().As16(),
		GuestPort: r.Dst.Port(), RemotePort: r.Src.Port(), Proto: proto,
	}
}

func (f *Forwarder) warn(text string) {
	if f.warnings.allow() {
		f.cfg.Log.Warn(text)
	}
}

// invalid is debug with the address that text is about.
func (f *Forwarder) invalid(text string, addr netip.AddrPort) {
	if f.cfg.Log.Core().Enabled(zap.DebugLevel) && f.warnings.allow() {
		f.cfg.Log.Debug(text + ": " + describe(addr))
	}
}

func (f *Forwarder) debug(text string) {
	if f.cfg.Log.Core().Enabled(zap.DebugLevel) && f.warnings.allow() {
		f.cfg.Log.Debug(text)
	}
}

// limiter lets a few messages a second pass: anybody can cause them.
type limiter struct {
	mu    sync.Mutex
	start time.Time
	count int
}

const limitBurst = 5

func (l *limiter) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.start) >= time.Second {
		l.start, l.count = now, 0
	}
	l.count++
	return l.count <= limitBurst
}

func portText(p uint16) string { return strconv.Itoa(int(p)) }
