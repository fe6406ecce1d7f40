package splice

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// start runs a splicer until the test ends, both of whose sides are in the test's own namespace
// unless change says otherwise.
func start(t testing.TB, change ...func(*Config)) *Splicer {
	t.Helper()
	cfg := Config{
		Log:         zaptest.NewLogger(t),
		InNamespace: func(f func() error) error { return f() },
		UDPTimeout:  patience, UDPStreamTimeout: patience,
	}
	for _, c := range change {
		c(&cfg)
	}
	s := New(cfg)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
		case <-time.After(patience):
			t.Fatal("Run does not end")
		}
		if n := s.Counters().Panics.Load(); n != 0 {
			t.Errorf("%d flows ended by a fault", n)
		}
		if n := s.cfg.Limit.Len(); n != 0 {
			t.Errorf("%d flows left", n)
		}
	})
	return s
}

// loopbacks are the addresses of the two families.
var loopbacks = []struct {
	name string
	addr netip.Addr
}{
	{"IPv4", netip.AddrFrom4([4]byte{127, 0, 0, 1})},
	{"IPv6", netip.IPv6Loopback()},
}

// listen returns a TCP listener at a free port of addr.
func listen(t testing.TB, addr netip.Addr) *net.TCPListener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func address(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// forward has s carry what connects to the address it returns to dst on side to.
func forward(t testing.TB, s *Splicer, to Side, dst netip.AddrPort) netip.AddrPort {
	t.Helper()
	l := listen(t, dst.Addr())
	addr := address(l)
	t.Cleanup(accept(t, l, func(fd int) { s.TCP(fd, to, dst) }))
	return addr
}

// accept hands the connections of l to take, as raw descriptors, until the function it returns is
// called.
func accept(t testing.TB, l *net.TCPListener, take func(fd int)) func() {
	t.Helper()
	f := must[*os.File](t)(l.File())
	l.Close()
	raw := must[syscall.RawConn](t)(f.SyscallConn())
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw.Read(func(ls uintptr) bool {
			for {
				fd, _, err := unix.Accept4(int(ls), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
				if err != nil {
					return false
				}
				take(fd)
			}
		})
	}()
	return func() {
		f.Close()
		<-done
	}
}

// dial connects to addr.
func dial(t testing.TB, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// spliced returns the two ends of a spliced connection.
func spliced(t testing.TB, s *Splicer, addr netip.Addr) (client, server *net.TCPConn) {
	t.Helper()
	l := listen(t, addr)
	client = dial(t, forward(t, s, Namespace, address(l)))
	l.SetDeadline(time.Now().Add(patience))
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	server.SetDeadline(time.Now().Add(patience))
	return client, server
}

// wait waits until cond holds.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("wait for %s: nothing after %v", what, patience)
		}
	}
}

// descriptors returns the number of open files of this process.
func descriptors(t testing.TB) int {
	t.Helper()
	return len(must[[]os.DirEntry](t)(os.ReadDir("/proc/self/fd")))
}

func limit(n int) func(*Config) {
	return func(c *Config) { c.Limit = flow.NewLimit(n) }
}
