package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fusilli/tapio"
	"fusilli/tapio/frame"
	"fusilli/tests/bed"
)

// Variables of the environment that change TestRandomConnectionsOverABadLink: the seed of a run
// that is to be repeated, and how many connections each link carries.
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

// machine is a network namespace behind a link that spoils frames, with passt at the other end.
type machine struct {
	*bed.Bed
	guest *bed.NS
	proc  *bed.Process
}

// Ports that a machine's passt forwards.
const firstPort, ports = 20000, 200

// newMachine makes a machine. Its addresses are those of the host; its neighbours are set, since a
// link that loses questions for them has Linux say for a while that nobody is there.
func newMachine(t *testing.T, mtu int, out, in tapio.Faults) *machine {
	t.Helper()
	m := &machine{Bed: newBed(t, bed.Config{MTU: max(mtu, 1500)})}
	var err error
	if m.guest, err = bed.NewNS("guest"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.guest.Close() })
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "hypervisor")
	defer theirs.Close()
	stream, err := tapio.NewStream(pair[0], tapio.StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var tap *tapio.Tap
	err = m.guest.Do(func() (err error) {
		tap, err = tapio.OpenTap("eth0", tapio.TapOptions{TxQueueLen: 10000,
			Without: tapio.VnetHeader | tapio.Csum | tapio.TSO | tapio.TSOECN | tapio.USO})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a, b := tapio.Pipe(tapio.PipeOptions{Queue: 10000, FaultsToB: out, FaultsToA: in})
	var relay sync.WaitGroup
	for _, way := range [][2]tapio.Link{{tap, a}, {b, stream}, {stream, b}, {a, tap}} {
		relay.Go(func() { carry(way[0], way[1]) })
	}
	t.Cleanup(func() {
		for _, l := range []tapio.Link{tap, a, b, stream} {
			l.Close()
		}
		relay.Wait()
	})
	const router = "9a:55:9a:55:9a:55"
	if err := m.guest.IP(fmt.Sprintf(`link set eth0 mtu %d up
addr add %s/24 dev eth0
addr add %s/64 dev eth0 nodad
neigh replace %[4]s lladdr %[6]s dev eth0 nud permanent
neigh replace %[5]s lladdr %[6]s dev eth0 nud permanent
route replace 10.77.0.0/24 dev eth0 rto_min 20ms
route replace fd77::/64 dev eth0 rto_min 20ms`, mtu, bed.HostAddr4, bed.HostAddr6, bed.FarAddr4, bed.FarAddr6, router)); err != nil {
		t.Fatal(err)
	}
	m.proc = passt(t, m.Bed, []*os.File{theirs}, "-q", "--fd", "3", "--no-map-gw", "-m", fmt.Sprint(mtu),
		"-t", fmt.Sprintf("%d-%d", firstPort, firstPort+ports-1), "-u", "none")
	return m
}

// carry moves frames until a link is closed. What the next one has no room for is lost.
func carry(from, to tapio.Link) {
	b := make([]byte, frame.MaxFrame)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if err := to.Write(b[:n]); err != nil && !errors.Is(err, tapio.ErrDropped) {
			return
		}
	}
}

// connect returns the guest's and the far peer's end of a new connection, which the guest has asked
// for, or the far peer has, to port.
func (m *machine) connect(t *testing.T, v6, inbound bool, port int) (guest, far net.Conn, err error) {
	server, client, bind, to := m.Far, m.guest, bed.FarAddr4, bed.FarAddr4
	if v6 {
		bind, to = bed.FarAddr6, bed.FarAddr6
	}
	if inbound {
		server, client = client, server
		bind, to = bed.HostAddr4, bed.HostAddr4
		if v6 {
			bind, to = bed.HostAddr6, bed.HostAddr6
		}
	}
	l, err := server.Listen("tcp", net.JoinHostPort(bind, fmt.Sprint(port)))
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	c, err := client.Dial(patience(t, 3*limit), "tcp", net.JoinHostPort(to, fmt.Sprint(port)))
	if err != nil {
		return nil, nil, err
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(3 * limit))
	s, err := l.Accept()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	if inbound {
		return s, c, nil
	}
	return c, s, nil
}

// descriptors is how many passt has open.
func (m *machine) descriptors(t *testing.T) int {
	t.Helper()
	u, err := bed.Tree(m.proc.PID())
	if err != nil {
		t.Fatal(err)
	}
	return int(u.FDs)
}

// How a connection of TestRandomConnectionsOverABadLink ends.
const (
	bothAtOnce  = iota
	guestFirst  // and the far peer sends only when it has heard of the end
	farFirst    // the other way round
	guestSilent // the guest sends nothing and ends at once
	farSilent   // the other way round
	numOfEndings
)

// talk has both ends of a connection send random amounts and end in a random order.
func talk(guest, far net.Conn, r *rand.Rand, stream uint64) error {
	for _, c := range []net.Conn{guest, far} {
		c.SetDeadline(time.Now().Add(4 * limit))
	}
	size := func() int { return int(float64(int(1)<<r.IntN(17)) * (1 + r.Float64())) }
	out, in, ending := size(), size(), r.IntN(numOfEndings)
	switch ending {
	case guestSilent:
		out = 0
	case farSilent:
		in = 0
	}
	heard := make(chan struct{}) // of the end of who ends first
	if ending != guestFirst && ending != farFirst {
		close(heard)
	}
	var all errgroup.Group
	play := func(who string, c net.Conn, number uint64, n int, other uint64, m int, first, last int) {
		all.Go(func() error {
			if ending == last {
				<-heard
			}
			err := send(c, number, n)
			if err == nil {
				err = c.(*net.TCPConn).CloseWrite()
			}
			if err != nil {
				return fmt.Errorf("%s sends: %w", who, err)
			}
			return nil
		})
		all.Go(func() error {
			if ending == last {
				defer close(heard)
			}
			if err := receive(c, other, m); err != nil {
				return fmt.Errorf("%s receives: %w", who, err)
			}
			return nil
		})
	}
	play("guest", guest, 2*stream, out, 2*stream+1, in, guestFirst, farFirst)
	play("far", far, 2*stream+1, in, 2*stream, out, farFirst, guestFirst)
	return all.Wait()
}

// TestRandomConnectionsOverABadLink: between the machine and passt frames are lost, doubled, late
// and in the wrong order. Every byte of every connection arrives, in both directions, whoever has
// asked for it and in whatever order the two ends finish; and afterwards nothing is left of them.
func TestRandomConnectionsOverABadLink(t *testing.T) {
	t.Parallel()
	many := 80
	if raceEnabled {
		many = 20
	}
	seed := number(t, seedVar, rand.Uint64())
	many = int(number(t, connsVar, uint64(many)))
	t.Logf("%s=%d %s=%d", seedVar, seed, connsVar, many)
	for link := range uint64(3) {
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
			t.Logf("MTU %d, from the guest %+v, to the guest %+v", mtu, out, in)
			m := newMachine(t, mtu, out, in)
			before := m.descriptors(t)
			var all errgroup.Group
			all.SetLimit(40)
			for i := range many {
				r := rand.New(rand.NewPCG(rnd.Uint64(), 0))
				all.Go(func() error {
					// The guest's address is known when it has sent something.
					v6, inbound := r.IntN(2) == 1, i > 0 && r.IntN(2) == 1
					guest, far, err := m.connect(t, v6, inbound, firstPort+i%ports)
					if err != nil {
						return fmt.Errorf("connection %d, IPv6 %v, inbound %v: %w", i, v6, inbound, err)
					}
					defer guest.Close()
					defer far.Close()
					if err := talk(guest, far, r, uint64(i)); err != nil {
						return fmt.Errorf("connection %d, IPv6 %v, inbound %v: %w", i, v6, inbound, err)
					}
					return nil
				})
			}
			if err := all.Wait(); err != nil {
				t.Fatalf("%v; repeat with %s=%d %s=%d", err, seedVar, seed, connsVar, many)
			}
			waitFor(t, "descriptors to be closed", func() bool { return m.descriptors(t) <= before+4 })
		})
	}
}
