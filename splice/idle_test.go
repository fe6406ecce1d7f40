package splice

import (
	"testing"

	"fusilli/actors/flow"
)

// TestIdleDatagramsTakeAllRoom: who comes finds some all the same, since the flow that was idle for
// longest ends; but none that is in use does.
func TestIdleDatagramsTakeAllRoom(t *testing.T) {
	const most = 8
	s := start(t, limit(most))
	addr := loopbacks[0].addr
	var flows []conversation
	byPort := make(map[uint16]int)
	for i := range most {
		c := converse(t, s, addr, []byte("first"))
		from := expectDatagram(t, c.server, []byte("first"))
		c.server.WriteToUDPAddrPort([]byte("answer"), from)
		expectDatagram(t, c.client, []byte("answer"))
		flows = append(flows, c)
		byPort[udpAddr(c.server).Port()] = i
	}
	if s.cfg.Limit.Reclaim() { // what a refused flow does
		t.Error("there is room for one more")
	}
	if n := s.Counters().Evicted.Load(); n != 0 {
		t.Errorf("%d flows in use have given way", n)
	}

	s.mu.Lock()
	for f := range s.idle {
		if i := byPort[f.dst.Port()]; i > 0 {
			f.used.Store(int64(flow.Now() - flow.InUse*flow.Time(i+1)))
		}
	}
	s.mu.Unlock()
	s.cfg.Limit.Reclaim()
	wait(t, "the idlest flow to end", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.live) == most-1
	})
	spliced(t, s, addr)
	s.mu.Lock()
	for f := range s.idle {
		if i := byPort[f.dst.Port()]; i == most-1 {
			t.Errorf("flow %d, which was idle for longest, is still there", i)
		}
	}
	s.mu.Unlock()
	c := flows[0]
	c.client.Write([]byte("still there?"))
	expectDatagram(t, c.server, []byte("still there?"))
	if n := s.Counters().Evicted.Load(); n == 0 || n > 2 {
		t.Errorf("%d flows have given way", n)
	}
}
