package actors

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"fusilli/actors/dhcp"
	"fusilli/actors/dhcpv6"
	"fusilli/actors/flow"
	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/actors/sock"
	"fusilli/internal/leaktest"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen: long enough for a machine that is busy
// with other things, and under the race detector. Only a test that fails takes that long.
const patience = 2 * time.Minute

// plain are the features a guest without offloads does without: what it reads are frames that fit
// its MTU, with complete checksums.
const plain = tapio.VnetHeader | tapio.Csum | tapio.TSO | tapio.TSOECN | tapio.USO

var (
	ourMAC   = frame.MAC{2, 0, 0, 0, 0, 1}
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 2}
)

// family is the addresses of a test: the alias by which the guest reaches the host's loopback
// address, and that address.
type family struct {
	name            string
	alias, loopback netip.Addr
}

var families = []family{
	{"IPv4", netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("127.0.0.1")},
	{"IPv6", netip.MustParseAddr("fd00::2"), netip.MustParseAddr("::1")},
}

// forFamilies runs f for both IP versions.
func forFamilies(t *testing.T, f func(*testing.T, family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// options change what newBed makes. The zero value is a link without faults of MTU 1500.
type options struct {
	mtu       int
	faults    tapio.Faults  // both ways
	faultsIn  *tapio.Faults // those towards the guest, if they differ
	maxFlows  int
	noPeekOff bool
	queue     int
	idle      time.Duration // UDP time-outs
	change    func(*Config)
}

// bed is a running engine and the guest it serves.
type bed struct {
	*Engine
	t      testing.TB
	guest  *guest
	link   *tapio.End // the guest's end
	logs   *observer.ObservedLogs
	cancel context.CancelFunc
	ended  chan struct{} // closed when Run has returned
	err    error         // what it returned
}

// newEngine returns an engine on its own end of a pipe, and the guest's end.
func newEngine(o *options) (*Engine, *tapio.End, *observer.ObservedLogs) {
	if o.mtu == 0 {
		o.mtu = 1500
	}
	if o.idle == 0 {
		o.idle = time.Hour
	}
	back := o.faults
	back.Seed++
	if o.faultsIn != nil {
		back = *o.faultsIn
	}
	ours, theirs := tapio.Pipe(tapio.PipeOptions{WithoutToB: plain, FaultsToA: o.faults, FaultsToB: back, Queue: o.queue})
	core, logs := observer.New(zapcore.InfoLevel)
	c := Config{
		Link: ours, Log: zap.New(core), OurMAC: ourMAC, GuestMAC: guestMAC, MTU: o.mtu,
		Neigh: neigh.Responder{MAC: ourMAC, Guest4: frame.Addr4([4]byte{10, 0, 2, 15}),
			LinkLocal: frame.AddrOf(netip.MustParseAddr("fe80::1")), MTU: o.mtu},
		DHCP: dhcp.New(&dhcp.Config{Guest: netip.MustParseAddr("10.0.2.15"), PrefixLen: 24, Gateway: families[0].alias, Log: zap.NewNop()}),
		DHCPv6: dhcpv6.New(&dhcpv6.Config{LinkLocal: netip.MustParseAddr("fe80::1"), Guest: netip.MustParseAddr("fd00::15"),
			Log: zap.NewNop()}),
		Rules: rules.Rules{HostLoopback4: families[0].alias, HostLoopback6: families[1].alias},
		V4:    true, V6: true, Limit: o.limit(), UDPTimeout: o.idle, UDPStreamTimeout: o.idle,
		PeekOff4: !o.noPeekOff && sock.PeekOffset(unix.AF_INET), PeekOff6: !o.noPeekOff && sock.PeekOffset(unix.AF_INET6),
	}
	if o.change != nil {
		o.change(&c)
	}
	return New(c), theirs, logs
}

// newBed starts an engine and a guest. When the test ends it stops both, and checks that the engine
// leaves nothing behind.
func newBed(t testing.TB, o options) *bed {
	t.Helper()
	before := leaktest.Descriptors(t)
	e, link, logs := newEngine(&o)
	ctx, cancel := context.WithCancel(context.Background())
	b := &bed{Engine: e, t: t, link: link, logs: logs, cancel: cancel, ended: make(chan struct{})}
	go func() {
		b.err = e.Run(ctx)
		close(b.ended)
	}()
	b.guest = newGuest(t, link, o.mtu)
	t.Cleanup(func() {
		b.stop()
		b.guest.close()
		until(t, "descriptors closed", func() bool { return leaktest.Descriptors(t) <= before })
	})
	return b
}

// stop ends the engine and checks that everything came home. It may be called more than once.
func (b *bed) stop() {
	b.t.Helper()
	b.cancel()
	select {
	case <-b.ended:
	case <-time.After(patience):
		b.t.Fatal("Run does not return")
	}
	if b.err != nil {
		b.t.Errorf("Run = %v", b.err)
	}
	if n := b.Flows(); n != 0 {
		b.t.Errorf("%d flows are left", n)
	}
	if n := b.pool.Out(); n != 0 {
		b.t.Errorf("%d slabs were not given back", n)
	}
	if n := b.env.Held.Used(); n != 0 {
		b.t.Errorf("%d bytes are counted as held", n)
	}
	if n := b.Counters().Panics.Load(); n != 0 {
		b.t.Errorf("%d flows have panicked: %v", n, b.logs.All())
	}
}

// dial connects the guest to the host's port.
func (b *bed) dial(fam family, port uint16) *conn {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := b.guest.dial(ctx, netip.AddrPortFrom(fam.alias, port))
	if err != nil {
		b.t.Fatalf("connect: %v", err)
	}
	b.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// connect returns both ends of a new connection.
func (b *bed) connect(fam family, l *net.TCPListener) (*conn, *net.TCPConn) {
	b.t.Helper()
	g := b.dial(fam, portOf(l))
	h, err := l.AcceptTCP()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { h.Close() })
	h.SetDeadline(time.Now().Add(patience))
	return g, h
}

// idle waits until the engine has no flows.
func (b *bed) idle() {
	b.t.Helper()
	until(b.t, "all flows gone", func() bool { return b.Flows() == 0 })
}

// listen listens on the host's loopback address.
func listen(t testing.TB, fam family) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(fam.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	l.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { l.Close() })
	return l
}

func portOf(l *net.TCPListener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// until waits for cond.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// scaled returns n, or less if everything is slower.
func scaled(n int) int {
	if raceEnabled {
		return n / 8
	}
	return n
}

// stream is a Reader of n bytes that differ from those of another seed.
type stream struct {
	n, at int
	x     uint64
}

func newStream(n int, seed uint64) *stream { return &stream{n: n, x: seed*2654435761 + 1} }

func (s *stream) Read(b []byte) (int, error) {
	if s.at == s.n {
		return 0, io.EOF
	}
	b = b[:min(len(b), s.n-s.at)]
	for i := range b {
		s.x = s.x*6364136223846793005 + 1442695040888963407
		b[i] = byte(s.x >> 56)
	}
	s.at += len(b)
	return len(b), nil
}

func sumOf(n int, seed uint64) [32]byte {
	h := sha256.New()
	io.Copy(h, newStream(n, seed))
	return [32]byte(h.Sum(nil))
}

// halfConn is what both ends of a connection are.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// plainWriter and plainReader hide ReadFrom and WriteTo: what counts is Write and Read.
type (
	plainWriter struct{ io.Writer }
	plainReader struct{ io.Reader }
)

// send writes n bytes of seed to c and ends that direction.
func send(c halfConn, n int, seed uint64) error {
	if _, err := io.CopyBuffer(plainWriter{c}, newStream(n, seed), make([]byte, 64<<10)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return c.CloseWrite()
}

// receive reads c to its end, which must be n bytes of seed.
func receive(c halfConn, n int, seed uint64) error {
	h := sha256.New()
	got, err := io.CopyBuffer(plainWriter{h}, plainReader{c}, make([]byte, 64<<10))
	if err != nil {
		return fmt.Errorf("receive: after %d of %d bytes: %w", got, n, err)
	}
	if int(got) != n || [32]byte(h.Sum(nil)) != sumOf(n, seed) {
		return fmt.Errorf("receive: %d bytes of %d, or others than were sent", got, n)
	}
	return nil
}

// addrOf returns where the guest finds l.
func addrOf(fam family, l *net.TCPListener) netip.AddrPort {
	return netip.AddrPortFrom(fam.alias, portOf(l))
}

// limit is that of the options' flows, nil for the default one.
func (o *options) limit() *flow.Limit {
	if o.maxFlows == 0 {
		return nil
	}
	return flow.NewLimit(o.maxFlows)
}
