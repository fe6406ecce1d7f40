package splice

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ends names who does a thing in a test that is done by each.
var ends = []string{"client", "server"}

// eachEnd runs a test for both families and both ends: near is the one named, far the other.
func eachEnd(t *testing.T, test func(t *testing.T, s *Splicer, near, far *net.TCPConn)) {
	for _, family := range loopbacks {
		for _, who := range ends {
			t.Run(family.name+"/"+who, func(t *testing.T) {
				s := start(t)
				near, far := spliced(t, s, family.addr)
				if who == "server" {
					near, far = far, near
				}
				test(t, s, near, far)
			})
		}
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	r.Read(b)
	return b
}

func gone(s *Splicer) func() bool { return func() bool { return s.cfg.Limit.Len() == 0 } }

// expect reads want from c.
func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v, want %q", b, err, want)
	}
}

func say(t *testing.T, c net.Conn, what string) {
	t.Helper()
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatal(err)
	}
}

func expectEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v, want EOF", n, err)
	}
}

func expectReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("read: %v, want a reset", err)
	}
}

// dialReset connects to addr and expects a reset, which may come before the connect returns.
func dialReset(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("connect or read: %v, want a reset", err)
	}
}

func TestHalfClose(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		say(t, near, "request")
		near.CloseWrite()
		expect(t, far, "request")
		expectEOF(t, far)
		// The other direction goes on, for as long as it likes.
		for i := range 3 {
			say(t, far, fmt.Sprint("answer ", i))
			expect(t, near, fmt.Sprint("answer ", i))
		}
		big := noise(3 << 20)
		go far.Write(big)
		got := make([]byte, len(big))
		if _, err := io.ReadFull(near, got); err != nil || !bytes.Equal(got, big) {
			t.Fatalf("3 MiB after the half-close: %v, equal %v", err, bytes.Equal(got, big))
		}
		far.Close()
		expectEOF(t, near)
		wait(t, "the end of the flow", gone(s))
	})
}

// TestEndWithRequest: a request and its end that arrive in one piece, perhaps while connecting.
func TestEndWithRequest(t *testing.T) {
	for _, family := range loopbacks {
		t.Run(family.name, func(t *testing.T) {
			s := start(t)
			l := listen(t, family.addr)
			to := forward(t, s, Host, address(l))
			for range 200 {
				client := dial(t, to)
				say(t, client, "request")
				client.CloseWrite()
				server := must[*net.TCPConn](t)(l.AcceptTCP())
				server.SetDeadline(time.Now().Add(patience))
				expect(t, server, "request")
				expectEOF(t, server)
				say(t, server, "answer")
				server.Close()
				expect(t, client, "answer")
				expectEOF(t, client)
				client.Close()
			}
			wait(t, "the end of the flows", gone(s))
		})
	}
}

func TestReset(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		say(t, near, "x")
		expect(t, far, "x")
		near.SetLinger(0)
		near.Close()
		expectReset(t, far)
		wait(t, "the end of the flow", gone(s))
	})
}

// TestResetAfterHalfClose: a reset is seen although there is nothing more to read from its sender.
func TestResetAfterHalfClose(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		near.CloseWrite()
		expectEOF(t, far)
		near.SetLinger(0)
		near.Close()
		wait(t, "the end of the flow", gone(s))
		for err := error(nil); !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET); {
			if _, err = far.Write([]byte("y")); err != nil && errors.Is(err, unix.ETIMEDOUT) {
				t.Fatal(err)
			}
		}
	})
}

// TestCloseWithUnreadData: whoever closes with something unread resets, but what it has said before
// arrives.
func TestCloseWithUnreadData(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		say(t, far, "never read")
		wait(t, "the data", func() bool { return queued(t, near) > 0 })
		say(t, near, "last words")
		near.Close()
		expect(t, far, "last words")
		expectReset(t, far)
		wait(t, "the end of the flow", gone(s))
	})
}

// queued returns how many bytes c has received and not read.
func queued(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestResetInTransfer: the sender learns that a receiver which does not read is gone.
func TestResetInTransfer(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		done := make(chan error, 1)
		go func() {
			b := make([]byte, 256<<10)
			for {
				if _, err := far.Write(b); err != nil {
					done <- err
					return
				}
			}
		}()
		wait(t, "data", func() bool { return queued(t, near) > 100<<10 })
		near.Close()
		if err := <-done; !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("write: %v, want a reset", err)
		}
		wait(t, "the end of the flow", gone(s))
	})
}

// TestResetWhileStalled: the receiver learns that a sender it has not read from is gone.
func TestResetWhileStalled(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		stall(t, near)
		near.SetLinger(0)
		near.Close()
		wait(t, "the end of the flow", gone(s))
		expectReset(t, far)
	})
}

// stall writes to c until nothing more goes.
func stall(t *testing.T, c *net.TCPConn) {
	t.Helper()
	b := make([]byte, 256<<10)
	for {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Write(b); err != nil {
			c.SetWriteDeadline(time.Now().Add(patience))
			return
		}
	}
}

// TestStalledReader: a reader that stops, stops the sender; meanwhile nothing is done, and
// nothing is lost.
func TestStalledReader(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		// The kernel keeps no more than tcp_rmem and tcp_wmem say for the two sockets in the
		// middle: at most 36 MiB (Linux 6.18).
		near.SetWriteBuffer(64 << 10)
		far.SetReadBuffer(64 << 10)
		data := noise(40 << 20)
		near.SetDeadline(time.Now().Add(6 * patience))
		far.SetDeadline(time.Now().Add(6 * patience))
		done := make(chan error, 1)
		go func() {
			_, err := near.Write(data)
			near.CloseWrite()
			done <- err
		}()
		quiet := 0
		for last := uint64(0); quiet < 20; {
			time.Sleep(5 * time.Millisecond)
			if n := s.Counters().Bytes.Load(); n == last {
				quiet++
			} else {
				quiet, last = 0, n
			}
		}
		select {
		case err := <-done:
			t.Fatalf("40 MiB were taken while nobody read: %v", err)
		default:
		}
		idle(t)
		got := must[[]byte](t)(io.ReadAll(far))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%d bytes arrived, or others than the %d sent", len(got), len(data))
		}
	})
}

// idle waits until this process has used next to no CPU time for 100 ms. However busy the machine
// and the collector of garbage: a process that does nothing comes to that.
func idle(t *testing.T) {
	t.Helper()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	wait(t, "the process to be idle", func() bool {
		before := used()
		time.Sleep(100 * time.Millisecond)
		return used()-before < 30*time.Millisecond
	})
}

func TestBothWaysAtOnce(t *testing.T) {
	for _, family := range loopbacks {
		t.Run(family.name, func(t *testing.T) {
			s := start(t)
			client, server := spliced(t, s, family.addr)
			data := [2][]byte{noise(10 << 20), noise(10<<20 + 7)}
			var wg sync.WaitGroup
			for i, c := range []*net.TCPConn{client, server} {
				wg.Go(func() {
					if _, err := c.Write(data[i]); err != nil {
						t.Error(err)
					}
					c.CloseWrite()
				})
				wg.Go(func() {
					got, err := io.ReadAll(c)
					if err != nil || sha256.Sum256(got) != sha256.Sum256(data[1-i]) {
						t.Errorf("%s received %d bytes of %d, or others: %v", ends[i], len(got), len(data[1-i]), err)
					}
				})
			}
			wg.Wait()
			wait(t, "the end of the flow", gone(s))
		})
	}
}

// TestSizes: all the ways between copying and pipes, with writes of many sizes.
func TestSizes(t *testing.T) {
	s := start(t)
	client, server := spliced(t, s, loopbacks[0].addr)
	r := rand.New(rand.NewPCG(1, 2))
	data := noise(24 << 20)
	go func() {
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(1<<(1+r.IntN(20))))
			if _, err := client.Write(rest[:n]); err != nil {
				t.Error(err)
				break
			}
			rest = rest[n:]
			if r.IntN(8) == 0 {
				runtime.Gosched()
			}
		}
		client.CloseWrite()
	}()
	got := must[[]byte](t)(io.ReadAll(server))
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived, or others than the %d sent", len(got), len(data))
	}
}

// TestWithoutPipes: where no pipe can be had, everything is copied.
func TestWithoutPipes(t *testing.T) {
	s := start(t)
	s.pipes.none = true
	client, server := spliced(t, s, loopbacks[0].addr)
	data := noise(10 << 20)
	go func() {
		client.Write(data)
		client.CloseWrite()
	}()
	if got := must[[]byte](t)(io.ReadAll(server)); !bytes.Equal(got, data) {
		t.Errorf("%d bytes arrived, or others than the %d sent", len(got), len(data))
	}
}

func TestRefused(t *testing.T) {
	for _, family := range loopbacks {
		t.Run(family.name, func(t *testing.T) {
			s := start(t)
			l := listen(t, family.addr)
			to := forward(t, s, Namespace, address(l))
			l.Close()
			dialReset(t, to)
			wait(t, "the end of the flow", gone(s))
			if n := s.Counters().Refused.Load(); n != 1 {
				t.Errorf("Refused = %d, want 1", n)
			}
		})
	}
}

// TestGoneWhileConnecting: the client resets before the other side has answered.
func TestGoneWhileConnecting(t *testing.T) {
	s := start(t)
	dst, full := backlogged(t)
	if !full {
		t.Skip("this kernel answers beyond the backlog")
	}
	client := dial(t, forward(t, s, Namespace, dst))
	wait(t, "the flow", func() bool { return s.cfg.Limit.Len() == 1 })
	client.SetLinger(0)
	client.Close()
	wait(t, "the end of the flow", gone(s))
}

// backlogged returns an address where a connection gets no answer since the listener's queue is
// full.
func backlogged(t *testing.T) (netip.AddrPort, bool) {
	t.Helper()
	fd := must[int](t)(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa := must[unix.Sockaddr](t)(unix.Getsockname(fd)).(*unix.SockaddrInet4)
	dst := netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	for range 4 {
		c, err := net.DialTimeout("tcp", dst.String(), 200*time.Millisecond)
		if err != nil {
			return dst, true
		}
		t.Cleanup(func() { c.Close() })
	}
	return dst, false
}

// TestStopWhileBusy: the end of the splicer is the end of all flows, whatever they do.
func TestStopWhileBusy(t *testing.T) {
	before := descriptors(t)
	t.Run("flows", func(t *testing.T) {
		s := start(t)
		for i := range 10 {
			client, _ := spliced(t, s, loopbacks[i%2].addr)
			if i > 5 {
				stall(t, client)
			}
		}
		if n := s.cfg.Limit.Len(); n != 10 {
			t.Errorf("%d flows, want 10", n)
		}
	})
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestAfterTheEnd(t *testing.T) {
	var s *Splicer
	t.Run("life", func(t *testing.T) { s = start(t) })
	l := listen(t, loopbacks[0].addr)
	dialReset(t, forward(t, s, Host, address(l)))
}

// TestBeyondTheLimit: a connection too many is reset, and the next one is carried when there is
// room.
func TestBeyondTheLimit(t *testing.T) {
	s := start(t, limit(1))
	l := listen(t, loopbacks[0].addr)
	to := forward(t, s, Namespace, address(l))
	first := dial(t, to)
	wait(t, "the flow", func() bool { return s.cfg.Limit.Len() == 1 })
	dialReset(t, to)
	if n := s.Counters().Full.Load(); n != 1 {
		t.Errorf("Full = %d, want 1", n)
	}
	server := must[*net.TCPConn](t)(l.AcceptTCP())
	server.Close()
	first.Close()
	wait(t, "the end of the flow", gone(s))
	say(t, dial(t, to), "again")
	expect(t, must[*net.TCPConn](t)(l.AcceptTCP()), "again")
}

// TestManyConnections: short connections leave nothing behind.
func TestManyConnections(t *testing.T) {
	s := start(t)
	l := listen(t, loopbacks[0].addr)
	to := forward(t, s, Namespace, address(l))
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				io.Copy(c, c)
			}()
		}
	}()
	exchange := func() error {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		b := []byte("ping")
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		return c.SetLinger(0) // or the ports run out
	}
	if err := exchange(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the first to end", gone(s))
	files, routines := descriptors(t), runtime.NumGoroutine()
	n := 10000
	if testing.Short() || raceEnabled {
		n = 1000
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range n / 8 {
				if err := exchange(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wait(t, "the last to end", gone(s))
	// What is kept for later may have grown by what was in use at once.
	wait(t, "descriptors to be closed", func() bool { return descriptors(t) <= files+8*8 })
	wait(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= routines+1 })
}

// TestIdleHoldsNothing: between messages a connection has neither buffer nor pipe.
func TestIdleHoldsNothing(t *testing.T) {
	s := start(t)
	client, server := spliced(t, s, loopbacks[0].addr)
	data := noise(8 << 20)
	go client.Write(data)
	if _, err := io.ReadFull(server, make([]byte, len(data))); err != nil {
		t.Fatal(err)
	}
	say(t, server, "thanks")
	expect(t, client, "thanks")
	// All the pipes there are lie in the pool.
	wait(t, "the pipes to come back", func() bool {
		s.pipes.mu.Lock()
		defer s.pipes.mu.Unlock()
		return len(s.pipes.spare) == s.pipes.made && s.pipes.made > 0
	})
}
