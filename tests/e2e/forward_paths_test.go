package e2e

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// Who comes from where, and what a service has to be bound to, depends on a few options.
func TestWhereForwardedTrafficGoes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   []string
		served string // address the server is bound to
		to     string // address the client connects to, on the host
		far    bool   // the client is the far peer
		remote string // what the server sees; "": nothing, the client is reset
		local  string
	}{
		{"service on loopback is not exposed", nil, "127.0.0.1", "127.0.0.1", false, "", ""},
		{"service on IPv6 loopback is not exposed", nil, "::1", "::1", false, "", ""},
		{"loopback to loopback", []string{"--host-lo-to-ns-lo"}, "127.0.0.1", "127.0.0.1", false, "127.0.0.1", "127.0.0.1"},
		{"loopback to loopback, exact address", []string{"--host-lo-to-ns-lo"}, "127.0.0.53", "127.0.0.53", false, "127.0.0.1", "127.0.0.53"},
		{"loopback to loopback, IPv6", []string{"--host-lo-to-ns-lo"}, "::1", "::1", false, "::1", "::1"},
		{"loopback to loopback is not for others", []string{"--host-lo-to-ns-lo"}, "127.0.0.1", bed.HostAddr4, true, "", ""},
		{"no splicing", []string{"--no-splice", "--map-host-loopback", "192.0.2.77"}, bed.HostAddr4, "127.0.0.1", false, "192.0.2.77", bed.HostAddr4},
		{"no splicing, no alias", []string{"--no-splice"}, bed.HostAddr4, "127.0.0.1", false, bed.FarAddr4, bed.HostAddr4},
		{"no splicing, IPv6", []string{"--no-splice", "--map-host-loopback", "2001:db8::77"}, bed.HostAddr6, "::1", false, "2001:db8::77", bed.HostAddr6},
		{"alias of the guest's address", []string{"--map-guest-addr", "192.0.2.78"}, bed.HostAddr4, bed.HostAddr4, false, "192.0.2.78", bed.HostAddr4},
		{"alias of the guest's address, IPv6", []string{"--map-guest-addr", "2001:db8::78"}, bed.HostAddr6, bed.HostAddr6, false, "2001:db8::78", bed.HostAddr6},
		{"address of one's own", []string{"-a", "192.0.2.9", "-n", "24", "-g", "192.0.2.1"}, "192.0.2.9", bed.HostAddr4, true, bed.FarAddr4, "192.0.2.9"},
		{"nothing but splicing", []string{"--splice-only"}, "127.0.0.1", "127.0.0.1", false, "127.0.0.1", "127.0.0.1"},
		{"nothing but splicing, IPv6", []string{"--splice-only"}, "::1", "::1", false, "::1", "::1"},
		{"nothing but splicing, a remote peer", []string{"--splice-only"}, "127.0.0.1", bed.HostAddr4, true, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, defaultBed)
			c := connect(t, b, append(tt.args, "-t", "1100", "-u", "1100", "-T", "none", "-U", "none")...)
			l, err := c.target.Listen("tcp", net.JoinHostPort(tt.served, "1100"))
			if err != nil {
				t.Fatal(err)
			}
			seen := make(chan witness, 10)
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					seen <- witness{plain(conn.RemoteAddr()), plain(conn.LocalAddr())}
					conn.Write([]byte("x"))
					conn.Close()
				}
			}()
			t.Cleanup(func() { l.Close() })
			serveDatagrams(t, c.target.NS, []string{tt.served}, 1100)
			from := b.Host
			if tt.far {
				from = b.Far
			}
			addr := net.JoinHostPort(tt.to, "1100")

			conn, err := from.Dial(patience(t, limit), "tcp", addr)
			if err == nil {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(limit))
				_, err = conn.Read(make([]byte, 1))
			}
			if tt.remote == "" {
				if !wasReset(err) {
					t.Errorf("TCP: %v, want a reset", err)
				}
			} else if err != nil {
				t.Errorf("TCP: %v", err)
			} else if got := <-seen; got.remote.Addr() != netip.MustParseAddr(tt.remote) || got.local.Addr() != netip.MustParseAddr(tt.local) {
				t.Errorf("TCP: the server sees %v, want %s > %s", got, tt.remote, tt.local)
			}

			u, err := from.Dial(patience(t, limit), "udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if tt.remote == "" {
				u.Write([]byte("hello"))
				u.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				if n, err := u.Read(make([]byte, 100)); err == nil {
					t.Errorf("UDP: %d bytes came back", n)
				} else if errors.Is(err, unix.ECONNREFUSED) {
					t.Error("UDP: the port is not forwarded")
				}
				return
			}
			answer, err := ask(u, []byte("hello"))
			if err != nil {
				t.Fatal(err)
			}
			line, _, _ := strings.Cut(string(answer), "\n")
			if got, err := parseWitness(line); err != nil || got.remote.Addr() != netip.MustParseAddr(tt.remote) || got.local.Addr() != netip.MustParseAddr(tt.local) {
				t.Errorf("UDP: the server sees %v, want %s > %s", got, tt.remote, tt.local)
			} else if got.remote.Port() != plain(u.LocalAddr()).Port() {
				t.Errorf("UDP: the server sees port %d of client %v", got.remote.Port(), u.LocalAddr())
			}
		})
	}
}

// A burst of datagrams on a new flow arrives complete and in order, spliced and by the tap.
func TestForwardedBurstKeepsOrder(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "-u", "1100", "-t", "none", "-T", "none", "-U", "3100")
	const burst = 100
	for _, tt := range []struct {
		name           string
		server, client *bed.NS
		listen, dial   string
	}{
		{"spliced in", c.target.NS, b.Host, bed.HostAddr4 + ":1100", "127.0.0.1:1100"},
		{"spliced out", b.Host, c.target.NS, "127.0.0.1:3100", "127.0.0.1:3100"},
		{"by the tap", c.target.NS, b.Far, bed.HostAddr4 + ":1100", bed.HostAddr4 + ":1100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, err := tt.server.ListenPacket("udp", tt.listen)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if tt.name == "by the tap" { // a first datagram resolves the neighbour
				warm, err := tt.client.Dial(patience(t, limit), "udp", tt.dial)
				if err != nil {
					t.Fatal(err)
				}
				defer warm.Close()
				warm.Write([]byte{255})
				server.SetReadDeadline(time.Now().Add(limit))
				if _, _, err := server.ReadFrom(make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
			}
			for range 5 {
				client, err := tt.client.Dial(patience(t, limit), "udp", tt.dial)
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				for i := range burst {
					if _, err := client.Write([]byte{byte(i)}); err != nil {
						t.Fatal(err)
					}
				}
				b := make([]byte, 10)
				for i := range burst {
					server.SetReadDeadline(time.Now().Add(limit))
					n, from, err := server.ReadFrom(b)
					if err != nil || n != 1 || b[0] != byte(i) {
						t.Fatalf("datagram %d: %v of %d bytes from %v, %v", i, b[0], n, from, err)
					}
				}
			}
		})
	}
}

// What is sent to a group that the host is in reaches the guest's members, each datagram once.
func TestForwardedGroup(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "-u", "1100", "-t", "none", "-T", "none", "-U", "none")
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 99), Port: 1100}
	join := func(n *bed.NS, port int) (m *net.UDPConn) {
		err := n.Do(func() error {
			h0, err := net.InterfaceByName("h0")
			if err == nil {
				m, err = net.ListenMulticastUDP("udp4", h0, &net.UDPAddr{IP: group.IP, Port: port})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	join(b.Host, 9)
	member := join(c.target.NS, group.Port)
	if err := b.Far.IP("route add 224.0.0.0/4 dev f0"); err != nil {
		t.Fatal(err)
	}
	far, err := b.Far.ListenPacket("udp4", bed.FarAddr4+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	buf := make([]byte, 10)
	for i := range byte(5) {
		if _, err := far.WriteTo([]byte{i}, group); err != nil {
			t.Fatal(err)
		}
		member.SetReadDeadline(time.Now().Add(limit))
		n, from, err := member.ReadFrom(buf)
		if err != nil || n != 1 || buf[0] != i || from.String() != far.LocalAddr().String() {
			t.Fatalf("datagram %d: %v of %d bytes from %v, %v", i, buf[0], n, from, err)
		}
	}
}
