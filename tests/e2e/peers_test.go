package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// speak has the target ask n peers from one socket, each until it answers, and returns by which
// addresses they know it, and the socket.
func (c *connection) speak(t *testing.T, far, local string, n int) (map[netip.AddrPort]bool, net.PacketConn) {
	t.Helper()
	seen := make(chan netip.AddrPort, 1)
	sock, err := c.target.ListenPacket("udp", local)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	all := map[netip.AddrPort]bool{}
	b := make([]byte, 100)
	for i := range n {
		peer, err := c.Far.ListenPacket("udp", net.JoinHostPort(far, "0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { peer.Close() })
		go func() {
			b := make([]byte, 100)
			first := true
			for {
				n, from, err := peer.ReadFrom(b)
				if err != nil {
					return
				}
				peer.WriteTo(b[:n], from)
				if first {
					first = false
					seen <- from.(*net.UDPAddr).AddrPort()
				}
			}
		}()
		want := fmt.Sprint("peer ", i)
		for tries := 0; ; tries++ {
			if tries == 5 {
				t.Fatalf("no answer of peer %d", i)
			}
			sock.WriteTo([]byte(want), peer.LocalAddr())
			sock.SetReadDeadline(time.Now().Add(2 * time.Second))
			got, from, err := sock.ReadFrom(b)
			for ; err == nil && string(b[:got]) != want; got, from, err = sock.ReadFrom(b) {
				// The answer to a question that was repeated.
			}
			if err == nil {
				if from.String() != peer.LocalAddr().String() {
					t.Fatalf("peer %d's answer is from %v, not %v", i, from, peer.LocalAddr())
				}
				break
			}
		}
		all[<-seen] = true
	}
	return all, sock
}

// TestPeersOfOnePort: they share a socket of ours, all know the target by one address, and nobody
// else is heard; if the port is forwarded everybody is, and each peer has a socket.
func TestPeersOfOnePort(t *testing.T) {
	t.Parallel()
	const n = 150
	const forwarded = 5005
	c := connect(t, newBed(t, defaultBed), "-u", fmt.Sprint(forwarded))
	for i, f := range families {
		host := netip.MustParseAddr([]string{bed.HostAddr4, bed.HostAddr6}[i])
		for _, port := range []int{5006, forwarded} {
			t.Run(fmt.Sprint(f.name, " ", port), func(t *testing.T) {
				before := c.usage(t).FDs
				all, sock := c.speak(t, f.far, fmt.Sprint(":", port), n)
				took := c.usage(t).FDs - before
				if want := netip.AddrPortFrom(host, uint16(port)); len(all) != 1 || !all[want] {
					t.Errorf("the peers know the target by %v, want %v", all, want)
				}
				if port == forwarded && took < n || port != forwarded && took > 16 {
					t.Errorf("%d descriptors for %d peers", took, n)
				}
				stranger, err := c.Far.ListenPacket("udp", net.JoinHostPort(f.far, "0"))
				if err != nil {
					t.Fatal(err)
				}
				defer stranger.Close()
				to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, uint16(port)))
				b := make([]byte, 100)
				heard := false
				for tries := 0; tries < 5 && !heard; tries++ {
					stranger.WriteTo([]byte("stranger"), to)
					wait := 2 * time.Second
					if port != forwarded {
						// What comes behind it shows that it would have been there.
						_, behind := c.speak(t, f.far, ":0", 1)
						behind.Close()
						wait = 50 * time.Millisecond
					}
					sock.SetReadDeadline(time.Now().Add(wait))
					for got, _, err := sock.ReadFrom(b); err == nil && !heard; got, _, err = sock.ReadFrom(b) {
						heard = string(b[:got]) == "stranger"
						if heard {
							break
						}
					}
				}
				if heard != (port == forwarded) {
					t.Errorf("the stranger is heard: %v", heard)
				}
			})
		}
	}
}
