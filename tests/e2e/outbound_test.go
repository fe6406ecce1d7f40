package e2e

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// twoLinks makes a bed whose far peer is reached by two interfaces of the host, with addresses that
// only the peer has and that the host's default routes lead to: by h0, and as a second choice by
// d0.
func twoLinks(t *testing.T) *bed.Bed {
	t.Helper()
	b := newBed(t, defaultBed)
	for _, ns := range []struct {
		*bed.NS
		script string
	}{
		{b.Host, "link add d0 type veth peer name d1 netns " + b.Far.Path() + `
link set d0 up
address add 198.51.100.7/24 dev d0
address add 198.51.100.8/24 dev d0
address add 2001:db8:7::7/64 dev d0 nodad
address add 10.77.0.22/24 dev h0
address add fd77::22/64 dev h0 nodad preferred_lft 0
route add default via 198.51.100.1 dev d0 metric 5000
route add ::/0 via 2001:db8:7::1 dev d0 metric 5000`},
		{b.Far, `link set d1 up
address add 198.51.100.1/24 dev d1
address add 2001:db8:7::1/64 dev d1 nodad
link set lo up
address add 203.0.113.1/32 dev lo
address add 2001:db8:1::1/128 dev lo nodad`},
	} {
		if err := ns.IP(ns.script); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// Source address and interface of what leaves the host are the ones asked for, and each family's
// own.
func TestOutbound(t *testing.T) {
	t.Parallel()
	b := twoLinks(t)
	far := map[string]string{"IPv4": "203.0.113.1", "IPv6": "2001:db8:1::1"}
	serveDatagrams(t, b.Far, []string{far["IPv4"], far["IPv6"]}, 1100)
	l, err := b.Far.Listen("tcp", ":1100")
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
			conn.Write([]byte(plain(conn.RemoteAddr()).Addr().String()))
			conn.Close()
		}
	}()
	const v4, v6 = bed.HostAddr4, bed.HostAddr6
	for _, tt := range []struct {
		name   string
		args   []string
		v4, v6 string // what the far peer sees
	}{
		{"none", nil, v4, v6},
		{"address", []string{"-o", "10.77.0.22"}, "10.77.0.22", v6},
		{"address, IPv6", []string{"--outbound=fd77::22"}, v4, "fd77::22"},
		{"both, and the last of each", []string{"-o", v4, "-o", "fd77::22", "-o", "10.77.0.22"}, "10.77.0.22", "fd77::22"},
		{"interface", []string{"-i", "h0", "--outbound-if4", "d0"}, "198.51.100.7", v6},
		{"interface, IPv6", []string{"-i", "h0", "--outbound-if6", "d0"}, v4, "2001:db8:7::7"},
		{"both interfaces", []string{"--outbound-if4", "d0", "--outbound-if6=d0"}, "198.51.100.7", "2001:db8:7::7"},
		{"interface and address", []string{"-i", "h0", "--outbound-if4", "d0", "-o", "198.51.100.8"}, "198.51.100.8", v6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, b, append(tt.args, "-t", "none", "-u", "none", "-T", "none", "-U", "none")...)
			for family, want := range map[string]string{"IPv4": tt.v4, "IPv6": tt.v6} {
				addr := net.JoinHostPort(far[family], "1100")
				conn, err := c.target.Dial(patience(t, limit), "tcp", addr)
				if err != nil {
					t.Fatalf("%s: %v", family, err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(limit))
				text := make([]byte, 100)
				n, err := conn.Read(text)
				if got := string(text[:n]); got != want {
					t.Errorf("TCP over %s: seen as %q, %v; want %s", family, got, err, want)
				}
				u, err := c.target.Dial(patience(t, limit), "udp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				answer, err := ask(u, []byte("who am I?"))
				if err != nil {
					t.Fatalf("UDP over %s: %v", family, err)
				}
				line, _, _ := strings.Cut(string(answer), "\n")
				if w, err := parseWitness(line); err != nil || w.remote.Addr() != netip.MustParseAddr(want) {
					t.Errorf("UDP over %s: seen as %v, %v; want %s", family, w, err, want)
				}
			}
		})
	}
}

// TestLinkLocalNeighbourOfTheHost: an address that means something on one link only is looked for
// on the host's, of the template; that of another interface, first in the list, is not meant.
func TestLinkLocalNeighbourOfTheHost(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	// Another link on which the same address is somebody else's.
	if err := b.Host.IP("link add a0 type veth peer name a1\nlink set a1 up\nlink set a0 up\naddr add fe80::7/64 dev a0 nodad"); err != nil {
		t.Fatal(err)
	}
	if err := b.Far.IP("addr add fe80::7/64 dev f0 nodad"); err != nil {
		t.Fatal(err)
	}
	linkLocal(t, b.Host, "h0") // without one it has nothing to come from
	c := connect(t, b)
	linkLocal(t, c.target.NS, "h0")
	l, err := b.Far.ServeTCP("[fe80::7%f0]:1100", func(c net.Conn) { io.Copy(c, c) })
	serving(t)(l, err)
	serveDatagrams(t, b.Far, []string{"fe80::7%f0"}, 1100)
	for _, network := range []string{"tcp", "udp"} {
		conn, err := c.target.Dial(patience(t, limit), network, "[fe80::7%h0]:1100")
		if err != nil {
			t.Errorf("%s: %v", network, err)
			continue
		}
		defer conn.Close()
		if b, err := ask(conn, []byte("there?")); err != nil || !strings.HasSuffix(string(b), "there?") {
			t.Errorf("%s: %q, %v", network, b, err)
		}
	}
	if out, err := c.target.Output(patience(t, limit), bed.Root, "ping", "-n", "-c", "1", "-w", "20", "fe80::7%h0"); err != nil {
		t.Errorf("ping: %v, %s", err, out)
	}
}

// With --freebind a port can be forwarded of an address that the host is yet to get.
func TestFreebind(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "--freebind", "-t", "192.0.2.99/1100", "-t", "2001:db8:9::99/1100", "-u", "192.0.2.99/1100", "-u", "2001:db8:9::99/1100",
		"-T", "none", "-U", "none")
	const addresses = "address add 192.0.2.99/32 dev h0\naddress add 2001:db8:9::99/128 dev h0 nodad"
	if err := b.Host.IP(addresses); err != nil {
		t.Fatal(err)
	}
	if err := b.Far.IP("route add 192.0.2.99 via " + bed.HostAddr4 + "\nroute add 2001:db8:9::99 via " + bed.HostAddr6); err != nil {
		t.Fatal(err)
	}
	serveDatagrams(t, c.target.NS, []string{bed.HostAddr4, bed.HostAddr6}, 1100)
	for _, addr := range []string{"192.0.2.99", "2001:db8:9::99"} {
		outside, inside := inward(t, c, b.Far, net.JoinHostPort(addr, "1100"))
		inside.Write([]byte("hello"))
		text := make([]byte, 10)
		outside.SetDeadline(time.Now().Add(limit))
		if n, err := outside.Read(text); string(text[:n]) != "hello" {
			t.Errorf("TCP to %s: %q, %v", addr, text[:n], err)
		}
		u, err := b.Far.Dial(patience(t, limit), "udp", net.JoinHostPort(addr, "1100"))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if _, err := ask(u, []byte("hello")); err != nil {
			t.Errorf("UDP to %s: %v", addr, err)
		}
	}
}
