package splice

import (
	"bytes"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/sock"
)

// The operations of FuzzConn: two bytes each. The top bit of the first says who does it.
const (
	opWrite  = iota // any number of bytes
	opLarge         // many bytes
	opRead          // any number of bytes
	opUrgent        // a byte of urgent data
	opSmall         // little room to receive from now on
	opPause         // the splicer has its turn
	opEnd           // no more is sent
	opReset
	numOps
)

// slow is how long FuzzConn waits for what must happen, on a machine that is busy with other
// things.
const slow = 2 * time.Minute

// FuzzConn has both ends of a spliced connection do anything, whatever the other one does. Each
// gets what the other one has sent, its end where it was, and a reset only if there was one.
func FuzzConn(f *testing.F) {
	const server = 0x80
	for _, in := range [][]byte{
		{},
		{opWrite, 10, opRead | server, 10, opWrite | server, 20, opRead, 255},
		{opLarge, 200, opLarge | server, 255, opPause, 0, opRead, 255, opEnd, 0, opWrite | server, 9},
		{opEnd, 0, opEnd | server, 0},
		{opEnd | server, 0, opLarge, 255, opPause, 0, opReset, 0},
		{opSmall | server, 0, opLarge, 255, opLarge, 255, opPause, 0, opRead | server, 100, opReset | server, 0},
		{opUrgent, 1, opWrite, 10, opUrgent, 2, opPause, 0, opUrgent | server, 1, opEnd, 0},
		{opReset, 0, opWrite | server, 5},
	} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c := newFuzzConn(t)
		for n := 0; len(in) >= 2 && n < 100; n++ {
			c.do(in[0]&0x7f%numOps, int(in[0]>>7), in[1])
			in = in[2:]
		}
		c.finish()
	})
}

// fuzzed is what all runs of a process share.
type fuzzed struct {
	s           *Splicer
	front, back int // listening sockets
	to, dst     netip.AddrPort
	calls       int
}

var shared = sync.OnceValue(func() *fuzzed {
	here := func(f func() error) error { return f() }
	s := &fuzzed{s: New(Config{Log: zap.NewNop(), InNamespace: here, UDPTimeout: time.Hour, UDPStreamTimeout: time.Hour})}
	ls := func() (int, netip.AddrPort) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		}
		if err == nil {
			err = unix.Listen(fd, 16)
		}
		var sa unix.Sockaddr
		if err == nil {
			sa, err = unix.Getsockname(fd)
		}
		if err != nil {
			panic(err)
		}
		return fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	}
	s.front, s.to = ls()
	s.back, s.dst = ls()
	return s
})

// fuzzStream is the first bytes of what each end sends.
var fuzzStream = sync.OnceValue(func() []byte { return noise(8 << 20) })

// fuzzConn is a spliced connection with its ends, 0 that of the client.
type fuzzConn struct {
	t       *testing.T
	s       *fuzzed
	fd      [2]int
	written [2]int // by that end
	got     [2]int // by that end, of what the other one has written
	ended   [2]bool
	eof     [2]bool // that end has got one, or a reset
	reset   bool    // one of them has reset the connection
}

func newFuzzConn(t *testing.T) *fuzzConn {
	s := shared()
	c := &fuzzConn{t: t, s: s}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.calls++
	// Connections in TIME-WAIT keep a port of one address.
	unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 2, byte(s.calls >> 8), byte(s.calls)}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(s.to.Port())}); err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	c.fd[0] = fd
	s.s.TCP(c.accept(s.front), Host, s.dst)
	c.fd[1] = c.accept(s.back)
	for _, fd := range c.fd {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	}
	return c
}

func (c *fuzzConn) accept(ls int) int {
	p := []unix.PollFd{{Fd: int32(ls), Events: unix.POLLIN}}
	for end := time.Now().Add(slow); time.Now().Before(end); unix.Poll(p, 1000) {
		if fd, _, err := unix.Accept4(ls, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err == nil {
			return fd
		}
	}
	c.t.Fatal("nobody connects")
	return -1
}

func (c *fuzzConn) do(op byte, who int, n byte) {
	fd := c.fd[who]
	size := int(n)
	switch op {
	case opWrite, opLarge:
		if op == opLarge {
			size *= 1000
		}
		if size = min(size, len(fuzzStream())-c.written[who]); !c.ended[who] && size > 0 {
			n, _ := unix.Write(fd, fuzzStream()[c.written[who]:][:size]) // as much as it takes
			c.written[who] += max(n, 0)
		}
	case opUrgent:
		if !c.ended[who] && c.written[who] < len(fuzzStream()) {
			n, _ := unix.SendmsgN(fd, fuzzStream()[c.written[who]:][:1], nil, nil, unix.MSG_OOB|unix.MSG_NOSIGNAL)
			c.written[who] += max(n, 0)
		}
	case opRead:
		c.read(who, size*size)
	case opSmall:
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10)
	case opPause:
		time.Sleep(20 * time.Microsecond)
	case opEnd:
		c.ended[who] = true
		unix.Shutdown(fd, unix.SHUT_WR)
	case opReset:
		c.reset = true
		c.ended[who], c.eof[who] = true, true
		sock.Reset(fd)
	}
}

// read has an end read up to n bytes. It reports whether there was something.
func (c *fuzzConn) read(who, n int) (some bool) {
	var buf [64 << 10]byte
	for n > 0 && !c.eof[who] {
		k, err := unix.Read(c.fd[who], buf[:min(n, len(buf))])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return some
		case err != nil && c.reset:
			c.eof[who] = true
		case err != nil:
			c.t.Fatalf("end %d reads: %v, and nobody has reset it", who, err)
		case k == 0:
			c.eof[who] = true
			if other := 1 - who; !c.reset && (!c.ended[other] || c.got[who] != c.written[other]) {
				c.t.Fatalf("end %d gets the end after %d bytes of %d", who, c.got[who], c.written[other])
			}
		default:
			if c.got[who]+k > c.written[1-who] || !bytes.Equal(buf[:k], fuzzStream()[c.got[who]:][:k]) {
				c.t.Fatalf("end %d gets other bytes than were sent", who)
			}
			c.got[who] += k
			n -= k
		}
		some = true
	}
	return some
}

// finish has both ends send their ends and read all there is.
func (c *fuzzConn) finish() {
	defer func() {
		for _, fd := range c.fd {
			unix.Close(fd)
		}
	}()
	for who, fd := range c.fd {
		if !c.ended[who] {
			c.ended[who] = true
			unix.Shutdown(fd, unix.SHUT_WR)
		}
	}
	for end := time.Now().Add(slow); !c.eof[0] || !c.eof[1]; {
		some := c.read(0, 1<<20)
		if c.read(1, 1<<20) || some {
			continue
		}
		if time.Now().After(end) {
			c.t.Fatalf("does not end: %d of %d and %d of %d bytes", c.got[0], c.written[1], c.got[1], c.written[0])
		}
		p := []unix.PollFd{{Fd: int32(c.fd[0]), Events: unix.POLLIN}, {Fd: int32(c.fd[1]), Events: unix.POLLIN}}
		for i := range p {
			if c.eof[i] {
				p[i].Fd = -1
			}
		}
		unix.Poll(p, 100)
	}
	for end := time.Now().Add(slow); c.s.s.cfg.Limit.Len() > 0; time.Sleep(20 * time.Microsecond) {
		if time.Now().After(end) {
			c.t.Fatal("the flow does not end")
		}
	}
	if n := c.s.s.Counters().Panics.Load(); n != 0 {
		c.t.Fatalf("%d flows ended by a fault", n)
	}
}
