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

// passage is a way through a forwarded port: by socket into the target, out of it, and by the tap.
type passage struct {
	name           string
	server, client *bed.NS
	listen, dial   string
}

// passages forwards a port each way and returns the ways through them.
func passages(t *testing.T) (*connection, []passage) {
	t.Helper()
	b := newBed(t, defaultBed)
	c := connect(t, b, "-t", "1100", "-u", "none", "-T", "3100", "-U", "none")
	return c, []passage{
		{"spliced in", c.target.NS, b.Host, ":1100", "127.0.0.1:1100"},
		{"spliced in, IPv6", c.target.NS, b.Host, ":1100", "[::1]:1100"},
		{"spliced out", b.Host, c.target.NS, "127.0.0.1:3100", "127.0.0.1:3100"},
		{"by the tap", c.target.NS, b.Far, ":1100", bed.HostAddr4 + ":1100"},
		{"by the tap, IPv6", c.target.NS, b.Far, ":1100", "[" + bed.HostAddr6 + "]:1100"},
	}
}

// open opens a connection through p.
func (p *passage) open(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := p.server.Listen("tcp", p.listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(limit))
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	conn, err := p.client.Dial(patience(t, limit), "tcp", p.dial)
	if err != nil {
		t.Fatal(err)
	}
	other := <-accepted
	if other == nil {
		conn.Close()
		t.FailNow()
	}
	for _, c := range []net.Conn{conn, other} {
		c.SetDeadline(time.Now().Add(limit))
		t.Cleanup(func() { c.Close() })
	}
	return conn.(*net.TCPConn), other.(*net.TCPConn)
}

// shorts opens n connections through p, one after the other, each for one request.
func (p *passage) shorts(t *testing.T, n int) {
	t.Helper()
	l, err := p.server.Listen("tcp", p.listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
	err = p.client.Do(func() error {
		b := []byte("the quick brown fox")
		d := net.Dialer{Timeout: limit}
		d.SetMultipathTCP(false)
		for i := range n {
			conn, err := d.Dial("tcp", p.dial)
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			conn.SetDeadline(time.Now().Add(limit))
			conn.Write(b)
			conn.(*net.TCPConn).CloseWrite()
			got, err := io.ReadAll(conn)
			conn.Close()
			if err != nil || string(got) != string(b) {
				return fmt.Errorf("connection %d: %q, %w", i, got, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wasReset reports whether err is what a reset does to a connection.
func wasReset(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// reads checks that c is at its end, or was reset.
func reads(t *testing.T, who string, c *net.TCPConn, reset bool) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if reset && !wasReset(err) || !reset && err != io.EOF {
		t.Errorf("%s reads %d bytes, %v", who, n, err)
	}
}

// Whatever one side does with its end, the other side sees just that.
func TestForwardedConnectionsEnd(t *testing.T) {
	c, ways := passages(t)
	const size = 1 << 20
	type conn = *net.TCPConn
	for _, p := range ways {
		p.shorts(t, 100) // what is kept for later is kept from now on
	}
	before := c.usage(t)
	for _, p := range ways {
		for _, tt := range []struct {
			name string
			play func(t *testing.T, client, server conn)
		}{
			{"the client closes at once", func(t *testing.T, client, server conn) {
				client.Close()
				reads(t, "server", server, false)
			}},
			{"the server closes at once", func(t *testing.T, client, server conn) {
				server.Close()
				reads(t, "client", client, false)
			}},
			{"the client ends first", func(t *testing.T, client, server conn) {
				client.CloseWrite()
				reads(t, "server", server, false)
				go func() {
					send(server, 1, size)
					server.Close()
				}()
				if err := receive(client, 1, size); err != nil {
					t.Error(err)
				}
			}},
			{"the server ends first", func(t *testing.T, client, server conn) {
				server.CloseWrite()
				reads(t, "client", client, false)
				go func() {
					send(client, 1, size)
					client.Close()
				}()
				if err := receive(server, 1, size); err != nil {
					t.Error(err)
				}
			}},
			{"the client closes behind its data", func(t *testing.T, client, server conn) {
				go func() {
					send(client, 1, size)
					client.Close()
				}()
				if err := receive(server, 1, size); err != nil {
					t.Error(err)
				}
			}},
			{"the client resets", func(t *testing.T, client, server conn) {
				client.SetLinger(0)
				client.Close()
				reads(t, "server", server, true)
			}},
			{"the server resets", func(t *testing.T, client, server conn) {
				server.SetLinger(0)
				server.Close()
				reads(t, "client", client, true)
			}},
			{"the client resets after the server's end", func(t *testing.T, client, server conn) {
				server.CloseWrite()
				reads(t, "client", client, false)
				client.SetLinger(0)
				client.Close()
				reads(t, "server", server, true)
			}},
			{"the client closes, and has not read", func(t *testing.T, client, server conn) {
				if err := send(server, 1, 1000); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "data to arrive", func() bool {
					n := 0
					raw, err := client.SyscallConn()
					if err == nil {
						raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
					}
					return n == 1000
				})
				client.Close() // which the kernel makes a reset
				reads(t, "server", server, true)
			}},
			{"the server resets behind its data", func(t *testing.T, client, server conn) {
				if err := send(server, 1, 1000); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(client, make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
				server.SetLinger(0)
				server.Close()
				reads(t, "client", client, true)
			}},
		} {
			t.Run(p.name+"/"+tt.name, func(t *testing.T) {
				client, server := p.open(t)
				tt.play(t, client, server)
			})
		}
		t.Run(p.name+"/nobody listens", func(t *testing.T) {
			conn, err := p.client.Dial(patience(t, limit), "tcp", p.dial)
			if err == nil {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(limit))
				_, err = conn.Read(make([]byte, 1))
			}
			if !wasReset(err) {
				t.Errorf("%v, want a reset", err)
			}
		})
	}
	// None of it is left.
	waitFor(t, "connections to be closed", func() bool {
		return c.usage(t).FDs <= before.FDs+16
	})
}

// Readers that stop for ten seconds stop their writers, at no cost; when they go on, nothing is
// missing.
func TestForwardedReaderThatStops(t *testing.T) {
	const size, pause = 64 << 20, 10 * time.Second
	c, ways := passages(t)
	type transfer struct {
		name   string
		client *countConn
		server *net.TCPConn
		sent   chan error
	}
	var all []transfer
	for _, p := range ways {
		client, server := p.open(t)
		tr := transfer{p.name, &countConn{Conn: client}, server, make(chan error, 1)}
		all = append(all, tr)
		go func() {
			err := send(tr.client, 1, size)
			tr.sent <- errors.Join(err, client.CloseWrite())
		}()
	}
	// Nothing moves, and the translator sleeps meanwhile.
	last, since, cpu := int64(-1), time.Now(), c.usage(t).CPU
	waitFor(t, "the writers to stop", func() bool {
		sum, begun := int64(0), true
		for _, tr := range all {
			n := tr.client.n.Load()
			sum += n
			begun = begun && n > 0
		}
		if sum != last || !begun {
			last, since, cpu = sum, time.Now(), c.usage(t).CPU
		}
		return time.Since(since) >= pause
	})
	if used := c.usage(t).CPU - cpu; used > 200*time.Millisecond && !raceEnabled {
		t.Errorf("%v of CPU time while nothing moved", used)
	}
	for _, tr := range all {
		if n := tr.client.n.Load(); n >= size {
			t.Fatalf("%s: all %d bytes were taken", tr.name, n)
		}
		if err := receive(tr.server, 1, size); err != nil {
			t.Errorf("%s: %v", tr.name, err)
		}
		if err := <-tr.sent; err != nil {
			t.Errorf("%s: %v", tr.name, err)
		}
	}
}

// Connections that come and go leave nothing behind.
func TestShortForwardedConnectionsLeaveNothing(t *testing.T) {
	c, ways := passages(t)
	for _, p := range ways {
		t.Run(p.name, func(t *testing.T) {
			p.shorts(t, 200)
			before := c.usage(t)
			p.shorts(t, sizedCount(1000))
			waitFor(t, "descriptors to be closed", func() bool { return c.usage(t).FDs <= before.FDs+8 })
			after := c.usage(t)
			if grown := after.RSS - before.RSS; grown > 16<<20 && !raceEnabled {
				t.Errorf("resident memory grew by %d KiB", grown>>10)
			}
			t.Logf("before %+v, after %+v", before, after)
		})
	}
}
