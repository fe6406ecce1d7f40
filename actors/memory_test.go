package actors

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

func TestMemoryIsDivided(t *testing.T) {
	for _, tt := range []struct{ memory, slabs, datagrams int }{
		{0, 512, 63}, {flow.DefaultMemory, 512, 63}, {flow.LeastMemory, 42, 5}, {1 << 30, 5461, 64},
	} {
		slabs, datagrams, held := divide(tt.memory)
		if slabs != tt.slabs || datagrams != tt.datagrams {
			t.Errorf("%d: %d slabs and %d datagrams, want %d and %d", tt.memory, slabs, datagrams, tt.slabs, tt.datagrams)
		}
		if sum := slabs*flow.SlabSize + datagrams*frame.MaxFrame + held; tt.memory > 0 && (sum > tt.memory || sum < tt.memory-flow.SlabSize) {
			t.Errorf("%d: %d altogether", tt.memory, sum)
		}
	}
}

// TestStuckFlowsLeaveOthersRoom: peers of many connections do not read, and what the guest may have
// us hold is used up. That stays so, others keep their speed, and when the peers read at last each
// gets all that was sent.
func TestStuckFlowsLeaveOthersRoom(t *testing.T) {
	const each, healthy = 4 << 20, 32 << 20
	const stuck = 64 // fewer would leave room
	fam := families[0]
	b := newBed(t, options{mtu: 9000, change: func(c *Config) { c.Memory = flow.LeastMemory }})
	slabs, _, held := divide(flow.LeastMemory)
	// A guest that gives up after a second, as the one of other tests may, is none that waits for a
	// turn.
	patient := tcpip.TCPMaxRTOOption(10 * time.Second)
	b.guest.SetTransportProtocolOption(tcp.ProtocolNumber, &patient)

	transfer := func() time.Duration {
		t.Helper()
		g, h := b.connect(fam, listen(t, fam))
		begin := time.Now()
		var both errgroup.Group
		both.Go(func() error { return send(g, healthy, 7) })
		both.Go(func() error { return receive(h, healthy, 7) })
		if err := both.Wait(); err != nil {
			t.Fatal(err)
		}
		h.Close()
		return time.Since(begin)
	}
	alone := min(transfer(), transfer(), transfer())

	l := listen(t, fam)
	var sending, reading errgroup.Group
	read := make(chan struct{})
	for i := range stuck {
		g, h := b.connect(fam, l)
		sending.Go(func() error { return send(g, each, uint64(i)) })
		reading.Go(func() error {
			<-read
			if err := receive(h, each, uint64(i)); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			return nil
		})
	}
	until(t, "windows shrunk", func() bool { return b.Counters().HeldFull.Load() > 0 })
	var most atomic.Int64
	looking, stop := errgroup.Group{}, make(chan struct{})
	looking.Go(func() error {
		for {
			select {
			case <-stop:
				return nil
			case <-time.After(time.Millisecond):
				most.Store(max(most.Load(), int64(b.env.Held.Used())))
			}
		}
	})
	beside := min(transfer(), transfer(), transfer())
	close(stop)
	looking.Wait()
	t.Logf("%v alone, %v beside %d connections that are stuck; %d KiB of %d are held at most, %d slabs of %d are out",
		alone, beside, stuck, most.Load()>>10, held>>10, b.pool.Out(), slabs)
	if beside > 4*alone {
		t.Errorf("a transfer takes %v beside others, %v alone", beside, alone)
	}
	if n := most.Load(); n > int64(held) || n < int64(held)/2 {
		t.Errorf("%d bytes are held, want %d at most and half of that at least", n, held)
	}
	if n := b.pool.Out(); n > slabs/2+2 {
		t.Errorf("%d slabs of %d are kept", n, slabs)
	}
	if n := b.Counters().HeldRefused.Load(); n > 0 {
		t.Errorf("guests that keep to their windows have to repeat something %d times", n)
	}
	close(read)
	if err := sending.Wait(); err != nil {
		t.Error(err)
	}
	if err := reading.Wait(); err != nil {
		t.Error(err)
	}
}
