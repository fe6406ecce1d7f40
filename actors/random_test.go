package actors

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"fusilli/tapio"
)

// Variables of the environment that change TestRandomConnections: the seed of a run that is to be
// repeated, and how many connections each link carries.
const (
	seedVar  = "FUSILLI_TEST_SEED"
	connsVar = "FUSILLI_TEST_CONNS"
)

// number returns the number in the variable name, or n.
func number(t *testing.T, name string, n uint64) uint64 {
	s := os.Getenv(name)
	if s == "" {
		return n
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// How a connection of TestRandomConnections ends.
const (
	bothAtOnce  = iota
	guestFirst  // and the host sends only when it has heard of the end
	hostFirst   // the other way round
	guestSilent // the guest sends nothing and ends at once
	hostSilent  // the other way round
	numOfEndings
)

// TestRandomConnections: whatever a link does to frames, every byte of every connection arrives, in
// both directions, whoever has asked for it and in whatever order the two ends finish.
func TestRandomConnections(t *testing.T) {
	seed := number(t, seedVar, rand.Uint64())
	many := int(number(t, connsVar, uint64(scaled(64))))
	t.Logf("%s=%d %s=%d", seedVar, seed, connsVar, many)
	for link := range uint64(4) {
		rnd := rand.New(rand.NewPCG(seed, link))
		// An answer is lost if it or the question is: so much in both directions together.
		lose, there := 0.2*rnd.Float64(), rnd.Float64()
		faults := func(share float64) tapio.Faults {
			return tapio.Faults{Lose: lose * share, Duplicate: 0.2 * rnd.Float64(), Reorder: 0.2 * rnd.Float64(),
				Delay: 0.2 * rnd.Float64(), Seed: rnd.Uint64()}
		}
		out, in := faults(there), faults(1-there)
		mtu := []int{1280, 1500, 9000}[rnd.IntN(3)]
		t.Run(fmt.Sprintf("link %d", link), func(t *testing.T) {
			t.Parallel()
			t.Logf("MTU %d, from the guest %+v, to the guest %+v", mtu, out, in)
			b := newBed(t, options{mtu: mtu, faults: out, faultsIn: &in, noPeekOff: link == 3})
			var all errgroup.Group
			all.SetLimit(64)
			for i := range many {
				r := rand.New(rand.NewPCG(rnd.Uint64(), 0))
				fam := families[r.IntN(2)]
				var connect func() (*conn, *net.TCPConn, error)
				if r.IntN(2) == 0 {
					connect = b.fromHost(t, fam, uint16(10000+i))
				} else {
					connect = b.fromGuest(t, fam)
				}
				all.Go(func() error {
					g, h, err := connect()
					if err != nil {
						return fmt.Errorf("connection %d: %w", i, err)
					}
					defer g.Close()
					defer h.Close()
					return wrap(fmt.Sprintf("connection %d", i), talk(g, h, r))
				})
			}
			if err := all.Wait(); err != nil {
				t.Errorf("%v; repeat with %s=%d %s=%d", err, seedVar, seed, connsVar, many)
			}
		})
	}
}

// fromGuest returns what connects the guest to the host.
func (b *bed) fromGuest(t *testing.T, fam family) func() (*conn, *net.TCPConn, error) {
	l := listen(t, fam)
	return func() (*conn, *net.TCPConn, error) {
		defer l.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		g, err := b.guest.dial(ctx, addrOf(fam, l))
		if err != nil {
			return nil, nil, err
		}
		l.SetDeadline(time.Now().Add(patience))
		h, err := l.AcceptTCP()
		if err != nil {
			g.abort()
			return nil, nil, err
		}
		return g, h, nil
	}
}

// fromHost returns what connects the host to the guest's port.
func (b *bed) fromHost(t *testing.T, fam family, port uint16) func() (*conn, *net.TCPConn, error) {
	l := b.guest.listen(t, fam, port)
	h, fd := hostPair(t, fam, false)
	return func() (*conn, *net.TCPConn, error) {
		b.AcceptTCP(fd, key(fam, localPort(h), port))
		g, _, err := l.accept()
		return g, h, err
	}
}

// talk has both ends of a connection send random amounts and end in a random order.
func talk(g, h halfConn, r *rand.Rand) error {
	g.SetDeadline(time.Now().Add(patience))
	h.SetDeadline(time.Now().Add(patience))
	size := func() int { return int(float64(int(1)<<r.IntN(18)) * (1 + r.Float64())) }
	out, in, seed := size(), size(), r.Uint64()
	ending := r.IntN(numOfEndings)
	switch ending {
	case guestSilent:
		out = 0
	case hostSilent:
		in = 0
	}
	heard := make(chan struct{}) // of the end of who ends first
	if ending != guestFirst && ending != hostFirst {
		close(heard)
	}
	var all errgroup.Group
	all.Go(func() error {
		if ending == hostFirst {
			<-heard
		}
		return wrap("guest", send(g, out, seed))
	})
	all.Go(func() error {
		if ending == hostFirst {
			defer close(heard)
		}
		return wrap("guest", receive(g, in, ^seed))
	})
	all.Go(func() error {
		if ending == guestFirst {
			<-heard
		}
		return wrap("host", send(h, in, ^seed))
	})
	all.Go(func() error {
		if ending == guestFirst {
			defer close(heard)
		}
		return wrap("host", receive(h, out, seed))
	})
	return all.Wait()
}
