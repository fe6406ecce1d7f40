package actors

import (
	"net"
	"testing"
	"time"

	"fusilli/actors/flow"
)

// TestIdleFlowsOfUDPTakeAllRoom: a new flow finds some all the same, since the one that was idle
// for longest gives way; but none that is in use does.
func TestIdleFlowsOfUDPTakeAllRoom(t *testing.T) {
	const most = 64
	b := newBed(t, options{maxFlows: most})
	fam := families[0]
	l, echo := listen(t, fam), echoUDP(t, fam)
	ask := func(c net.Conn, d time.Duration) error {
		c.SetDeadline(time.Now().Add(d))
		c.Write([]byte("?"))
		_, err := c.Read(make([]byte, 2))
		return err
	}
	ports := make(map[uint16]int)
	var conns []net.Conn
	for i := range most {
		c := b.dialUDP(t, fam, echo)
		for range 3 {
			if err := ask(c, patience); err != nil {
				t.Fatalf("flow %d: %v", i, err)
			}
		}
		conns = append(conns, c)
		ports[b.portOf(t, c)] = i
	}
	late := b.dialUDP(t, fam, echo)
	if ask(late, 200*time.Millisecond) == nil {
		t.Error("there is room for one more")
	}
	if n := b.Counters().Evicted.Load(); n != 0 || b.Flows() != most {
		t.Fatalf("%d flows in use have given way, %d of %d are left", n, b.Flows(), most)
	}

	// The first one goes on, the others were last used the longer ago the later they began.
	b.table.Each(func(p *flow.Port) {
		if i := ports[p.Key().GuestPort]; i > 0 {
			p.Used(flow.Now() - flow.InUse*flow.Time(i+1))
		}
	})
	until(t, "room for one more", func() bool { return ask(late, 200*time.Millisecond) == nil })
	gone := int(b.Counters().Evicted.Load())
	if gone == 0 || int(b.Counters().EvictedIdle.Load()) != gone {
		t.Errorf("%d flows have given way, %d of them idle", gone, b.Counters().EvictedIdle.Load())
	}
	left := make(map[int]bool)
	b.table.Each(func(p *flow.Port) {
		if i, ok := ports[p.Key().GuestPort]; ok {
			left[i] = true
		}
	})
	for i := range most {
		if left[i] != (i < most-gone) {
			t.Errorf("of %d that have given way to others, flow %d is one: %v", gone, i, !left[i])
		}
	}
	g, h := b.connect(fam, l) // and so does TCP
	if err := exchange(g, h, 1000, 1000, 1); err != nil {
		t.Error(err)
	}
	if err := ask(conns[0], patience); err != nil {
		t.Errorf("a flow in use: %v", err)
	}
	if n := b.logs.FilterMessage("Too many flows, those of UDP that are idle for longest give way to others").Len(); n != 1 {
		t.Errorf("logged %d times, want 1", n)
	}
}

// portOf is the guest's port of c.
func (b *bed) portOf(t *testing.T, c net.Conn) uint16 {
	t.Helper()
	_, port, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := net.LookupPort("udp", port)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}
