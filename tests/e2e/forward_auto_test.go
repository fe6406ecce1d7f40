package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// greeter accepts connections in n on addr and says name on each.
func greeter(t *testing.T, n *bed.NS, addr, name string) io.Closer {
	t.Helper()
	l, err := n.ServeTCP(addr, func(c net.Conn) { fmt.Fprint(c, name) })
	serving(t)(l, err)
	return l
}

// greeted waits until a connection from n to addr is greeted by name; "" is nobody.
func greeted(t *testing.T, n *bed.NS, addr, name string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%q to answer at %s", name, addr), func() bool {
		c, err := n.Dial(patience(t, limit), "tcp", addr)
		if err != nil {
			return name == "" && errors.Is(err, unix.ECONNREFUSED)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		b := make([]byte, 100)
		m, _ := c.Read(b)
		return string(b[:m]) == name && name != ""
	})
}

// Without any option ports are forwarded as they are bound.
func TestPortsAreForwardedAsTheyAreBound(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b)
	in4, in6 := bed.HostAddr4+":5000", "["+bed.HostAddr6+"]:5000"

	greeted(t, b.Far, in4, "")
	l := greeter(t, c.target.NS, ":5000", "target")
	began := time.Now()
	greeted(t, b.Far, in4, "target")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v until the port was forwarded", took)
	}
	greeted(t, b.Far, in6, "target")
	greeted(t, b.Host, "127.0.0.1:5000", "target")
	l.Close()
	greeted(t, b.Far, in4, "")
	greeted(t, b.Far, in6, "")
	greeter(t, c.target.NS, "0.0.0.0:5000", "again")
	greeted(t, b.Far, in4, "again")

	// UDP has its own ports, and those of TCP.
	serveDatagrams(t, c.target.NS, []string{bed.HostAddr4}, 5000, 5001)
	for _, port := range []string{"5000", "5001"} {
		waitFor(t, "datagrams on port "+port, func() bool {
			conn, err := b.Far.Dial(patience(t, limit), "udp", bed.HostAddr4+":"+port)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write([]byte("hello"))
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, _ := conn.Read(make([]byte, 100))
			return n > 0
		})
	}

	// Out of the namespace, a privileged port of the namespace among them.
	for _, port := range []string{"81", "6000"} {
		h := greeter(t, b.Host, "127.0.0.1:"+port, "host")
		greeted(t, c.target.NS, "127.0.0.1:"+port, "host")
		h.Close()
		// Neither direction takes the listener of the other for a service.
		greeted(t, c.target.NS, "127.0.0.1:"+port, "")
		greeted(t, b.Host, "127.0.0.1:"+port, "")
	}
}

// What another program on the host has is its own until it lets go of it.
func TestPortThatAnotherProgramHas(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	other := greeter(t, b.Host, ":5000", "other")
	c := connect(t, b, "-T", "none") // or we would have the port in the target
	greeter(t, c.target.NS, ":5000", "target")
	greeter(t, c.target.NS, ":5001", "target")
	greeted(t, b.Far, bed.HostAddr4+":5001", "target") // so it was looked at
	greeted(t, b.Far, bed.HostAddr4+":5000", "other")
	other.Close()
	greeted(t, b.Far, bed.HostAddr4+":5000", "target")
}

// A connection goes on when its port is not forwarded any more.
func TestConnectionOutlivesItsListener(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b)
	l, err := c.target.Listen("tcp", ":5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var client net.Conn
	waitFor(t, "the port to be forwarded", func() bool {
		client, err = b.Far.Dial(patience(t, limit), "tcp", bed.HostAddr4+":5000")
		return err == nil
	})
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l.Close()
	greeted(t, b.Far, bed.HostAddr4+":5000", "")
	server.SetDeadline(time.Now().Add(limit))
	client.SetDeadline(time.Now().Add(limit))
	if _, err := client.Write([]byte("there")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := server.Read(got); err != nil || string(got) != "there" {
		t.Errorf("%q, %v", got, err)
	}
}

// Ten thousand sockets in the namespace neither cost much nor slow the scan down.
func TestManySocketsInTheNamespace(t *testing.T) {
	b := newBed(t, defaultBed)
	c := connect(t, b)
	n := min(10000, openFiles(t)-1000)
	err := c.target.Do(func() error {
		for i := range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(fd) })
			// Ephemeral ports are not forwarded by themselves.
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 40000 + i})
			if err == nil {
				err = unix.Listen(fd, 1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	greeted(t, b.Far, bed.HostAddr4+":5000", "")
	before, began := c.usage(t), time.Now()
	for range 3 {
		l := greeter(t, c.target.NS, ":5000", "target")
		greeted(t, b.Far, bed.HostAddr4+":5000", "target")
		l.Close()
		greeted(t, b.Far, bed.HostAddr4+":5000", "")
	}
	took, used := time.Since(began), c.usage(t).CPU-before.CPU
	t.Logf("%d sockets: three appearances in %v, %v of CPU time", n, took, used)
	if took > 15*time.Second {
		t.Errorf("three appearances took %v", took)
	}
	if used > took/20 && !raceEnabled {
		t.Errorf("%v of CPU time in %v", used, took)
	}
}

// openFiles allows this process, and those it starts, as many open files as may be, and returns how
// many.
func openFiles(t *testing.T) int {
	t.Helper()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	more := unix.Rlimit{Cur: 1 << 19, Max: 1 << 19}
	if lim.Max < more.Max && unix.Setrlimit(unix.RLIMIT_NOFILE, &more) == nil { // needs root
		return int(more.Cur)
	}
	lim.Cur = lim.Max
	unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	return int(lim.Cur)
}
