package actors

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// exchange sends out bytes from the guest and in bytes from the host, at the same time, each
// direction to its end.
func exchange(g, h halfConn, out, in int, seed uint64) error {
	var all errgroup.Group
	all.Go(func() error { return wrap("guest", send(g, out, seed)) })
	all.Go(func() error { return wrap("host", receive(h, out, seed)) })
	all.Go(func() error { return wrap("host", send(h, in, ^seed)) })
	all.Go(func() error { return wrap("guest", receive(g, in, ^seed)) })
	return all.Wait()
}

func wrap(who string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", who, err)
	}
	return nil
}

func TestTransfer(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options options
		out, in int
	}{
		{"nothing", options{}, 0, 0},
		{"one byte", options{}, 1, 1},
		{"out", options{}, 8 << 20, 0},
		{"in", options{}, 0, 8 << 20},
		{"both", options{}, 4 << 20, 4 << 20},
		{"MTU 1280", options{mtu: 1280}, 2 << 20, 2 << 20},
		{"MTU 9000", options{mtu: 9000}, 8 << 20, 8 << 20},
		{"MTU 65520", options{mtu: 65520}, 16 << 20, 16 << 20},
		{"without peek offset", options{noPeekOff: true}, 4 << 20, 4 << 20},
		{"short queue", options{queue: 16}, 1 << 20, 1 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				b := newBed(t, tt.options)
				g, h := b.connect(fam, listen(t, fam))
				if err := exchange(g, h, scaled(tt.out), scaled(tt.in), 1); err != nil {
					t.Error(err)
				}
				b.idle()
			})
		})
	}
}

// badLink loses, duplicates and reorders 5% of the frames each.
func badLink(seed uint64) tapio.Faults {
	return tapio.Faults{Lose: 0.05, Duplicate: 0.05, Reorder: 0.05, Seed: seed}
}

func TestTransferOverABadLink(t *testing.T) {
	for _, tt := range []struct {
		name      string
		out, in   int
		noPeekOff bool
	}{
		{"out", 1 << 19, 0, false},
		{"in", 0, 1 << 20, false},
		{"both", 1 << 18, 1 << 18, false},
		{"in, without peek offset", 0, 1 << 20, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				t.Parallel()
				b := newBed(t, options{faults: badLink(uint64(tt.out) + 1), noPeekOff: tt.noPeekOff})
				g, h := b.connect(fam, listen(t, fam))
				if err := exchange(g, h, scaled(tt.out), scaled(tt.in), 2); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestManyConnectionsAtOnce(t *testing.T) {
	const many = 50
	for _, tt := range []struct {
		name   string
		faults tapio.Faults
	}{{"clean", tapio.Faults{}}, {"bad link", badLink(3)}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, options{faults: tt.faults})
			var all errgroup.Group
			for i := range many {
				fam := families[i%2]
				g, h := b.connect(fam, listen(t, fam))
				n := scaled(128<<10) + i
				all.Go(func() error { return exchange(g, h, n, 2*n, uint64(i)) })
			}
			if err := all.Wait(); err != nil {
				t.Error(err)
			}
			if tt.name == "clean" {
				b.idle()
			}
		})
	}
}

// TestHalfClose: one side ends its direction, and only when the other one has seen that it begins
// to send.
func TestHalfClose(t *testing.T) {
	const small, large = 1000, 1 << 20
	forFamilies(t, func(t *testing.T, fam family) {
		for _, tt := range []struct {
			name   string
			guest  bool // ends first
			faults tapio.Faults
		}{
			{"guest first", true, tapio.Faults{}},
			{"host first", false, tapio.Faults{}},
			{"guest first, bad link", true, badLink(5)},
			{"host first, bad link", false, badLink(6)},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newBed(t, options{faults: tt.faults})
				g, h := b.connect(fam, listen(t, fam))
				first, second := halfConn(g), halfConn(h)
				if !tt.guest {
					first, second = second, first
				}
				var all errgroup.Group
				all.Go(func() error {
					if err := send(first, small, 1); err != nil {
						return err
					}
					return receive(first, scaled(large), 2)
				})
				all.Go(func() error {
					if err := receive(second, small, 1); err != nil {
						return err
					}
					return send(second, scaled(large), 2)
				})
				if err := all.Wait(); err != nil {
					t.Error(err)
				}
				b.idle()
			})
		}
	})
}

func TestReset(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		t.Run("by the guest", func(t *testing.T) {
			b := newBed(t, options{})
			g, h := b.connect(fam, listen(t, fam))
			g.Write([]byte("x"))
			h.Read(make([]byte, 1))
			g.abort()
			if _, err := h.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("host reads %v, want a reset", err)
			}
			b.idle()
		})
		t.Run("by the host", func(t *testing.T) {
			b := newBed(t, options{})
			g, h := b.connect(fam, listen(t, fam))
			g.Write([]byte("x"))
			h.Read(make([]byte, 1))
			h.SetLinger(0)
			h.Close()
			if _, err := g.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("guest reads %v, want a reset", err)
			}
			b.idle()
		})
		t.Run("by the host after half-close", func(t *testing.T) {
			b := newBed(t, options{})
			g, h := b.connect(fam, listen(t, fam))
			h.CloseWrite()
			if n, err := g.Read(make([]byte, 1)); n != 0 || err.Error() != "EOF" {
				t.Fatalf("guest reads %d, %v", n, err)
			}
			h.SetLinger(0)
			h.Close()
			until(t, "guest is told", func() bool { _, err := g.Write([]byte("x")); return err != nil })
			b.idle()
		})
		t.Run("by the host while the guest's window is closed", func(t *testing.T) {
			b := newBed(t, options{})
			g, h := b.connect(fam, listen(t, fam))
			go send(h, 64<<20, 1)
			until(t, "window closed", func() bool { return b.guest.port.closedOut.Load() > 0 })
			h.SetLinger(0)
			h.Close()
			b.idle()
			until(t, "guest is told", func() bool { _, err := g.Write([]byte("x")); return err != nil })
		})
	})
}

func TestRefused(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, options{})
		l := listen(t, fam)
		l.Close()
		for range 3 {
			_, err := b.guest.dial(t.Context(), addrOf(fam, l))
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("connect: %v, want refused", err)
			}
		}
		b.idle()
	})
}

// TestPortsUsedAgainAtOnce: a guest that resets or ends a connection and begins one from the same
// port in the same breath does not wait for its SYN to be repeated.
func TestPortsUsedAgainAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		apart bool // the SYN is read after the reset
	}{{"together", false}, {"apart", true}} {
		t.Run(tt.name, func(t *testing.T) {
			fam := families[0]
			e, link, _ := newEngine(&options{})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- e.Run(ctx) }()
			defer func() {
				cancel()
				<-ended
				link.Close()
				if n := e.pool.Out(); n != 0 {
					t.Errorf("%d slabs were not given back", n)
				}
			}()
			l := listen(t, fam)
			syn := func(seq uint32) { link.Write(segment(fam.alias, 4000, portOf(l), frame.SYN, seq, 0, nil)) }
			answer := func(seq uint32) uint32 {
				t.Helper()
				timer := time.AfterFunc(patience, func() { link.Close() })
				defer timer.Stop()
				b := make([]byte, frame.MaxFrame)
				for {
					n, err := link.Read(b)
					if err != nil {
						t.Fatal(err)
					}
					var p frame.Packet
					if frame.Parse(b[:n], &p) != frame.OK || p.Kind != frame.TCP {
						continue
					}
					h := frame.TCPHeader(b[p.L4:p.End])
					if h.Flags() == frame.SYN|frame.ACK && h.Ack() == seq+1 {
						return h.Seq()
					}
				}
			}
			seq := uint32(1000)
			syn(seq)
			ours := answer(seq)
			for range 50 {
				link.Write(segment(fam.alias, 4000, portOf(l), frame.ACK, seq+1, ours+1, nil))
				h, err := l.AcceptTCP()
				if err != nil {
					t.Fatal(err)
				}
				link.Write(segment(fam.alias, 4000, portOf(l), frame.RST|frame.ACK, seq+1, ours+1, nil))
				if tt.apart {
					until(t, "the end", func() bool { return e.Flows() == 0 })
				}
				seq += 100000
				syn(seq) // once
				ours = answer(seq)
				h.Close()
			}
		})
	}
}
