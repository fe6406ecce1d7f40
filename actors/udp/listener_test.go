package udp

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// guestPort has all peers lead to one port of the guest's.
type guestPort struct {
	flow.Listener
	b *bed
}

// joined is where they may all be.
type joined struct{ flow.Sharing }

func (g guestPort) Route(s *flow.Sender) (flow.Key, bool) {
	k := g.b.key
	k.RemotePort = s.Peer.Port()
	return k, true
}

func (joined) Meet(p *flow.Port, k *flow.Key, _, _ netip.AddrPort) (*flow.Member, error) {
	return &flow.Member{Alias: flow.NewAlias(*k, p, true)}, nil
}

// TestServedListenerAllocatesNothing: datagrams of many peers in turn, and the answers to them.
func TestServedListenerAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("pools lose things on purpose under the race detector")
	}
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam, 1, options{doNotServe: true})
		b.env.Link = nullLink{b.env.Link}
		l := newPeer(t, fam)
		raw, _ := l.SyscallConn()
		fd := -1
		raw.Control(func(s uintptr) {
			unix.SetsockoptInt(int(s), unix.SOL_IP, unix.IP_PKTINFO, 1)
			unix.SetsockoptInt(int(s), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
			fd, _ = unix.Dup(int(s))
		})
		g := guestPort{b: b}
		b.env.Sharing = joined{}
		c := newServer(b.env, b.port, fd, g)
		sock.PrepareUDP(fd)
		if err := b.port.Open(fd, c.fromHost); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.port.Close)
		to := netip.AddrPortFrom(fam.loopback, portOf(l))
		var peers []*net.UDPConn
		var frames [][]byte
		var pkts []frame.Packet
		for i := range 4 {
			p := newPeer(t, fam)
			peers = append(peers, p)
			b.key.RemotePort = portOf(p)
			f := b.frameOf(pattern(1000, uint32(i)), 0)
			var pkt frame.Packet
			if frame.Parse(f, &pkt) != frame.OK {
				t.Fatal("bad frame")
			}
			frames, pkts = append(frames, f), append(pkts, pkt)
		}
		buf, data := make([]byte, 65536), pattern(1400, 1)
		run := func() {
			for _, p := range peers {
				for range 3 {
					p.WriteToUDPAddrPort(data, to)
				}
			}
			c.fromHost()
			slab := b.pool.Get()
			for range 3 {
				for i, f := range frames {
					copy(slab.Room(), f)
					slab.Append(len(f), &pkts[i])
				}
			}
			b.port.Offer(slab.Run(0))
			slab.Release()
			c.fromGuest()
			for _, p := range peers {
				for range 3 {
					if n, from, err := p.ReadFromUDPAddrPort(buf); err != nil || n != 1000 || from != to {
						t.Fatalf("%d bytes from %v, %v", n, from, err)
					}
				}
			}
		}
		run()
		if n := testing.AllocsPerRun(100, run); n >= 1 {
			t.Errorf("%v allocations", n)
		}
		if n := c.table.len(); n != len(peers) {
			t.Errorf("%d peers", n)
		}
	})
}
