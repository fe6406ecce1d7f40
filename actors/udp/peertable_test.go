package udp

import (
	"net"
	"net/netip"
	"testing"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// TestCrowdAllocatesNothing: datagrams to and from many peers in turn.
func TestCrowdAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	fam := families[0]
	first := newPeer(t, fam)
	b, c := openConn(t, fam, first)
	expect(t, first, [][]byte{[]byte("hello")})
	b.env.Link = nullLink{b.env.Link}
	fd, err := (&sock.Host{}).ShareUDP(c.fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.port.Open(fd, c.fromHost); err != nil {
		t.Fatal(err)
	}
	local, _ := sock.Local(fd)
	c.fd, c.fresh, c.shares = fd, false, true
	c.table = &peerTable{port: local.Port(), peers: make(map[remote]*peer)}
	// The guest's link shows other addresses than ours, so that each is there by both.
	var peers []*net.UDPConn
	var frames [][]byte
	var pkts []frame.Packet
	for i := range 4 {
		p := newPeer(t, fam)
		peers = append(peers, p)
		k := b.key
		k.RemotePort += uint16(i)
		who := &peer{key: &k, host: p.LocalAddr().(*net.UDPAddr).AddrPort(), segLimit: maxRow}
		who.hdr.init(b.env, &k)
		c.include(who, remote{addr: k.Remote, port: k.RemotePort})
		c.table.peers[remote{addr: frame.AddrOf(fam.loopback), port: portOf(p)}] = who
		b.key.RemotePort = k.RemotePort
		f := b.frameOf(pattern(1000, uint32(i)), 0)
		b.key.RemotePort -= uint16(i)
		var pkt frame.Packet
		if frame.Parse(f, &pkt) != frame.OK {
			t.Fatal("bad frame")
		}
		frames, pkts = append(frames, f), append(pkts, pkt)
	}
	to := netip.AddrPortFrom(fam.loopback, local.Port())
	buf, data := make([]byte, 65536), pattern(1400, 1)
	run := func() {
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
				if n, _, err := p.ReadFromUDPAddrPort(buf); err != nil || n != 1000 {
					t.Fatalf("%d bytes, %v", n, err)
				}
				p.WriteToUDPAddrPort(data, to)
			}
		}
		c.fromHost()
	}
	run()
	if n := testing.AllocsPerRun(100, run); n >= 1 {
		t.Errorf("%v allocations", n)
	}
	for _, p := range c.table.peers {
		if p.hostSeen != 2 || p.guestBatch != 2 {
			t.Errorf("peer %v is counted with %d from the guest, %d from the host", p.host, p.guestBatch, p.hostSeen)
		}
	}
	if n := b.env.Counters.Filtered.Load(); n != 0 {
		t.Errorf("%d strangers", n)
	}
}

// TestCrowdsOrder: who was silent for longest gives way, first of those that are no more than a
// question and an answer, and each has its own time.
func TestCrowdsOrder(t *testing.T) {
	env := &flow.Env{UDPTimeout: 30, UDPStreamTimeout: 120}
	w := &peerTable{peers: make(map[remote]*peer)}
	all := make([]peer, 6)
	for i := range all {
		all[i].lastAt = flow.Time(i + 1)
		w.touch(&all[i])
	}
	all[0].hostSeen, all[0].guestBatch = 1, 2
	all[1].hostSeen, all[1].guestBatch = 1, 1
	all[0].lastAt, all[1].lastAt = 7, 8
	w.touch(&all[0])
	w.touch(&all[1])
	if got := w.expiry(env); got != all[2].lastAt+30 {
		t.Errorf("the next one ends at %d", got)
	}
	for _, want := range []*peer{&all[2], &all[3], &all[4], &all[5], &all[1]} {
		got := w.longestIdle()
		if got != want {
			t.Fatalf("%d gives way, want %d", got.lastAt, want.lastAt)
		}
		got.leaveList()
		got.leaveList()
	}
	if got := w.expiry(env); got != all[0].lastAt+120 {
		t.Errorf("the last one ends at %d", got)
	}
	if got := w.longestIdle(); got != &all[0] {
		t.Error("the last one is lost")
	}
	all[0].leaveList()
	if w.longestIdle() != nil {
		t.Error("somebody is left")
	}
}
