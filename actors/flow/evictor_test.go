package flow

import (
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// flowsOf adds n flows of proto to r.
func flowsOf(t *testing.T, r *Evictor, proto uint16, fromHost bool, n int) (ports, victims []*Port) {
	t.Helper()
	for i := range n {
		k := key(i)
		k.Proto = proto
		p := NewPort(k)
		victim, ok := r.Add(p, fromHost)
		if !ok {
			t.Fatalf("flow %d is refused", i)
		}
		ports = append(ports, p)
		if victim != nil {
			victims = append(victims, victim)
		}
	}
	return ports, victims
}

func TestOldestUnansweredFlowsGiveWay(t *testing.T) {
	r := NewEvictor(NewLimit(1000))
	ports, victims := flowsOf(t, r, frame.ProtoTCP, false, 300)
	if len(victims) != 50 {
		t.Fatalf("%d of 300 have given way, want 50: a quarter of 1000 may be half-open", len(victims))
	}
	for i, p := range victims {
		if p != ports[i] {
			t.Fatalf("victim %d is another one than the %d-th flow", i, i)
		}
	}
	// Others are no matter.
	for _, other := range []struct {
		proto    uint16
		fromHost bool
	}{{frame.ProtoTCP, true}, {frame.ProtoUDP, false}, {frame.ProtoUDP, true}, {frame.ProtoICMP, false}} {
		if _, victims := flowsOf(t, r, other.proto, other.fromHost, 250); len(victims) != 0 {
			t.Errorf("%d flows of another kind have given way", len(victims))
		}
	}
}

func TestSettledFlowsStay(t *testing.T) {
	r := NewEvictor(NewLimit(1000))
	ports, _ := flowsOf(t, r, frame.ProtoUDP, false, 250)
	for _, p := range ports[:100] {
		p.Assured()
	}
	for _, p := range ports[200:] {
		p.SeenReply()
		p.SeenReply()
	}
	_, victims := flowsOf(t, r, frame.ProtoUDP, false, 300)
	// the answered ones first
	want := append(append([]*Port(nil), ports[200:]...), ports[100:200]...)
	if len(victims) != 200 {
		t.Fatalf("%d have given way, want 200", len(victims))
	}
	for i, p := range want {
		if victims[i] != p {
			t.Fatalf("victim %d is not the right one", i)
		}
	}
	for _, p := range ports {
		r.Remove(p)
		r.Remove(p) // no effect
	}
	for i := range 300 {
		if r.Victim() == nil {
			if i != 250 {
				t.Fatalf("%d flows were left to give way, want 250", i)
			}
			return
		}
	}
	t.Error("more flows give way than there are")
}

func TestOneKindLeavesRoomForOthers(t *testing.T) {
	limit := NewLimit(1024)
	tab, r := NewTable(limit), NewEvictor(limit)
	refused := 0
	for i := range 1024 {
		k := key(i)
		k.Proto = frame.ProtoTCP
		p := NewPort(k)
		if err := tab.Insert(p); err != nil {
			t.Fatal(err)
		}
		if _, ok := r.Add(p, false); !ok {
			refused++
			tab.Remove(p)
			continue
		}
		p.Assured()
	}
	if refused != 256 {
		t.Errorf("%d connections of 1024 are refused, want 256", refused)
	}
	if _, victims := flowsOf(t, r, frame.ProtoUDP, false, 1); len(victims) != 0 {
		t.Error("a flow of UDP costs another one its place")
	}
}

// TestFlowsGiveWayBeforeThereIsNoRoom: it takes them a moment to end.
func TestFlowsGiveWayBeforeThereIsNoRoom(t *testing.T) {
	limit := NewLimit(6400)
	tab, r := NewTable(limit), NewEvictor(limit)
	var victims int
	for i := range 6400 {
		k := key(i)
		k.Proto = frame.ProtoTCP
		p := NewPort(k)
		if err := tab.Insert(p); err != nil {
			t.Fatal(err)
		}
		victim, ok := r.Add(p, i%2 == 0)
		if !ok {
			t.Fatalf("flow %d is refused", i)
		}
		if i >= 100 {
			p.Assured()
		}
		if victim != nil {
			if victims++; i < 6300 {
				t.Fatalf("flow %d costs another one its place", i)
			}
		}
	}
	if victims == 0 {
		t.Error("none has given way")
	}
}

func TestLimitOfDescriptors(t *testing.T) {
	l := NewFileLimit(100, 10)
	var g reclaimerOf
	l.AddReclaimer(&g)
	for range 3 {
		if !l.Acquire(3) {
			t.Fatal("refused")
		}
	}
	if l.Acquire(3) || g.asked != 1 {
		t.Errorf("12 descriptors of 10 are given out, or nobody was told (%d)", g.asked)
	}
	if !l.Acquire(1) || l.Len() != 4 {
		t.Error("the last one was refused")
	}
	l.Release(3)
	if !l.Acquire(3) {
		t.Error("refused what was given back")
	}
}

func TestLimitIsLoggedOnceAMinute(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	log := zap.New(core)
	var b Counter
	for range 1000 {
		b.Hit(log, "full")
	}
	if logs.Len() != 1 || b.Load() != 1000 {
		t.Fatalf("%d messages, %d counted", logs.Len(), b.Load())
	}
	b.told.Add(-int64(boundPeriod)) // a minute later
	b.HitBy(log, "full", unix.EMFILE)
	b.HitBy(log, "full", unix.EMFILE)
	if logs.Len() != 2 || logs.All()[1].ContextMap()["times"] != uint64(1001) {
		t.Errorf("%v", logs.All())
	}
	if n := testing.AllocsPerRun(100, func() { b.Hit(log, "full") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// reclaimerOf is a Giver with one idle flow, and perhaps one that is not answered.
type reclaimerOf struct {
	unanswered bool
	last       Time
	has        bool
	asked      int
	ended      bool
}

func (g *reclaimerOf) EvictUnanswered() bool { g.asked++; return g.unanswered }

func (g *reclaimerOf) LongestIdle() (Time, func()) {
	if !g.has {
		return 0, nil
	}
	return g.last, func() { g.ended = true }
}

// TestLongestIdleFlowOfAllGivesWay: whoever has it, if it is idle, and no other is without an
// answer.
func TestLongestIdleFlowOfAllGivesWay(t *testing.T) {
	const idle = 3 * InUse
	for _, tt := range []struct {
		name string
		a, b reclaimerOf
		want string
	}{
		{"nobody has any", reclaimerOf{}, reclaimerOf{}, ""},
		{"in use", reclaimerOf{has: true, last: Now()}, reclaimerOf{has: true, last: Now()}, ""},
		{"idle", reclaimerOf{has: true, last: Now() - idle}, reclaimerOf{has: true, last: Now()}, "a"},
		{"idle for longer", reclaimerOf{has: true, last: Now() - idle}, reclaimerOf{has: true, last: Now() - 2*idle}, "b"},
		{"without an answer", reclaimerOf{has: true, last: Now() - idle}, reclaimerOf{unanswered: true}, "unanswered"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := NewLimit(1)
			l.AddReclaimer(&tt.a)
			l.AddReclaimer(&tt.b)
			if l.Reclaim() != (tt.want != "") || tt.a.ended != (tt.want == "a") || tt.b.ended != (tt.want == "b") {
				t.Errorf("%+v, %+v; want %q to give way", tt.a, tt.b, tt.want)
			}
		})
	}
}

// TestIdlestFlow: those that were used of late are behind those that were not.
func TestIdlestFlow(t *testing.T) {
	r := NewEvictor(NewLimit(1000))
	ports, _ := flowsOf(t, r, frame.ProtoUDP, false, 100)
	if p, _ := r.LongestIdle(); p != nil {
		t.Fatal("one without an answer counts as idle")
	}
	now := Now()
	for i, p := range ports {
		p.Used(now - Time(i*37%100+1)*InUse)
		p.Assured()
	}
	ports[27].Ending() // 27*37%100 = 99: for longest
	for i := range 99 {
		p, last := r.LongestIdle()
		if want := now - Time(99-i)*InUse; p == nil || last != want {
			t.Fatalf("flow %d is idle since %v, want %v", i, last, want)
		}
		p.Used(Now() + Time(i+1))
	}
	p, _ := r.LongestIdle()
	if !r.Take(p) || r.Take(p) {
		t.Error("it does not give way once")
	}
	if q, _ := r.LongestIdle(); q == p {
		t.Error("it is still there")
	}
	if tcp, _ := flowsOf(t, NewEvictor(NewLimit(10)), frame.ProtoTCP, false, 1); tcp[0].queue != nil {
		if tcp[0].Assured(); tcp[0].queue != nil {
			t.Error("a connection gives way")
		}
	}
}
