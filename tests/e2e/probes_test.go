package e2e

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// TestProbesOfOneIdentifier sends echo requests as traceroute and mtr do: all with one identifier,
// each with another hop limit than the one before. Each is answered, the short ones by the router.
func TestProbesOfOneIdentifier(t *testing.T) {
	t.Parallel()
	rounds := 6 // older kernels leave one out for every 50 errors that they send
	if s := os.Getenv("FUSILLI_PROBES"); s != "" {
		rounds, _ = strconv.Atoi(s)
	}
	b, _ := newRoutedBed(t)
	c := connect(t, b)
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, proto := c.rawEcho(t, i == 1)
			to := &net.IPAddr{IP: net.ParseIP(beyond[i].host)}
			send := func(hops, seq int) {
				t.Helper()
				m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 4711, Seq: seq, Data: make([]byte, 32)}}
				var err error
				if i == 0 {
					err = conn.IPv4PacketConn().SetTTL(hops)
				} else {
					m.Type = ipv6.ICMPTypeEchoRequest
					err = conn.IPv6PacketConn().SetHopLimit(hops)
				}
				b, err2 := m.Marshal(nil)
				if err != nil || err2 != nil {
					t.Fatal(err, err2)
				}
				if _, err := conn.WriteTo(b, to); err != nil {
					t.Fatal(err)
				}
			}
			// receive returns the sequence number of the next answer, and who it is from.
			receive := func() (seq int, from string) {
				b := make([]byte, 1500)
				for {
					n, a, err := conn.ReadFrom(b)
					if err != nil {
						return -1, err.Error()
					}
					m, err := icmp.ParseMessage(proto, b[:n])
					if err != nil {
						continue
					}
					switch body := m.Body.(type) {
					case *icmp.Echo:
						if m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply {
							return body.Seq, a.String()
						}
					case *icmp.TimeExceeded:
						at := 20
						if i == 1 {
							at = 40
						}
						if len(body.Data) >= at+8 {
							return int(body.Data[at+6])<<8 | int(body.Data[at+7]), a.String()
						}
					}
				}
			}
			// Neighbours are found meanwhile.
			for seq := 60000; ; seq++ {
				send(64, seq)
				conn.SetReadDeadline(time.Now().Add(time.Second))
				if got, _ := receive(); got >= 60000 {
					break
				} else if seq == 60000+int(limit/time.Second) {
					t.Fatal("no answer at all")
				}
			}
			seq, lost := 0, 0
			for _, atOnce := range []int{1, 4} { // probes on their way
				hops := []int{1, 2, 3, 1, 1, 2, 2, 64}
				for range rounds {
					for j := 0; j < len(hops); j += atOnce {
						want := make(map[int]string)
						for _, h := range hops[j : j+atOnce] {
							seq++
							want[seq] = beyond[i].host
							if h == 1 {
								want[seq] = f.far
							}
							send(h, seq)
						}
						conn.SetReadDeadline(time.Now().Add(2 * time.Second))
						for len(want) > 0 {
							got, from := receive()
							if got < 0 {
								break
							}
							if w, ok := want[got]; ok && w != from {
								t.Errorf("probe %d is answered by %s, want %s", got, from, w)
							}
							delete(want, got)
						}
						if len(want) > 0 {
							t.Logf("no answer to %v, %d at a time", want, atOnce)
						}
						lost += len(want)
					}
				}
			}
			if lost > seq/10 { // a kernel may lose one
				t.Errorf("%d of %d probes are lost", lost, seq)
			}
		})
	}
}

// rawEcho opens a socket in the target that echo requests are sent from as they are, and returns
// the number of its protocol.
func (c *connection) rawEcho(t *testing.T, v6 bool) (conn *icmp.PacketConn, proto int) {
	t.Helper()
	network, any, proto := "ip4:icmp", "0.0.0.0", 1
	if v6 {
		network, any, proto = "ip6:ipv6-icmp", "::", 58
	}
	err := c.target.Do(func() (err error) {
		conn, err = icmp.ListenPacket(network, any)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, proto
}

// TestPingOfTwoHostsWithOneIdentifier: a monitor that pings all its hosts with one identifier gets
// each answer from the host that has given it.
func TestPingOfTwoHostsWithOneIdentifier(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	others := []string{"10.77.0.3", "fd77::3"}
	if err := b.Far.IP("addr add 10.77.0.3/24 dev f0\naddr add fd77::3/64 dev f0 nodad"); err != nil {
		t.Fatal(err)
	}
	c := connect(t, b)
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, proto := c.rawEcho(t, i == 1)
			hosts := []string{f.far, others[i]}
			answered := make(map[string]bool) // host and sequence number
			waitFor(t, "all to be answered", func() bool {
				for seq := range 4 {
					// the same numbers to both, and both before any answer is read
					for _, h := range hosts {
						m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 4711, Seq: seq, Data: []byte(h)}}
						if i == 1 {
							m.Type = ipv6.ICMPTypeEchoRequest
						}
						b, err := m.Marshal(nil)
						if err != nil {
							t.Fatal(err)
						}
						if _, err := conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP(h)}); err != nil {
							t.Fatal(err)
						}
					}
				}
				conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				for b := make([]byte, 1500); len(answered) < 4*len(hosts); {
					n, from, err := conn.ReadFrom(b)
					if err != nil {
						return false
					}
					m, err := icmp.ParseMessage(proto, b[:n])
					if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
						continue
					}
					e := m.Body.(*icmp.Echo)
					if string(e.Data) != from.String() {
						t.Errorf("what %s was asked is answered by %s", e.Data, from)
					}
					answered[fmt.Sprint(from, e.Seq)] = true
				}
				return true
			})
		})
	}
}
