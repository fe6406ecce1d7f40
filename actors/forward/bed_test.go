package forward

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/rules"
	"fusilli/config"
	"fusilli/tests/bed"
)

// The tests use whatever port they like: they run in namespaces of their own.
func TestMain(m *testing.M) {
	inside, status, err := bed.Isolate()
	if err != nil {
		fmt.Fprintln(os.Stderr, "forward:", err)
		status = 1
	}
	if !inside {
		os.Exit(status)
	}
	status = m.Run()
	if status == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}

// begun is a flow that was begun.
type begun struct {
	Kind     string // "tap TCP", ...
	From, To string
	First    []string
}

// twin takes note of the flows it is given, and stands for both engine and splicer.
type twin struct {
	t     testing.TB
	guest rules.Guest

	mu    sync.Mutex
	flows []begun
	fds   []int

	listens map[uint16]int
	shared  []uint16

	serving sync.WaitGroup

	hold atomic.Pointer[chan struct{}] // UDP waits until it is closed
	held atomic.Int32
}

func (w *twin) holdUDP(until chan struct{}) { w.hold.Store(&until) }

func (w *twin) note(fd int, b begun) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flows = append(w.flows, b)
	w.fds = append(w.fds, fd)
}

func texts(first [][]byte) (list []string) {
	for _, b := range first {
		list = append(list, string(b))
	}
	return list
}

func ends(k flow.Key) (from, to string) {
	end := func(a [16]byte, port uint16) string {
		return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), port).String()
	}
	return end(k.Remote, k.RemotePort), end(k.Guest, k.GuestPort)
}

func (w *twin) AcceptTCP(fd int, k flow.Key) {
	from, to := ends(k)
	w.note(fd, begun{Kind: "tap TCP", From: from, To: to})
}

func (w *twin) Listens(port, _ uint16, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listens == nil {
		w.listens = make(map[uint16]int)
	}
	if w.listens[port]--; on {
		w.listens[port] += 2
	}
}

func (w *twin) Shared() []uint16 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.shared)
}

// ServeUDP stands for an actor of the guest's link: each peer's first datagram begins a flow, with
// a socket of its own by which the test can answer.
func (w *twin) ServeUDP(fd int, l flow.Listener) (stop func(), err error) {
	file := os.NewFile(uintptr(fd), "listener")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	w.serving.Go(func() {
		defer l.Ended(true)
		defer file.Close()
		b := newBatch()
		for {
			n, e := 0, unix.Errno(0)
			err := raw.Read(func(fd uintptr) bool {
				if n, e = b.receive(int(fd)); e == unix.EAGAIN {
					l.Drained()
				}
				return e != unix.EAGAIN
			})
			if err != nil {
				return
			}
			for i := range n {
				d, ok := b.datagram(i)
				if !ok {
					continue
				}
				s := flow.Sender{Peer: d.from.AddrPort, Scope: d.from.scope, At: d.at, Iface: d.ifIndex, Ours: true}
				k, ok := l.Route(&s)
				if !ok {
					l.Elsewhere(&s, d.data)
					continue
				}
				conn, err := l.Connect(&s)
				if err != nil {
					w.t.Errorf("a socket for %v: %v", k, err)
					continue
				}
				from, to := ends(k)
				w.note(conn, begun{Kind: "tap UDP", From: from, To: to, First: []string{string(d.data)}})
			}
		}
	})
	return func() { file.SetReadDeadline(time.Unix(1, 0)) }, nil
}

func (w *twin) Guest() rules.Guest { return w.guest }

func (w *twin) Rules() rules.Rules {
	return rules.Rules{
		HostLoopback4: netip.MustParseAddr("192.0.2.1"), HostLoopback6: netip.MustParseAddr("fe80::1"),
		Assigned4: netip.MustParseAddr("192.0.2.10"), Assigned6: netip.MustParseAddr("2001:db8::10"),
		OurTap4: netip.MustParseAddr("192.0.2.1"), OurLinkLocal: netip.MustParseAddr("fe80::1"),
	}
}

func (w *twin) TCP(fd int, to Side, dst netip.AddrPort) {
	w.note(fd, begun{Kind: to.String() + " TCP", To: dst.String()})
}

func (w *twin) UDP(fd int, to Side, src, dst netip.AddrPort, first [][]byte) {
	if c := w.hold.Load(); c != nil {
		w.held.Add(1)
		<-*c
	}
	w.note(fd, begun{Kind: to.String() + " UDP", From: src.String(), To: dst.String(), First: texts(first)})
}

// take waits for the next flow.
func (w *twin) take() (b begun, fd int) {
	w.t.Helper()
	await(w.t, "a flow", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.flows) == 0 {
			return false
		}
		b, fd = w.flows[0], w.fds[0]
		w.flows, w.fds = w.flows[1:], w.fds[1:]
		return true
	})
	w.t.Cleanup(func() { unix.Close(fd) })
	return b, fd
}

// forget closes the flows that are left.
func (w *twin) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fd := range w.fds {
		unix.Close(fd)
	}
	w.flows, w.fds = nil, nil
}

// none checks that no flow is left.
func (w *twin) none() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.flows) > 0 {
		w.t.Errorf("another flow: %+v", w.flows)
	}
}

func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := bed.Wait(ctx, what, func() (bool, error) { return cond(), nil }); err != nil {
		t.Fatal(err)
	}
}

// place is a host and a namespace with a forwarder between them.
type place struct {
	*Forwarder
	twin     *twin
	host, ns *bed.NS
	logs     *observer.ObservedLogs
}

// newPlace makes one that runs from the start until the end of the test.
func newPlace(t testing.TB, change func(*Config)) *place {
	t.Helper()
	p := &place{twin: &twin{t: t, guest: rules.Guest{
		V4: netip.MustParseAddr("192.0.2.10"), V6: netip.MustParseAddr("2001:db8::10"), LinkLocal: netip.MustParseAddr("fe80::10"),
	}}}
	var err error
	for name, ns := range map[string]**bed.NS{"host": &p.host, "namespace": &p.ns} {
		if *ns, err = bed.NewNS(name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*ns).Close() })
	}
	if err := p.host.IP("link add h0 type veth peer name h1\nlink set h1 up\nlink set h0 up\naddr add 192.0.2.10/24 dev h0\naddr add 2001:db8::10/64 dev h0 nodad"); err != nil {
		t.Fatal(err)
	}
	var core zapcore.Core
	core, p.logs = observer.New(zap.DebugLevel)
	cfg := Config{
		Log:    zap.New(core),
		Policy: rules.Policy{Splice: true}, Tap: p.twin, Splice: p.twin,
		InNamespace: p.ns.Do, IPv4: true, IPv6: true,
	}
	if change != nil {
		change(&cfg)
	}
	// The host is the namespace it is made in.
	if err := p.host.Do(func() (err error) {
		p.Forwarder, err = New(cfg)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	p.sides[Host].do = p.host.Do
	p.sides[Host].udp.here = false // threads are elsewhere
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { p.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		done.Wait()
		p.twin.serving.Wait()
	})
	return p
}

// parse makes rules of specifiers like "-t 80".
func parse(t testing.TB, specs ...string) *config.Table {
	t.Helper()
	var list []config.PortSpec
	for _, spec := range specs {
		proto, dir := config.TCP, config.Inbound
		if spec[1] == 'u' || spec[1] == 'U' {
			proto = config.UDP
		}
		if spec[1] < 'a' {
			dir = config.Outbound
		}
		s, err := config.ParsePorts(spec[3:], proto, dir, config.Pasta)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	table, err := config.Rules(list, config.Env{
		IPv4: true, IPv6: true, TCP: true, UDP: true, BindToDevice: true, Ephemeral: config.PortRange{First: 32768, Last: 60999},
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// add adds rules, which must work.
func (p *place) add(t testing.TB, specs ...string) {
	t.Helper()
	table := parse(t, specs...)
	for dir, list := range [][]config.Rule{table.Inbound, table.Outbound} {
		if failures, err := p.Add(config.Direction(dir), list...); err != nil || len(failures) > 0 {
			t.Fatalf("%v: %v, %v", specs, failures, err)
		}
	}
}
