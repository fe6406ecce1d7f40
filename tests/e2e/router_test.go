package e2e

import (
	"fmt"
	"net"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// TestSmallerMTUBehindTheTarget: the target is a router, as for containers with a tunnel, and what
// is behind it does not know that the way there is narrower than its own link. The router says so,
// and the transfer goes on.
func TestSmallerMTUBehindTheTarget(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed), "--mtu", "1500")
	inner, err := bed.NewNS("inner")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	if err := c.target.IP("link add v0 type veth peer name v1 netns " + inner.Path() + `
link set v0 mtu 1300 up
addr add 10.99.0.1/24 dev v0
addr add fd99::1/64 dev v0 nodad`); err != nil {
		t.Fatal(err)
	}
	if err := inner.IP(`link set v1 mtu 1500 up
addr add 10.99.0.2/24 dev v1
addr add fd99::2/64 dev v1 nodad
route add default via 10.99.0.1
route add ::/0 via fd99::1`); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := c.target.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l, err := c.Far.Listen("tcp", net.JoinHostPort(f.far, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			const n = 1 << 20
			sent := make(chan error, 1)
			go func() {
				conn, err := l.Accept()
				if err == nil {
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(limit))
					if err = send(conn, uint64(i), n); err == nil {
						err = conn.(*net.TCPConn).CloseWrite()
					}
				}
				sent <- err
			}()
			conn, err := inner.Dial(patience(t, limit), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(limit))
			if err := receive(conn, uint64(i), n); err != nil {
				t.Error(err)
			}
			if err := <-sent; err != nil {
				t.Error(fmt.Errorf("far sends: %w", err))
			}
		})
	}
}
