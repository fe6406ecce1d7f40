package actors

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"fusilli/actors/flow"
	"fusilli/internal/leaktest"
	"fusilli/tapio/frame"
)

const (
	// glance is the time over which the speed of a transfer is measured, and glances how often at
	// most until it is fast enough: other programs want the machine as well.
	glance  = 200 * time.Millisecond
	glances = 40

	// What the package comment promises of memory: of a flow without data that is held, and
	// besides.
	flowBytes  = 16 << 10
	spareBytes = 128 << 20
)

// manyFlows is the limit of flows in these tests, a quarter of them without an answer.
var manyFlows = scaled(8192)

// many is n, or much less under the race detector, where everything about a flow takes long.
func many(n int) int {
	if raceEnabled {
		return n / 64
	}
	return n
}

// share is the part of its speed that a transfer keeps. The race detector slows the flood, what
// measures and what is measured, and none by the same factor.
func share() int64 {
	if raceEnabled {
		return 10
	}
	return 2
}

// siege is a bed whose guest sends without end over one connection, while something else happens on
// the link.
type siege struct {
	*bed
	fam   family
	moved atomic.Int64 // bytes of that which have reached the host

	pace   int64 // how much that is in a glance, undisturbed
	memory uint64
	gos    int
	fds    int
}

// besiege begins that transfer and measures what there is before the siege.
func besiege(t *testing.T, o options) *siege {
	t.Helper()
	if o.maxFlows == 0 {
		o.maxFlows = manyFlows
	}
	needFiles(t, o.maxFlows+1000)
	s := &siege{bed: newBed(t, o), fam: families[0]}
	g, h := s.connect(s.fam, listen(t, s.fam))
	g.SetDeadline(time.Time{})
	h.SetDeadline(time.Time{})
	var all sync.WaitGroup
	all.Go(func() {
		for b := make([]byte, 64<<10); ; {
			if _, err := g.Write(b); err != nil {
				return
			}
		}
	})
	all.Go(func() {
		for b := make([]byte, 64<<10); ; {
			n, err := h.Read(b)
			s.moved.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { h.Close(); g.abort(); all.Wait() })
	until(t, "data on its way", func() bool { return s.moved.Load() > 1<<20 })
	paces := []int64{s.glance(), s.glance(), s.glance()}
	slices.Sort(paces)
	s.pace = paces[1]
	s.memory, s.gos, s.fds = inUse(), runtime.NumGoroutine(), leaktest.Descriptors(t)
	return s
}

// glance measures the speed.
func (s *siege) glance() int64 {
	before, begin := s.moved.Load(), time.Now()
	time.Sleep(glance)
	return int64(float64(s.moved.Load()-before) * float64(glance) / float64(time.Since(begin)))
}

// holds checks, while the siege goes on, that the transfer has at least half its speed and that
// memory is bounded: so many flows, so many goroutines and descriptors each.
func (s *siege) holds(flows, gosEach, fdsEach int) {
	s.t.Helper()
	var best int64
	for range glances {
		if best = max(best, s.glance()); best >= s.pace/share() {
			break
		}
	}
	memory := inUse()
	s.t.Logf("%d MB/s before, %d MB/s now; %d MiB before, %d MiB now; %d flows",
		s.pace*5>>20, best*5>>20, s.memory>>20, memory>>20, s.Flows())
	if best < s.pace/share() {
		s.t.Errorf("the transfer has %d%% of its speed", best*100/max(s.pace, 1))
	}
	if n := s.Flows(); n > flows {
		s.t.Errorf("%d flows, want %d at most", n, flows)
	}
	if n := runtime.NumGoroutine(); n > s.gos+flows*gosEach+100 {
		s.t.Errorf("%d goroutines, %d before", n, s.gos)
	}
	if n := leaktest.Descriptors(s.t); n > s.fds+flows*fdsEach+100 {
		s.t.Errorf("%d descriptors, %d before", n, s.fds)
	}
	if !raceEnabled && memory > s.memory+uint64(flows*flowBytes)+spareBytes {
		s.t.Errorf("%d MiB in use, %d before", memory>>20, s.memory>>20)
	}
}

// letsIn checks that the guest still gets a connection.
func (s *siege) letsIn() {
	s.t.Helper()
	l := listen(s.t, families[1])
	g, h := s.connect(families[1], l)
	g.Write([]byte("let me in"))
	got := make([]byte, 9)
	if _, err := io.ReadFull(h, got); err != nil || string(got) != "let me in" {
		s.t.Errorf("%q, %v", got, err)
	}
	h.Close()
	g.Close()
}

// logged checks that a message came, and once.
func (s *siege) logged(message string) {
	s.t.Helper()
	if n := s.logs.FilterMessage(message).Len(); n != 1 {
		s.t.Errorf("%q was logged %d times in less than a minute, want 1", message, n)
	}
}

// flood writes frames to the link, about rate a second, until it is told to stop. next makes the
// n-th one; nil is the end.
func (s *siege) flood(rate int, next func(n int) []byte) (sent func() int, stop func()) {
	var all sync.WaitGroup
	var n atomic.Int64
	done := make(chan struct{})
	all.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for range max(scaled(rate)/1000, 1) {
				b := next(int(n.Load()))
				if b == nil {
					return
				}
				if s.link.Write(b) != nil {
					break // let the queue drain, or the other's frames are lost in it
				}
				n.Add(1)
			}
		}
	})
	stop = sync.OnceFunc(func() { close(done); all.Wait() })
	s.t.Cleanup(stop)
	return func() int { return int(n.Load()) }, stop
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC() // pools keep what they hold over the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// needFiles skips the test if the process may not have so many descriptors.
func needFiles(t *testing.T, n int) {
	t.Helper()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < uint64(n) {
		t.Skipf("only %d descriptors (%v), %d are needed", lim.Cur, err, n)
	}
}

// otherGuest is where the frames are from that the tests make: the guest's own stack knows nothing
// of them.
var otherGuest = netip.MustParseAddr("10.0.2.99")

// raw returns a TCP segment of the other guest's without data.
func raw(from, to uint16, flags uint8, seq, ack uint32, wnd uint16) []byte {
	b := segment(families[0].alias, from, to, flags, seq, ack, nil)
	copy(b[frame.L3Off+12:], otherGuest.AsSlice())
	binary.BigEndian.PutUint16(b[frame.L3Off+frame.IPv4Len+14:], wnd)
	return b
}

// answer has f called with each TCP segment to the other guest, and sends what it returns, if that
// is not nil.
func (s *siege) answer(f func(tcp frame.TCPHeader, n int) []byte) {
	to := otherGuest.AsSlice()
	w := func(b []byte) {
		if len(b) < frame.L3Off+frame.IPv4Len+frame.TCPLen || b[frame.L3Off+9] != frame.ProtoTCP || !bytes.Equal(b[frame.L3Off+16:][:4], to) {
			return
		}
		tcp := frame.TCPHeader(b[frame.L3Off+frame.IPv4Len:])
		n := int(binary.BigEndian.Uint16(b[frame.L3Off+2:])) - frame.IPv4Len - int(tcp[12]>>4)*4
		if r := f(tcp, n); r != nil {
			s.link.Write(r)
		}
	}
	s.guest.port.watch.Store(&w)
	s.t.Cleanup(func() { s.guest.port.watch.Store(nil) })
}

// deaf returns a port of the host that answers no SYN: its backlog is full.
func deaf(t *testing.T) uint16 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	for range 10 {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 100*time.Millisecond)
		if err != nil {
			return uint16(port)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("a listener without a backlog accepts whatever comes")
	return 0
}

// taking accepts connections without end, has serve deal with each, and closes it then. It returns
// the port.
func taking(t *testing.T, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[*net.TCPConn]struct{}{}
	all.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = struct{}{}
			mu.Unlock()
			all.Go(func() {
				serve(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return portOf(l)
}

func TestSYNFloodLeavesOthersTheirSpeed(t *testing.T) {
	t.Run("to a port that refuses", func(t *testing.T) {
		s := besiege(t, options{})
		s.flood(20000, func(n int) []byte { return raw(uint16(1024+n%60000), 1, frame.SYN, 1, 0, 4096) })
		s.holds(1000, 2, 1) // each is over at once
		s.letsIn()
	})
	t.Run("to one that is silent", func(t *testing.T) {
		s := besiege(t, options{})
		port := deaf(t)
		_, stop := s.flood(20000, func(n int) []byte { return raw(uint16(1024+n%60000), port, frame.SYN, 1, 0, 4096) })
		until(t, "flows to give way", func() bool { return s.Counters().Evicted.Load() > 0 })
		s.holds(manyFlows/4+100, 2, 1)
		s.letsIn()
		stop()
		s.logged("Too many flows without an answer, the oldest give way to others")
	})
}

// TestFloodFasterThanFlowsCanBegin: what is too much is lost, and counted.
func TestFloodFasterThanFlowsCanBegin(t *testing.T) {
	s := besiege(t, options{})
	_, stop := s.flood(1e6, func(n int) []byte { return raw(uint16(1024+n%60000), 1, frame.SYN, 1, 0, 4096) })
	until(t, "frames lost", func() bool { return s.Counters().NotAdmitted.Load() > 0 })
	stop()
	s.logged("Too many new flows at a time, some are lost")
	s.letsIn()
	until(t, "the door to be closed", func() bool {
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		return s.admission.opening == 0 && s.admission.queue == nil && s.admission.slab == nil
	})
}

func TestScanOfAllUDPPorts(t *testing.T) {
	s := besiege(t, options{})
	ports := many(65536)
	sent, _ := s.flood(60000, func(n int) []byte {
		if n == ports {
			return nil
		}
		b := make([]byte, frame.UDPLen+4)
		frame.PutUDP(b, 40000, uint16(max(n, 1)), 4, 0)
		return datagram(families[0], frame.ProtoUDP, b)
	})
	s.holds(manyFlows/4+100, 2, 1)
	until(t, "the scan to end", func() bool { return sent() == ports })
	s.holds(manyFlows/4+100, 2, 1)
	s.letsIn()
	made, lost, gone := s.Counters().UDP.Load(), s.Counters().NotAdmitted.Load(), s.Counters().Evicted.Load()
	t.Logf("%d flows, %d have given way; %d frames lost", made, gone, lost)
	// One that scans is not slowed down by those it has scanned, and uses its own port throughout.
	u := s.dialUDP(t, families[1], echoUDP(t, families[1]))
	u.Write([]byte("and now?"))
	if n, err := u.Read(make([]byte, 9)); n != 8 {
		t.Errorf("%d bytes come back, %v", n, err)
	}
}

func TestFragmentsWithoutEndLeaveOthersTheirSpeed(t *testing.T) {
	s := besiege(t, options{})
	_, stop := s.flood(20000, func(n int) []byte {
		b := datagram(families[0], frame.ProtoUDP, make([]byte, 64))
		binary.BigEndian.PutUint16(b[frame.L3Off+4:], uint16(n))
		b[frame.L3Off+6] = 0x20
		return b
	})
	until(t, "datagrams to give way", func() bool { return s.Counters().FragmentsEvicted.Load() > 0 })
	s.holds(10, 2, 1)
	s.letsIn()
	stop()
	s.logged("Too many incomplete datagrams, the oldest give way to others")
}

func TestQuestionsWithoutEndLeaveOthersTheirSpeed(t *testing.T) {
	dhcp4 := append([]byte{0, 68, 0, 67, 0, 248, 0, 0, 1, 1, 6}, make([]byte, 237)...)
	dhcp6 := append([]byte{2, 34, 2, 35, 0, 26, 0, 0, 1, 1, 2, 3}, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 2)
	for _, tt := range []struct {
		name string
		b    []byte
	}{
		{"ARP", arpRequest([4]byte{10, 0, 2, 2})},
		{"NDP", datagram(families[1], frame.ProtoICMPv6, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, families[1].alias.AsSlice()...))},
		{"router solicitations", datagram(families[1], frame.ProtoICMPv6, []byte{133, 0, 0, 0, 0, 0, 0, 0})},
		{"DHCP", datagram(families[0], frame.ProtoUDP, dhcp4)},
		{"DHCPv6", datagram(families[1], frame.ProtoUDP, dhcp6)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := besiege(t, options{})
			s.flood(20000, func(int) []byte { return tt.b })
			s.holds(10, 2, 1)
			s.letsIn()
		})
	}
}

// TestHundredThousandHalfOpenConnections: the host has accepted each, and the guest says nothing
// more.
func TestHundredThousandHalfOpenConnections(t *testing.T) {
	s := besiege(t, options{})
	needFiles(t, 2*manyFlows/4+2000)
	port := taking(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)) })
	opened := many(100000)
	sent, _ := s.flood(60000, func(n int) []byte {
		if n == opened {
			return nil
		}
		b := raw(uint16(1024+n%60000), port, frame.SYN, 1, 0, 4096)
		b[frame.L3Off+15] = byte(99 + n/60000) // more than there are ports
		return b
	})
	s.holds(manyFlows/4+100, 4, 2) // the other end's of each is among them
	until(t, "the flood to end", func() bool { return sent() == opened })
	if n := s.Flows(); n > manyFlows/4+100 {
		t.Errorf("%d flows", n)
	}
	s.letsIn()
	if n := s.Counters().Evicted.Load() + s.Counters().NotAdmitted.Load(); n < uint64(opened/2) {
		t.Errorf("%d have given way or are lost, of %d", n, opened)
	}
}

// connectMany has the other guest open so many connections to port, with the window wnd in all it
// sends. It takes no data; if talks, it says so to each segment, else it says nothing any more.
func (s *siege) connectMany(many int, port, wnd uint16, talks bool) {
	s.t.Helper()
	var open atomic.Int64
	var next [65536]atomic.Uint64 // what it expects, above 1 bit for: it is connected
	s.answer(func(tcp frame.TCPHeader, n int) []byte {
		from := binary.BigEndian.Uint16(tcp[2:])
		switch {
		case tcp.Flags()&frame.RST != 0:
			return nil
		case tcp.Flags()&frame.SYN != 0:
			if next[from].Swap(uint64(tcp.Seq()+1)<<1|1) == 0 {
				open.Add(1)
			}
		case !talks:
			return nil
		}
		return raw(from, port, frame.ACK, 2, uint32(next[from].Load()>>1), wnd)
	})
	for i := range many {
		from := uint16(1024 + i)
		until(s.t, "room on the link", func() bool {
			return int(open.Load()) > i-500 && s.link.Write(raw(from, port, frame.SYN, 1, 0, wnd)) == nil
		})
	}
	until(s.t, "connections", func() bool {
		for i := range many {
			if from := uint16(1024 + i); next[from].Load() == 0 && s.link.Write(raw(from, port, frame.SYN, 1, 0, wnd)) != nil {
				return false // the link has lost it, or the answer
			}
		}
		return int(open.Load()) == many
	})
}

// resetAll has the other guest end them.
func (s *siege) resetAll(many int, port uint16) {
	for i := range many {
		until(s.t, "room on the link", func() bool {
			return s.link.Write(raw(uint16(1024+i), port, frame.RST, 2, 0, 0)) == nil
		})
	}
}

func TestGuestWithTenThousandClosedWindows(t *testing.T) {
	conns := many(10000)
	s := besiege(t, options{maxFlows: 16384})
	data := make([]byte, 4096)
	// The peer has sent all it has to say, and closes.
	port := taking(t, func(c *net.TCPConn) { c.Write(data) })
	s.connectMany(conns, port, 0, true)
	s.holds(conns+10, 2, 1)
	s.letsIn()
	if n := s.Flows(); n < conns {
		t.Errorf("%d flows, want %d: none of them is idle or has waited for long", n, conns)
	}
	until(t, "all flows to end", func() bool { s.resetAll(conns, port); return s.Flows() <= 2 })
}

func TestGuestThatNeverAcknowledges(t *testing.T) {
	conns := many(2000)
	s := besiege(t, options{change: func(c *Config) { c.RTOMax = 500 * time.Millisecond }})
	data := make([]byte, 64<<10)
	var reset atomic.Int64
	port := taking(t, func(c *net.TCPConn) {
		c.Write(data)
		if _, err := c.Read(data[:1]); err != io.EOF {
			reset.Add(1)
		}
	})
	s.connectMany(conns, port, 4096, false)
	s.holds(conns+10, 4, 2)
	s.letsIn()
	until(t, "all to be given up, and their peers to be told", func() bool { return s.Flows() <= 2 && int(reset.Load()) == conns })
}

// TestPeerThatSendsWithoutEnd to a guest that does not read: what is on the way stays within the
// buffers of the kernel's sockets.
func TestPeerThatSendsWithoutEnd(t *testing.T) {
	const peers = 100
	s := besiege(t, options{})
	// What the guest's own stack keeps for its programs is in the same heap, and not ours.
	buffer := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 64 << 10, Max: 64 << 10}
	s.guest.SetTransportProtocolOption(tcp.ProtocolNumber, &buffer)
	var sent atomic.Int64
	port := taking(t, func(c *net.TCPConn) {
		for b := make([]byte, 64<<10); ; {
			n, err := c.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	for i := range peers {
		g, err := s.guest.dial(t.Context(), netip.AddrPortFrom(s.fam.alias, port))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		t.Cleanup(g.abort)
	}
	s.holds(peers+10, 4, 2)
	s.letsIn()
	last := int64(-1)
	until(t, "the peers to stop", func() bool {
		was := last
		last = sent.Load()
		s.glance()
		return was == last
	})
	t.Logf("%d KiB of each are on the way", sent.Load()/peers>>10)
	if n := s.env.Held.Used(); n > 32<<20 {
		t.Errorf("%d bytes are held", n)
	}
}

// TestFlowsGiveWayInOrder: of flows of UDP those that have had their answer, then those that have
// waited longest; and none that is in use.
func TestFlowsGiveWayInOrder(t *testing.T) {
	const most = 64
	s := newBed(t, options{maxFlows: most})
	fam := families[0]
	echo := echoUDP(t, fam)
	busy := s.dialUDP(t, fam, echo)
	ask := func(c net.Conn) {
		t.Helper()
		c.Write([]byte("?"))
		if n, err := c.Read(make([]byte, 2)); n != 1 {
			t.Fatalf("%d bytes come back, %v", n, err)
		}
	}
	for range 3 {
		ask(busy)
	}
	// The first of those that wait, answered ones after it, and then as many more as it takes.
	waits := s.dialUDP(t, fam, mute(t))
	waits.Write([]byte("?"))
	until(t, "the flow", func() bool { return s.Flows() == 2 })
	for range most/4 - 1 {
		ask(s.dialUDP(t, fam, echo))
	}
	for i := range most/4 - 1 {
		if n := int(s.Counters().Evicted.Load()); n != i {
			t.Fatalf("%d flows have given way, want %d", n, i)
		}
		ask(s.dialUDP(t, fam, echo))
	}
	keys := func() (list []flow.Key) {
		s.table.Each(func(p *flow.Port) { list = append(list, *p.Key()) })
		return list
	}
	for what, c := range map[string]net.Conn{"in use": busy, "waiting": waits} {
		port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
		if !slices.ContainsFunc(keys(), func(k flow.Key) bool { return k.GuestPort == port }) {
			t.Errorf("the flow that is %s has given way", what)
		}
	}
}

// mute returns a port of the host where nobody answers datagrams.
func mute(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}
