package splice

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
)

// conversation is a datagram flow and its two peers. dial is what is connected to the splicer's
// first socket; server is the unconnected socket at the flow's destination.
type conversation struct {
	client, server *net.UDPConn
	src            netip.AddrPort // what the server is to see
}

// bindUDP returns an unconnected UDP socket at a free port of addr.
func bindUDP(t testing.TB, addr netip.Addr) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func udpAddr(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// initiating returns a client and the descriptor of a non-blocking socket that is connected to it.
func initiating(t testing.TB, addr netip.Addr) (client *net.UDPConn, fd int) {
	t.Helper()
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	fd = must[int](t)(unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0))
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, 0))); err != nil {
		t.Fatal(err)
	}
	var port int
	switch sa := must[unix.Sockaddr](t)(unix.Getsockname(fd)).(type) {
	case *unix.SockaddrInet4:
		port = sa.Port
	case *unix.SockaddrInet6:
		port = sa.Port
	}
	client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(patience))
	if err := unix.Connect(fd, sockaddr(udpAddr(client))); err != nil {
		t.Fatal(err)
	}
	return client, fd
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// converse has s carry a flow that begins with first.
func converse(t testing.TB, s *Splicer, addr netip.Addr, first ...[]byte) conversation {
	t.Helper()
	server := bindUDP(t, addr)
	client, fd := initiating(t, addr)
	src := addr
	if addr.Is4() {
		src = netip.AddrFrom4([4]byte{127, 0, 0, 2}) // where the client's port is free
	}
	c := conversation{client: client, server: server, src: netip.AddrPortFrom(src, udpAddr(client).Port())}
	s.UDP(fd, Namespace, c.src, udpAddr(server), first)
	return c
}

// receive returns the next datagram and who has sent it.
func receive(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 65536)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], from
}

func expectDatagram(t testing.TB, c *net.UDPConn, want []byte) netip.AddrPort {
	t.Helper()
	got, from := receive(t, c)
	if !bytes.Equal(got, want) {
		t.Fatalf("received %d bytes %.20q, want %d bytes %.20q", len(got), got, len(want), want)
	}
	return from
}

func eachFamily(t *testing.T, test func(t *testing.T, addr netip.Addr)) {
	for _, family := range loopbacks {
		t.Run(family.name, func(t *testing.T) { test(t, family.addr) })
	}
}

func TestDatagramsBothWays(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr netip.Addr) {
		s := start(t)
		c := converse(t, s, addr, []byte("first"), nil, []byte("third"))
		from := expectDatagram(t, c.server, []byte("first"))
		expectDatagram(t, c.server, nil)
		expectDatagram(t, c.server, []byte("third"))
		if addr.Is4() && from != c.src {
			t.Errorf("from %v, want %v", from, c.src)
		}
		for _, size := range []int{1, 0, 1400, 9000, 65507} {
			want := noise(size)
			if _, err := c.client.Write(want); err != nil {
				t.Fatal(err)
			}
			if again := expectDatagram(t, c.server, want); again != from {
				t.Errorf("from %v, then from %v", from, again)
			}
			if _, err := c.server.WriteToUDPAddrPort(want, from); err != nil {
				t.Fatal(err)
			}
			expectDatagram(t, c.client, want)
		}
	})
}

// TestSourcePortTaken: a source port that the other side does not let us have is replaced.
func TestSourcePortTaken(t *testing.T) {
	s := start(t)
	server := bindUDP(t, loopbacks[0].addr)
	client, fd := initiating(t, loopbacks[0].addr)
	s.UDP(fd, Host, udpAddr(client), udpAddr(server), [][]byte{[]byte("x")})
	from := expectDatagram(t, server, []byte("x"))
	if from == udpAddr(client) {
		t.Errorf("sent from %v, which belongs to another", from)
	}
	server.WriteToUDPAddrPort([]byte("y"), from)
	expectDatagram(t, client, []byte("y"))
}

// TestDatagramsInARow: order and sizes survive, however the datagrams are put together.
func TestDatagramsInARow(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr netip.Addr) {
		s := start(t)
		c := converse(t, s, addr)
		sizes := []int{700, 700, 700, 300, 700, 0, 0, 1, 1, 700, 1200, 1200, 1200, 64, 64, 64, 0, 64, 1200}
		for round := range 20 {
			for i, size := range sizes {
				if _, err := c.client.Write(bytes.Repeat([]byte{byte(i + round)}, size)); err != nil {
					t.Fatal(err)
				}
			}
			for i, size := range sizes {
				expectDatagram(t, c.server, bytes.Repeat([]byte{byte(i + round)}, size))
			}
		}
	})
}

// TestSegmentedSender: a row that a peer has sent in one piece arrives as its datagrams.
func TestSegmentedSender(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr netip.Addr) {
		s := start(t)
		c := converse(t, s, addr)
		raw := must[syscall.RawConn](t)(c.client.SyscallConn())
		raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000); err != nil {
				t.Skip("no UDP_SEGMENT: ", err)
			}
		})
		data := noise(30500)
		if _, err := c.client.Write(data); err != nil {
			t.Fatal(err)
		}
		for len(data) > 0 {
			n := min(1000, len(data))
			expectDatagram(t, c.server, data[:n])
			data = data[n:]
		}
	})
}

// TestNobodyThere: refusals neither end the flow nor keep anybody busy.
func TestNobodyThere(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr netip.Addr) {
		s := start(t)
		c := converse(t, s, addr, []byte("x"))
		from := expectDatagram(t, c.server, []byte("x"))
		at := udpAddr(c.server)
		c.server.Close()
		for range 5 {
			if _, err := c.client.Write([]byte("anybody?")); err != nil {
				t.Fatal(err)
			}
		}
		idle(t)
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		server.SetDeadline(time.Now().Add(patience))
		c.client.Write([]byte("hello"))
		for {
			got, again := receive(t, server)
			if again != from {
				t.Errorf("from %v, then from %v", from, again)
			}
			if string(got) == "hello" {
				break
			}
		}
	})
}

// TestStrangers: only who was spoken to can answer.
func TestStrangers(t *testing.T) {
	s := start(t)
	c := converse(t, s, loopbacks[0].addr, []byte("x"))
	from := expectDatagram(t, c.server, []byte("x"))
	stranger := bindUDP(t, loopbacks[0].addr)
	if _, err := stranger.WriteToUDPAddrPort([]byte("spam"), from); err != nil {
		t.Fatal(err)
	}
	c.server.WriteToUDPAddrPort([]byte("answer"), from)
	expectDatagram(t, c.client, []byte("answer"))
}

func TestDatagramsExpire(t *testing.T) {
	const short, long = 200 * time.Millisecond, 500 * time.Millisecond
	for _, row := range []struct {
		name     string
		question int // datagrams
		answers  int
		want     time.Duration
	}{
		{"a question", 1, 0, short},
		{"many questions", 3, 0, short},
		{"question and answer", 1, 1, short},
		{"two answers", 1, 2, long},
		{"two questions and an answer", 2, 1, long},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, func(c *Config) { c.UDPTimeout, c.UDPStreamTimeout = short, long })
			began := flow.Now()
			c := converse(t, s, loopbacks[0].addr, []byte("x"))
			from := expectDatagram(t, c.server, []byte("x"))
			for range row.question - 1 {
				c.client.Write([]byte("x"))
				expectDatagram(t, c.server, []byte("x"))
			}
			for range row.answers {
				c.server.WriteToUDPAddrPort([]byte("y"), from)
				expectDatagram(t, c.client, []byte("y"))
			}
			wait(t, "the end of the flow", gone(s))
			if took := time.Duration(flow.Now() - began); took < row.want || row.want == short && took > long+short {
				t.Errorf("over after %v, want %v", took, row.want)
			}
		})
	}
}

// TestDatagramsKeepAlive: a flow whose datagrams keep coming does not end.
func TestDatagramsKeepAlive(t *testing.T) {
	const limit = 150 * time.Millisecond
	s := start(t, func(c *Config) { c.UDPTimeout, c.UDPStreamTimeout = limit, limit })
	c := converse(t, s, loopbacks[0].addr)
	for end := time.Now().Add(5 * limit); time.Now().Before(end); time.Sleep(limit / 10) {
		c.client.Write([]byte("x"))
		expectDatagram(t, c.server, []byte("x"))
		if s.Counters().UDP.Load() != 1 || s.cfg.Limit.Len() != 1 {
			t.Fatal("the flow is gone")
		}
	}
	wait(t, "the end of the flow", gone(s))
}

func TestDatagramsLeaveNothing(t *testing.T) {
	before := descriptors(t)
	t.Run("flows", func(t *testing.T) {
		s := start(t)
		for i := range 50 {
			c := converse(t, s, loopbacks[i%2].addr, []byte("x"))
			expectDatagram(t, c.server, []byte("x"))
		}
	})
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestUnreachable: a flow that cannot be made leaves nothing.
func TestUnreachable(t *testing.T) {
	s := start(t)
	client, fd := initiating(t, loopbacks[0].addr)
	src := netip.MustParseAddrPort("192.0.2.1:1000") // nobody's
	s.UDP(fd, Namespace, src, udpAddr(bindUDP(t, loopbacks[0].addr)), nil)
	wait(t, "the end of the flow", func() bool { return s.Counters().Failed.Load() == 1 && s.cfg.Limit.Len() == 0 })
	client.Write([]byte("anybody?"))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("read: %v: the socket is still open", err)
	}
}

// TestRows: what is put together into rows, and how.
func TestRows(t *testing.T) {
	type row struct{ Size, Count, Bytes int } // Size 0: a single datagram
	for _, tt := range []struct {
		name  string
		sizes []int
		limit int
		want  []row
	}{
		{"one", []int{5}, 1000, []row{{0, 1, 5}}},
		{"equal", []int{5, 5, 5}, 1000, []row{{5, 3, 15}}},
		{"a shorter one ends it", []int{5, 5, 3, 5}, 1000, []row{{5, 3, 13}, {0, 1, 5}}},
		{"a longer one begins another", []int{5, 7, 7}, 1000, []row{{0, 1, 5}, {7, 2, 14}}},
		{"empty ones stand alone", []int{0, 0, 5, 0, 5}, 1000, []row{{0, 1, 0}, {0, 1, 0}, {0, 1, 5}, {0, 1, 0}, {0, 1, 5}}},
		{"not from the limit on", []int{1000, 1000, 999, 999}, 1000, []row{{0, 1, 1000}, {0, 1, 1000}, {999, 2, 1998}}},
		{"as long as it gets", []int{30000, 30000, 30000}, 40000, []row{{30000, 2, 60000}, {0, 1, 30000}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := batches.Get().(*batch)
			defer batches.Put(b)
			total := 0
			for i, size := range tt.sizes {
				b.in[i].Len = uint32(size)
				b.in[i].Hdr.Controllen = 0
				b.buf[i][0] = byte(i)
				total += size
			}
			n, bytes := b.rows(len(tt.sizes), tt.limit)
			var got []row
			next := 0
			for i := range n {
				r := row{Size: b.size[i], Count: int(b.out[i].Hdr.Iovlen)}
				r.Bytes = count(b, i, &next, t)
				got = append(got, r)
			}
			if d := cmp.Diff(tt.want, got); d != "" || bytes != total {
				t.Errorf("%d bytes of %d in other rows (-want +got):\n%s", bytes, total, d)
			}
		})
	}
}

// count returns the bytes of row i, and checks that it begins with message number next.
func count(b *batch, i int, next *int, t *testing.T) (n int) {
	if b.size[i] == 0 {
		b.size[i] = maxDatagram // or split would not get on
		defer func() { b.size[i] = 0 }()
	}
	b.split(i, func(data []byte) {
		n += len(data)
		if len(data) > 0 && int(data[0]) != *next {
			t.Errorf("row %d has message %d, want %d", i, data[0], *next)
		}
		*next++
	})
	return n
}
