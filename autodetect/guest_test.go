package autodetect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fusilli/autodetect/rtnl"
	"fusilli/autodetect/rtnl/nstest"

	"golang.org/x/sys/unix"
)

// guestSeen is what a GuestMonitor has told of last, as text.
type guestSeen struct {
	mu   sync.Mutex
	text string
}

func (g *guestSeen) changed(now *Guest) {
	text := "gone"
	if now != nil {
		list := func(addrs []netip.Addr) string {
			var l []string
			for _, a := range addrs {
				l = append(l, a.String())
			}
			return strings.Join(l, " ")
		}
		text = fmt.Sprintf("%x: %s; %s", now.MAC, list(now.Addrs), list(now.Others))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.text = text
}

func (g *guestSeen) becomes(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		got := g.text
		g.mu.Unlock()
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("got  %q\nwant %q", got, want)
		}
	}
}

func monitorGuest(t *testing.T) *guestSeen {
	t.Helper()
	m, err := MonitorGuest("g0")
	if err != nil {
		t.Fatal(err)
	}
	g := &guestSeen{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, g.changed) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		m.Close()
	})
	return g
}

func TestMonitorGuest(t *testing.T) {
	nstest.Enter(t)
	nstest.Tap(t, "g0")
	nstest.Tap(t, "d0")
	nstest.IP(t, "link set lo up\nlink set g0 address 02:00:00:00:00:01 addrgenmode none\nlink set g0 up")
	g := monitorGuest(t)
	g.becomes(t, "020000000001: ; ")
	nstest.IP(t, "addr add 192.0.2.1/24 dev g0\naddr add 2001:db8::1/64 dev g0 nodad\naddr add fe80::1/64 dev g0 nodad")
	g.becomes(t, "020000000001: 192.0.2.1 2001:db8::1 fe80::1; ")
	nstest.IP(t, "addr add 192.0.2.2/24 dev g0\naddr del 2001:db8::1/64 dev g0")
	g.becomes(t, "020000000001: 192.0.2.1 192.0.2.2 fe80::1; ")
	nstest.IP(t, "link set d0 addrgenmode none\nlink set d0 up\naddr add 198.51.100.1/24 dev d0\naddr add fe80::9/64 dev d0 nodad\naddr add 198.51.100.9/32 dev lo")
	g.becomes(t, "020000000001: 192.0.2.1 192.0.2.2 fe80::1; 198.51.100.9 198.51.100.1")
	nstest.IP(t, "link del d0\naddr del 198.51.100.9/32 dev lo\naddr flush dev g0")
	g.becomes(t, "020000000001: ; ")

	nstest.IP(t, "link set g0 address 02:00:00:00:00:02")
	g.becomes(t, "020000000002: ; ")

	// What lasts comes first; a port of a bridge has the bridge's.
	nstest.IP(t, "addr add 2001:db8::2/64 dev g0 nodad preferred_lft 0\naddr add 2001:db8::3/64 dev g0 nodad")
	g.becomes(t, "020000000002: 2001:db8::3 2001:db8::2; ")
	nstest.IP(t, "addr flush dev g0\nlink add b0 type bridge\nlink set b0 addrgenmode none\nlink set g0 master b0\nlink set b0 up\naddr add 192.0.2.3/24 dev b0")
	g.becomes(t, "020000000002: 192.0.2.3; ")
	nstest.IP(t, "link set g0 nomaster")
	g.becomes(t, "020000000002: ; 192.0.2.3")
	nstest.IP(t, "link del g0")
	g.becomes(t, "gone")
}

// TestTentativeAddresses are nobody's yet.
func TestTentativeAddresses(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, "link add g0 type veth peer name p0\nlink set g0 addrgenmode none address 02:00:00:00:00:01\nlink set p0 up\nlink set g0 up")
	g := monitorGuest(t)
	nstest.IP(t, "addr add 2001:db8::1/64 dev g0\naddr add 192.0.2.1/24 dev g0")
	g.becomes(t, "020000000001: 192.0.2.1; ")
	g.becomes(t, "020000000001: 192.0.2.1 2001:db8::1; ")
}

// TestManyAddresses: changes that come faster than they are listed are not lost, and the lists are
// bounded.
func TestManyAddresses(t *testing.T) {
	nstest.Enter(t)
	nstest.Tap(t, "g0")
	nstest.IP(t, "link set g0 addrgenmode none up")
	m, err := MonitorGuest("g0")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	counts := make(chan int, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- m.Run(ctx, func(g *Guest) {
			select {
			case counts <- len(g.Addrs):
			default:
			}
		})
	}()
	var batch strings.Builder
	for i := range maxGuestAddrs + 100 {
		fmt.Fprintf(&batch, "addr add 10.0.%d.%d/32 dev g0\n", i/250, i%250+1)
	}
	nstest.IP(t, batch.String())
	nstest.IP(t, "addr flush dev g0\naddr add 192.0.2.1/24 dev g0")
	var seen []int
	for end := time.After(30 * time.Second); len(seen) < 2 || seen[len(seen)-1] != 1; {
		select {
		case n := <-counts:
			seen = append(seen, n)
		case <-end:
			t.Fatalf("lists of %v", seen)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if most := slices.Max(seen); most > maxGuestAddrs {
		t.Errorf("a list of %d addresses", most)
	}
}

func TestMonitorGuestWithoutInterface(t *testing.T) {
	nstest.Enter(t)
	if _, err := MonitorGuest("g0"); err == nil || !strings.Contains(err.Error(), "g0") {
		t.Errorf("MonitorGuest = %v", err)
	}
}

// TestRouteTo: the route to an address of the host's own is a local one.
func TestRouteTo(t *testing.T) {
	nstest.Enter(t)
	nstest.Tap(t, "g0")
	nstest.IP(t, "link set lo up\nlink set g0 up\naddr add 192.0.2.1/24 dev g0\naddr add 2001:db8::1/64 dev g0 nodad")
	conn, err := rtnl.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, tt := range []struct {
		addr string
		typ  uint8
		err  error
	}{
		{"192.0.2.1", unix.RTN_LOCAL, nil},
		{"::ffff:192.0.2.1", unix.RTN_LOCAL, nil},
		{"127.0.0.5", unix.RTN_LOCAL, nil},
		{"192.0.2.2", unix.RTN_UNICAST, nil},
		{"192.0.2.255", unix.RTN_BROADCAST, nil},
		{"2001:db8::1", unix.RTN_LOCAL, nil},
		{"2001:db8::2", unix.RTN_UNICAST, nil},
		{"198.51.100.1", 0, unix.ENETUNREACH},
		{"2001:db8:1::1", 0, unix.ENETUNREACH},
	} {
		r, err := conn.RouteTo(netip.MustParseAddr(tt.addr))
		if !errors.Is(err, tt.err) || r.Type != tt.typ {
			t.Errorf("%s: type %d, %v; want %d, %v", tt.addr, r.Type, err, tt.typ, tt.err)
		}
	}
}
