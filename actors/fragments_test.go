package actors

import (
	"bytes"
	"io"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"fusilli/actors/frag"
	"fusilli/tapio/frame"
)

// TestFragmentsArePutTogether: a large datagram arrives at any MTU of the guest's, and so does the
// answer.
func TestFragmentsArePutTogether(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, options{change: func(c *Config) { c.Fragment = true }})
		c := b.dialUDP(t, fam, echoUDP(t, fam))
		got := make([]byte, 1<<16)
		for _, n := range []int{1453, 4096, 1500, 20000, 1} {
			want, _ := io.ReadAll(newStream(n, uint64(n)))
			if _, err := c.Write(want); err != nil {
				t.Fatal(err)
			}
			m, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:m], want) {
				t.Fatalf("%d bytes: %d come back, %v", n, m, err)
			}
		}
		if n := b.Counters().Fragments[frag.Whole].Load(); n < 3 {
			t.Errorf("%d datagrams were put together", n)
		}
		if n := b.Counters().UDP.Load(); n != 1 {
			t.Errorf("%d flows, want 1", n)
		}
	})
}

// TestFragmentFlood: a guest that begins datagrams without end harms no other flow.
func TestFragmentFlood(t *testing.T) {
	b := newBed(t, options{})
	g, h := b.connect(families[0], listen(t, families[0]))
	first := make([]byte, frame.L3Off+frame.IPv4Len+16)
	frame.PutEth(first, ourMAC, guestMAC, frame.EtherIPv4)
	ip := frame.IP{Src: frame.AddrOf(netip.MustParseAddr("10.0.2.15")), Dst: frame.AddrOf(families[0].alias), Proto: frame.ProtoUDP, TTL: 64, Len: 16}
	stop := make(chan struct{})
	var all, flood errgroup.Group
	flood.Go(func() error {
		for {
			select {
			case <-stop:
				return nil
			default:
				ip.ID++
				frame.PutIP(first[frame.L3Off:], &ip)
				first[frame.L3Off+6] = 0x20
				if b.link.Write(first) != nil {
					time.Sleep(time.Millisecond) // let the link's queue drain
				}
			}
		}
	})
	all.Go(func() error { return exchange(g, h, scaled(1<<20), scaled(1<<20), 1) })
	err := all.Wait()
	until(t, "the table to be full", func() bool { return b.Counters().FragmentsEvicted.Load() > 0 })
	close(stop)
	flood.Wait()
	if err != nil {
		t.Error(err)
	}
	b.idle()
}
