package autodetect

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"fusilli/autodetect/rtnl"
	"fusilli/autodetect/rtnl/nstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// known is what Run has told of.
type known struct {
	mu      sync.Mutex
	m       map[string]string
	changes int
}

func (k *known) changed(list []Neighbour, all bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if all {
		k.m = map[string]string{}
	}
	for _, n := range list {
		k.changes++
		delete(k.m, n.Addr.String())
		if n.MAC != [6]byte{} {
			k.m[n.Addr.String()] = fmt.Sprintf("% x", n.MAC)
		}
	}
}

// becomes waits until exactly that is known.
func (k *known) becomes(t *testing.T, want map[string]string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		k.mu.Lock()
		got := maps.Clone(k.m)
		k.mu.Unlock()
		if maps.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("-want +got:\n%s", cmp.Diff(want, got))
		}
	}
}

// watch runs a watcher of the goroutine's namespace, with e0 as template, until the end of the
// test.
func watch(t *testing.T) *known {
	t.Helper()
	h, err := Detect(Options{Interface: "e0"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := OpenNeighbours(h)
	if err != nil {
		t.Fatal(err)
	}
	k := &known{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx, k.changed) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		n.Close()
	})
	return k
}

const withAddresses = three + `
addr add 192.0.2.10/24 dev e0
addr add 2001:db8::10/64 dev e0 nodad
addr add fe80::10/64 dev e0 nodad
addr add 198.51.100.10/24 dev e1
`

// TestNeighbours: those there are at first, on the template's link only, and what becomes of them.
func TestNeighbours(t *testing.T) {
	nstest.Enter(t)
	nstest.IP(t, withAddresses+`
neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev e0
neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev e0 nud stale
neigh add 192.0.2.3 dev e0 nud failed
neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev e0 nud reachable
neigh add 198.51.100.1 lladdr 02:00:00:00:01:01 dev e1
neigh add proxy 192.0.2.200 dev e0
`)
	k := watch(t)
	const first, second, third = "02 00 00 00 00 01", "02 00 00 00 00 02", "02 00 00 00 00 03"
	k.becomes(t, map[string]string{"192.0.2.1": first, "192.0.2.2": second, "2001:db8::1": first})

	nstest.IP(t, `
neigh add 192.0.2.4 lladdr 02:00:00:00:00:03 dev e0 nud noarp
neigh replace 2001:db8::1 lladdr 02:00:00:00:00:03 dev e0 nud reachable
neigh del 192.0.2.1 dev e0
neigh add 198.51.100.2 lladdr 02:00:00:00:01:02 dev e1
`)
	k.becomes(t, map[string]string{"192.0.2.2": second, "192.0.2.4": third, "2001:db8::1": third})
	nstest.IP(t, "neigh change 192.0.2.2 dev e0 nud failed\nneigh flush dev e0 nud noarp")
	k.becomes(t, map[string]string{"2001:db8::1": third})
	nstest.IP(t, "link del e0")
	k.becomes(t, map[string]string{})
}

// TestNeighboursThatChangeWhileTheyAreListed: a list of many datagrams, and changes all the while
// it is read: in the end nobody is missing or has an address that is not his any more.
func TestNeighboursThatChangeWhileTheyAreListed(t *testing.T) {
	nstest.Enter(t)
	var first, then strings.Builder
	first.WriteString(withAddresses)
	want := map[string]string{}
	for i := range 900 {
		addr := fmt.Sprintf("192.0.2.%d", 20+i%200)
		if i >= 200 {
			addr = fmt.Sprintf("2001:db8::1:%x", i)
		}
		fmt.Fprintf(&first, "neigh add %s lladdr 02:00:00:00:%02x:%02x dev e0\n", addr, i>>8, i&0xff)
		switch i % 3 {
		case 0:
			fmt.Fprintf(&then, "neigh replace %s lladdr 02:00:00:01:%02x:%02x dev e0\n", addr, i>>8, i&0xff)
			want[addr] = fmt.Sprintf("02 00 00 01 %02x %02x", i>>8, i&0xff)
		case 1:
			fmt.Fprintf(&then, "neigh del %s dev e0\n", addr)
		default:
			want[addr] = fmt.Sprintf("02 00 00 00 %02x %02x", i>>8, i&0xff)
		}
	}
	nstest.IP(t, first.String())
	changes := exec.Command("ip", "-batch", "-")
	changes.Stdin = strings.NewReader(then.String())
	var out bytes.Buffer
	changes.Stdout, changes.Stderr = &out, &out
	if err := changes.Start(); err != nil {
		t.Fatal(err)
	}
	changed := make(chan error, 1)
	go func() {
		err := changes.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out.Bytes())
		}
		changed <- err
	}()
	watch(t).becomes(t, want)
	if err := <-changed; err != nil {
		t.Error(err)
	}
}

// TestNeighboursOnTheWire: a real neighbour, whose hardware address changes.
func TestNeighboursOnTheWire(t *testing.T) {
	host := nstest.Enter(t)
	nstest.IP(t, withAddresses)
	k := watch(t)
	peer := nstest.Enter(t)
	host.Enter(t)
	nstest.IP(t, "link set p0 netns "+peer.Path())
	peer.Enter(t)
	becomes := func(mac string) {
		t.Helper()
		// The addresses go with the link.
		nstest.IP(t, "link set p0 down\nlink set p0 address "+strings.ReplaceAll(mac, " ", ":")+
			" up\naddr replace 192.0.2.1/24 dev p0\naddr replace 2001:db8::1/64 dev p0 nodad")
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			for _, a := range []string{"192.0.2.10", "2001:db8::10"} {
				if c, err := net.Dial("udp", net.JoinHostPort(a, "9")); err == nil {
					c.Write([]byte("x")) // has it ask, and the host learn
					c.Close()
				}
			}
			k.mu.Lock()
			ok := k.m["192.0.2.1"] == mac && k.m["2001:db8::1"] == mac
			k.mu.Unlock()
			if ok {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("known: %v, want %s", k.m, mac)
			}
		}
	}
	becomes("02 00 00 00 00 0a")
	becomes("02 00 00 00 00 0b")
}

func TestNoTemplateNoNeighbours(t *testing.T) {
	n, err := OpenNeighbours(&Host{V4: Family{Index: Local}})
	if n != nil || err != nil {
		t.Errorf("%v, %v", n, err)
	}
	n.Close()
}

func FuzzNeighbours(f *testing.F) {
	n := Neighbours{index: map[uint8]int{unix.AF_INET: 2, unix.AF_INET6: 3}}
	message := func(typ uint16, body []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
		b = binary.NativeEndian.AppendUint16(b, typ)
		return append(append(b, make([]byte, 10)...), body...)
	}
	body := rtnl.NeighbourBody(unix.AF_INET, 2)
	binary.NativeEndian.PutUint16(body[8:], unix.NUD_REACHABLE)
	body = rtnl.AppendAttr(body, unix.NDA_DST, []byte{192, 0, 2, 1})
	body = rtnl.AppendAttr(body, unix.NDA_LLADDR, []byte{2, 0, 0, 0, 0, 1})
	one := message(unix.RTM_NEWNEIGH, body)
	if list := n.parse(append(one, message(unix.RTM_DELNEIGH, body)...)); len(list) != 2 ||
		list[0] != (Neighbour{netip.MustParseAddr("192.0.2.1"), [6]byte{2, 0, 0, 0, 0, 1}}) || list[1].MAC != [6]byte{} {
		f.Fatal(list)
	}
	f.Add(append(one, one...))
	f.Add(message(unix.RTM_NEWLINK, body))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, it := range n.parse(b) {
			if !it.Addr.IsValid() || it.MAC[0]&1 != 0 {
				t.Errorf("%+v", it)
			}
		}
	})
}
