package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

func TestConnectingToAClosedPortIsRefused(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			begin := time.Now()
			conn, err := c.target.Dial(patience(t, limit), "tcp", net.JoinHostPort(f.far, "9"))
			if err == nil {
				conn.Close()
			}
			if took := time.Since(begin); !errors.Is(err, unix.ECONNREFUSED) || took > 5*time.Second {
				t.Errorf("%v after %v, want ECONNREFUSED at once", err, took)
			}
		})
	}
}

func TestUnreachableDestinationFailsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	// One that the host knows to be unreachable, one that a router says is.
	if err := b.Host.IP("route add unreachable 203.0.113.0/24\nroute add unreachable 2001:db8:1::/64"); err != nil {
		t.Fatal(err)
	}
	if err := b.Far.IP("route add unreachable 198.51.100.0/24\nroute add unreachable 2001:db8:2::/64"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := b.Far.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	c := connect(t, b)
	for _, addr := range []string{"203.0.113.1:80", "[2001:db8:1::1]:80", "198.51.100.1:80", "[2001:db8:2::1]:80"} {
		t.Run(addr, func(t *testing.T) {
			begin := time.Now()
			conn, err := c.target.Dial(patience(t, limit), "tcp", addr)
			if err == nil {
				conn.Close()
			}
			if took := time.Since(begin); err == nil || errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
				t.Errorf("%v after %v, want a failure at once", err, took)
			}
		})
	}
}

// A destination that says nothing keeps the caller waiting as the host's kernel would, and
// then fails.
func TestBlackHoledDestinationTimesOut(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	if err := b.Far.IP("route add blackhole 198.51.100.0/24\nroute add blackhole 2001:db8:2::/64"); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"ipv4/tcp_syn_retries": "2", "ipv4/tcp_syn_linear_timeouts": "0"} {
		if err := b.Host.Sysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	c := connect(t, b)
	for _, addr := range []string{"198.51.100.1:80", "[2001:db8:2::1]:80"} {
		t.Run(addr, func(t *testing.T) {
			t.Parallel()
			before := c.usage(t).FDs
			begin := time.Now()
			conn, err := c.target.Dial(patience(t, time.Minute), "tcp", addr)
			if err == nil {
				conn.Close()
			}
			// The kernel gives up after 1+2+4 s.
			if took := time.Since(begin); err == nil || took < 3*time.Second || took > 20*time.Second {
				t.Errorf("%v after %v, want a failure after about 7 s", err, took)
			}
			waitFor(t, "the socket to be closed", func() bool { return c.usage(t).FDs <= before })
		})
	}
}

// pair opens a connection from the target to a listener in far.
func (c *connection) pair(t *testing.T, far string) (target, peer *net.TCPConn) {
	t.Helper()
	l, err := c.Far.Listen("tcp", net.JoinHostPort(far, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := c.target.Dial(patience(t, limit), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	l.(*net.TCPListener).SetDeadline(time.Now().Add(limit))
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	for _, conn := range []net.Conn{a, b} {
		conn.SetDeadline(time.Now().Add(limit))
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func TestHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	for _, f := range families {
		for _, first := range []string{"target", "peer"} {
			t.Run(f.name+" "+first+" first", func(t *testing.T) {
				target, peer := c.pair(t, f.far)
				one, other := target, peer
				if first == "peer" {
					one, other = peer, target
				}
				const n = 1 << 20
				send1 := make(chan error, 1)
				go func() { send1 <- errors.Join(send(one, 1, n), one.CloseWrite()) }()
				if err := receive(other, 1, n); err != nil {
					t.Fatal(err)
				}
				if err := <-send1; err != nil {
					t.Fatal(err)
				}
				// The first direction is closed; now the second one carries data.
				go func() { send1 <- errors.Join(send(other, 2, n), other.CloseWrite()) }()
				if err := receive(one, 2, n); err != nil {
					t.Fatal(err)
				}
				if err := <-send1; err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// The same with a tool that people use.
func TestSocatShutDown(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	dir := scratch(t)
	// The server reads all, and only then answers.
	path := filepath.Join(dir, "ready")
	server := exec.Command("socat", "TCP-LISTEN:7000,reuseaddr", "SYSTEM:cat >"+dir+"/got; wc -c <"+dir+"/got")
	if _, err := c.Far.Spawn(bed.Root, server); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "socat to listen", func() bool {
		out, err := c.Far.Output(t.Context(), bed.Root, "ss", "-Htln", "sport", "=", ":7000")
		return err == nil && strings.Contains(out, ":7000")
	})
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := c.target.Output(patience(t, limit), bed.Nobody, "sh", "-c", "socat -t 20 - TCP:"+bed.FarAddr4+":7000,shut-down <"+path)
	if err != nil || strings.TrimSpace(out) != fmt.Sprint(1<<20) {
		t.Errorf("answer %q, %v", out, err)
	}
}

func TestResetReachesTheOtherSide(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	for _, f := range families {
		for _, who := range []string{"target", "peer"} {
			t.Run(f.name+" by "+who, func(t *testing.T) {
				target, peer := c.pair(t, f.far)
				one, other := target, peer
				if who == "peer" {
					one, other = peer, target
				}
				if err := one.SetLinger(0); err != nil {
					t.Fatal(err)
				}
				one.Close()
				if _, err := other.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("read: %v, want ECONNRESET", err)
				}
			})
		}
	}
}

func TestFarPeerKilledInMidTransfer(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	for _, f := range families {
		for _, tc := range []struct {
			name, address string
			work          func(net.Conn) error
		}{
			{"out", "OPEN:/dev/null", func(conn net.Conn) error { return send(conn, 0, math.MaxInt) }},
			{"in", "OPEN:/dev/zero,rdonly", func(conn net.Conn) error { _, err := io.Copy(io.Discard, conn); return err }},
		} {
			t.Run(f.name+" "+tc.name, func(t *testing.T) {
				before := c.usage(t).FDs
				args := []string{"-u", "TCP-LISTEN:7001,reuseaddr,pf=ip" + f.name[3:] + ",bind=" + "[" + f.far + "]", tc.address}
				if f.name == "IPv4" {
					args[1] = "TCP4-LISTEN:7001,reuseaddr,bind=" + f.far
				}
				if tc.name == "in" {
					args[1], args[2] = args[2], args[1]
				}
				server, err := c.Far.Spawn(bed.Root, exec.Command("socat", args...))
				if err != nil {
					t.Fatal(err)
				}
				var conn net.Conn
				waitFor(t, "a connection", func() bool {
					conn, err = c.target.Dial(t.Context(), "tcp", net.JoinHostPort(f.far, "7001"))
					return err == nil
				})
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(limit))
				counted := &countConn{Conn: conn}
				done := make(chan error, 1)
				go func() { done <- tc.work(counted) }()
				waitFor(t, "the transfer to be under way", func() bool { return counted.n.Load() > 4<<20 })
				unix.Kill(server.PID(), unix.SIGKILL)
				err = <-done
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the target has not noticed")
				}
				if tc.name == "out" && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
					t.Errorf("%v, want ECONNRESET", err)
				}
				conn.Close()
				waitFor(t, "the socket to be closed", func() bool { return c.usage(t).FDs <= before })
			})
		}
	}
}

func TestNamespaceGoesAwayInMidTransfer(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"out", "in"} {
		t.Run(dir, func(t *testing.T) {
			c := connect(t, newBed(t, defaultBed))
			l, err := c.Far.Listen("tcp", net.JoinHostPort(bed.FarAddr4, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			address := fmt.Sprintf("TCP:%s", l.Addr())
			args := []string{"-u", "OPEN:/dev/zero,rdonly", address}
			if dir == "in" {
				args = []string{"-u", address, "OPEN:/dev/null"}
			}
			client, err := c.target.Spawn(bed.Nobody, exec.Command("socat", args...))
			if err != nil {
				t.Fatal(err)
			}
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(limit))
			counted := &countConn{Conn: conn}
			done := make(chan error, 1)
			go func() {
				if dir == "out" {
					_, err := io.Copy(io.Discard, counted)
					done <- err
				} else {
					done <- send(counted, 0, math.MaxInt)
				}
			}()
			waitFor(t, "the transfer to be under way", func() bool { return counted.n.Load() > 4<<20 })
			pids := c.usage(t).PIDs
			c.target.Close()
			client.Stop(0)
			select {
			case <-c.proc.Done():
			case <-time.After(limit):
				t.Fatal("the translator has not noticed")
			}
			if status := c.proc.Status(); status != 0 {
				t.Errorf("exit status %d, want 0", status)
			}
			for _, pid := range pids {
				if _, err := bed.Tree(pid); err == nil {
					t.Errorf("process %d of the translator is left", pid)
				}
			}
			if err := <-done; errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the far peer has not noticed")
			}
		})
	}
}
