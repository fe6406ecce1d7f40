package peers

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors"
	"fusilli/actors/flow"
	"fusilli/actors/rules"
	"fusilli/actors/sock"
	"fusilli/internal/leaktest"
)

// TestOneSocketForAThousandPeers: they all see one and the same port of the host, the first as well
// as those that come after it, and each answer is from who has given it.
func TestOneSocketForAThousandPeers(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		const n = 1200
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, n)
		before := leaktest.Descriptors(t)
		if from := w.exchange(peers[0], "first"); from.Port() != w.port {
			t.Fatalf("the first peer sees %v, want port %d", from, w.port)
		}
		for i, p := range peers {
			if from := w.exchange(p, fmt.Sprint(i)); from.Port() != w.port {
				t.Fatalf("peer %d sees %v, want port %d", i, from, w.port)
			}
		}
		if got := leaktest.Descriptors(t) - before; got != 1 {
			t.Errorf("%d descriptors for %d peers", got, n)
		}
		if got := w.Flows(); got != n {
			t.Errorf("%d flows, want %d", got, n)
		}
		// Batches: all questions at a time, all answers at a time.
		for round := range 6 {
			some := peers[round*200:][:200] // whose answers fit the socket's buffer
			for i, p := range some {
				w.send(p.at, fmt.Sprint("b", i))
			}
			to := make([]netip.AddrPort, len(some))
			for i, p := range some {
				to[i] = p.expect(fmt.Sprint("b", i))
			}
			for i, p := range some {
				p.answer(to[i], fmt.Sprint("c", i))
			}
			got := map[datagram]bool{}
			for range some {
				got[w.next()] = true
			}
			for i, p := range some {
				if !got[datagram{from: p.at, data: fmt.Sprint("c", i)}] {
					t.Fatalf("no answer of peer %d", i)
				}
			}
		}
		if got := w.Counters().UDP.Load(); got != n {
			t.Errorf("%d flows are counted, want %d", got, n)
		}
	})
}

// TestStrangersAreNotHeard: who was not spoken to, or was and has expired.
func TestStrangersAreNotHeard(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, 3)
		at := w.exchange(peers[0], "a")
		w.exchange(peers[1], "b")
		other := newPeer(t, peers[1].at.Addr()) // another port of a peer's
		for i, p := range []*peer{peers[2], other} {
			p.answer(netip.AddrPortFrom(fam.host(1), at.Port()), "stranger")
			until(t, "the stranger counted", func() bool { return w.Counters().Filtered.Load() == uint64(i+1) })
		}
		w.nothing()
		w.exchange(peers[0], "c")
		w.exchange(peers[2], "spoken to")
	})
}

// TestErrorIsOnePeers: a peer that refuses datagrams disturbs nobody else.
func TestErrorIsOnePeers(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		want := [2]byte{3, 3} // port unreachable
		if fam.guest.Is6() {
			want = [2]byte{1, 4}
		}
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, 4)
		for _, p := range peers {
			w.exchange(p, "x")
		}
		gone := peers[1]
		gone.Close()
		errors := 0
		for i := range 200 {
			for _, p := range peers {
				w.send(p.at, fmt.Sprint(i))
			}
			answers := 0
			for _, p := range peers {
				if p != gone {
					p.answer(p.expect(fmt.Sprint(i)), fmt.Sprint(i))
				}
			}
			for answers < 3 {
				switch d := w.next(); {
				case d.icmp == want && d.from == gone.at:
					errors++
				case d.icmp == [2]byte{} && d.from != gone.at && d.data == fmt.Sprint(i):
					answers++
				default:
					t.Fatalf("round %d: the guest gets %+v", i, d)
				}
			}
		}
		for errors == 0 {
			if d := w.next(); d.icmp == want && d.from == gone.at {
				errors++
			}
		}
	})
}

// TestPeersExpire: one by one, and with the last one the socket is closed.
func TestPeersExpire(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Second)
		peers := fam.peers(t, 30)
		before := leaktest.Descriptors(t)
		for _, p := range peers {
			w.exchange(p, "x")
		}
		var at netip.AddrPort
		until(t, "the idle ones gone", func() bool {
			at = w.exchange(peers[3], "busy")
			return w.Flows() <= 2 // the first one's key stays as long as there is a socket
		})
		strangers := w.Counters().Filtered.Load()
		peers[7].answer(netip.AddrPortFrom(fam.host(1), at.Port()), "late")
		until(t, "the one that has expired counted", func() bool { return w.Counters().Filtered.Load() > strangers })
		w.nothing()
		for _, p := range []*peer{peers[0], peers[7]} {
			if from := w.exchange(p, "again"); from.Port() != at.Port() {
				t.Errorf("came from %v, before from %v", from, at)
			}
		}
		until(t, "all gone", func() bool { return w.Flows() == 0 })
		if got := leaktest.Descriptors(t) - before; got != 0 {
			t.Errorf("%d descriptors are left", got)
		}
		w.exchange(peers[5], "anew")
		w.exchange(peers[6], "anew")
	})
}

// TestNothingIsLostInBetween: the first peer sends on while the guest turns to others.
func TestNothingIsLostInBetween(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		for round := range 10 {
			w := newWorld(t, fam, time.Hour)
			w.port += uint16(round)
			peers := fam.peers(t, 2)
			first, second := peers[0], peers[1]
			to := w.exchange(first, "x")
			const n = 3000
			var seen atomic.Int64
			go func() {
				for i := range n {
					for int64(i)-seen.Load() > 32 {
						if w.t.Failed() {
							return
						}
						time.Sleep(10 * time.Microsecond)
					}
					first.WriteToUDPAddrPort(fmt.Append(nil, i), to)
				}
			}()
			others := 0
			for i := 0; i < n; {
				if d := w.next(); d.from == first.at {
					if d.data != fmt.Sprint(i) {
						t.Fatalf("datagram %q, want %d", d.data, i)
					}
					i++
					seen.Store(int64(i))
					if i == n/3 {
						w.send(second.at, "y")
						second.answer(second.expect("y"), "z")
					}
				} else if others++; d.from != second.at || d.data != "z" {
					t.Fatalf("the guest gets %+v", d)
				}
			}
			if others == 0 {
				w.expect(second.at, "z")
			}
			w.exchange(first, "and on")
		}
	})
}

// TestPeerThatCannotBeReached takes nobody with it: what the guest has sent to another one
// meanwhile arrives.
func TestPeerThatCannotBeReached(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		nowhere := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), 9) // no route leads there
		if fam.guest.Is6() {
			nowhere = netip.AddrPortFrom(netip.MustParseAddr("2001:db8:6::9"), 9)
		}
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, 3)
		for range 50 {
			w.port++
			w.send(nowhere, "x")
			for _, p := range peers {
				w.send(p.at, "y")
			}
			for _, p := range peers {
				p.expect("y")
			}
		}
	})
}

// TestListenerKeepsItsPort: a port that is listened on is nobody's alone, before or after.
func TestListenerKeepsItsPort(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, 6)
		before := leaktest.Descriptors(t)
		for _, p := range peers[:3] {
			w.exchange(p, "shared")
		}
		if got := leaktest.Descriptors(t) - before; got != 1 {
			t.Fatalf("%d descriptors", got)
		}
		w.Listens(w.port, w.port, true)
		until(t, "the flows ended", func() bool { return w.Flows() == 0 })
		for range 2 {
			for _, p := range peers {
				if from := w.exchange(p, "alone"); from.Port() != w.port {
					t.Errorf("came from %v", from)
				}
			}
		}
		if got := leaktest.Descriptors(t) - before; got != len(peers) {
			t.Errorf("%d descriptors, want %d", got, len(peers))
		}
		w.Listens(w.port, w.port, false)
		w.port++
		w.exchange(peers[0], "another port")
		w.exchange(peers[1], "another port")
		if got := leaktest.Descriptors(t) - before; got != len(peers)+1 {
			t.Errorf("%d descriptors, want %d", got, len(peers)+1)
		}
	})
}

// portOfAll binds a socket to a port at all addresses, as SO_REUSEADDR permits.
func portOfAll(t *testing.T, fam family, port uint16) int {
	t.Helper()
	fd, err := sock.Packet(fam.guest.Is4())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	var any unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if fam.guest.Is6() {
		any = &unix.SockaddrInet6{Port: int(port)}
	}
	if err := unix.Bind(fd, any); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestOthersPortIsLeftToThem: a port that somebody else has at all addresses, although that may be
// shared, is not taken: neither for strangers' datagrams nor for those of the guest's peers.
func TestOthersPortIsLeftToThem(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		fd := portOfAll(t, fam, w.port)
		peers := fam.peers(t, 5)
		before := leaktest.Descriptors(t)
		seen := map[uint16]bool{}
		for range 2 {
			for _, p := range peers {
				seen[w.exchange(p, "x").Port()] = true
			}
		}
		if len(seen) != 1 || seen[w.port] {
			t.Errorf("came from ports %v, want one that is not %d", seen, w.port)
		}
		if got := leaktest.Descriptors(t) - before; got != 1 {
			t.Errorf("%d descriptors", got)
		}
		for _, p := range []*peer{newPeer(t, fam.host(9)), peers[0]} {
			p.answer(netip.AddrPortFrom(fam.host(1), w.port), "for the other")
			until(t, "the other's datagram", func() bool {
				b := make([]byte, 100)
				n, e := sock.Recv(fd, b)
				return e == 0 && string(b[:n]) == "for the other"
			})
		}
		w.nothing()
	})
}

// TestPortThatOthersBindLater: somebody else binds the port that the guest's flows have, as
// SO_REUSEADDR permits: that is noticed, and they go on with another one.
func TestPortThatOthersBindLater(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, 3)
		for _, p := range peers {
			if from := w.exchange(p, "x"); from.Port() != w.port {
				t.Fatalf("came from %v", from)
			}
		}
		fd := portOfAll(t, fam, w.port)
		until(t, "another port", func() bool {
			w.send(peers[0].at, "y")
			return peers[0].expect("y").Port() != w.port
		})
		other := w.exchange(peers[1], "z").Port()
		for _, p := range peers {
			if from := w.exchange(p, "z"); from.Port() != other || other == w.port {
				t.Errorf("came from %v, before from port %d", from, other)
			}
		}
		newPeer(t, fam.host(9)).answer(netip.AddrPortFrom(fam.host(1), w.port), "for the other")
		until(t, "the other's datagram", func() bool {
			b := make([]byte, 100)
			n, e := sock.Recv(fd, b)
			return e == 0 && string(b[:n]) == "for the other"
		})
	})
}

// TestPortOfAnotherForward: a port of the host that leads to another port of the guest's is not
// taken.
func TestPortOfAnotherForward(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		w.Listens(w.port, w.port+1, true)
		portOfAll(t, fam, w.port)
		p := newPeer(t, fam.host(5))
		if from := w.exchange(p, "x"); from.Port() == w.port {
			t.Errorf("came from %v", from)
		}
	})
}

// TestPortsOfTheKernelsChoice: with that asked for the guest's own port is never taken, and all
// peers see one.
func TestPortsOfTheKernelsChoice(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour, func(c *actors.Config) { c.Host.AnyPort = true })
		seen := map[uint16]bool{}
		for _, p := range fam.peers(t, 20) {
			seen[w.exchange(p, "x").Port()] = true
		}
		if len(seen) != 1 || seen[w.port] {
			t.Errorf("ports %v of %d", seen, w.port)
		}
		taken := newPeer(t, fam.host(77)) // which the guest has not
		w.port = taken.at.Port()
		w.exchange(taken, "x")
	})
}

// TestPeerByTwoNames: a peer that the guest speaks to from one port by its address and by one that
// stands for it, as for a resolver, answers each time from where it was spoken to, whatever came
// first and however many others there are.
func TestPeerByTwoNames(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		name := fam.host(200)
		w := newWorld(t, fam, time.Hour, func(c *actors.Config) {
			c.Rules = rules.Rules{HostGuest4: name, Assigned4: fam.host(7)}
			if name.Is6() {
				c.Rules = rules.Rules{HostGuest6: name, Assigned6: fam.host(7)}
			}
		})
		itself := newPeer(t, fam.host(7))
		named := &peer{itself.UDPConn, t, netip.AddrPortFrom(name, itself.at.Port())}
		others := fam.peers(t, 3)
		for _, first := range []string{"", "o", "n", "i", "on", "no", "io", "oni", "noi", "oin"} {
			w.port++
			for range 3 {
				for _, who := range first + "nioinn" {
					switch who {
					case 'o':
						for _, p := range others {
							w.exchange(p, "other")
						}
					case 'n':
						w.exchange(named, "by name")
					case 'i':
						w.exchange(itself, "itself")
					}
				}
			}
		}
	})
}

// TestPortInUse: where the host does not give the guest's port, all peers see the same other one.
func TestPortInUse(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		taken := newPeer(t, fam.host(77))
		w.port = taken.at.Port()
		peers := fam.peers(t, 20)
		before := leaktest.Descriptors(t)
		seen := map[uint16]bool{}
		for _, p := range peers {
			seen[w.exchange(p, "x").Port()] = true
		}
		if len(seen) != 1 || seen[w.port] {
			t.Errorf("ports %v of %d", seen, w.port)
		}
		if got := leaktest.Descriptors(t) - before; got != 1 {
			t.Errorf("%d descriptors", got)
		}
	})
}

// TestTranslatedPeersHaveTheirOwn: destinations with an address of their own for the guest, before
// and after. On IPv6, where there is one loopback address, nobody can tell then that the port is
// free, and all have.
func TestTranslatedPeersHaveTheirOwn(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		local := newPeer(t, fam.loopback)
		alias := &peer{local.UDPConn, t, netip.AddrPortFrom(fam.alias, local.at.Port())}
		peers := fam.peers(t, 5)
		for _, first := range []bool{false, true} {
			w.port++
			before, want := leaktest.Descriptors(t), 2
			if first {
				w.exchange(alias, "before")
				if fam.guest.Is6() {
					want = 6
				}
			}
			for _, p := range peers {
				w.exchange(p, "x")
			}
			for _, p := range peers {
				w.exchange(alias, "y")
				w.exchange(p, "x")
			}
			if got := leaktest.Descriptors(t) - before; got != want {
				t.Errorf("loopback first %v: %d descriptors, want %d", first, got, want)
			}
		}
	})
}

// TestTooManyPeers: who is silent gives way.
func TestTooManyPeers(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		const max = 64
		w := newWorld(t, fam, time.Hour, func(c *actors.Config) { c.Limit = flow.NewLimit(max) })
		busy, silent := fam.peers(t, 2), newPeer(t, fam.host(5))
		for range 3 {
			for _, p := range busy {
				w.exchange(p, "x")
			}
		}
		for i := range 5 * max {
			to := netip.AddrPortFrom(fam.host(100+i%50), uint16(1+i))
			w.send(to, "hello?")
			if i%16 == 15 {
				for _, p := range busy {
					w.send(p.at, "y")
					p.answer(p.expect("y"), "z")
					until(t, "the answer", func() bool {
						d := w.next()
						return d.from == p.at && d.data == "z" // and errors
					})
				}
			}
			if n := w.Flows(); n > max {
				t.Fatalf("%d flows, at most %d may be", n, max)
			}
		}
		until(t, "some given way", func() bool { return w.Counters().Evicted.Load() > 0 })
		w.send(silent.at, "at last")
		silent.expect("at last")
	})
}

// TestTTLOfEach: each datagram leaves with the time to live the guest gave it, whoever it is for.
func TestTTLOfEach(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, 3)
		for _, p := range peers {
			raw, _ := p.SyscallConn()
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVTTL, 1)
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
			})
			w.exchange(p, "x")
		}
		for _, ttl := range []uint8{64, 9, 255, 9, 64} {
			for i, p := range peers {
				w.ttl = ttl - uint8(i)
				w.send(p.at, "x")
			}
			for i, p := range peers {
				oob := make([]byte, 256)
				_, n, _, _, err := p.ReadMsgUDPAddrPort(make([]byte, 9), oob)
				if err != nil {
					t.Fatal(err)
				}
				msgs, err := unix.ParseSocketControlMessage(oob[:n])
				if err != nil || len(msgs) != 1 || msgs[0].Data[0] != ttl-uint8(i) {
					t.Fatalf("%v, %v; want %d", msgs, err, ttl-uint8(i))
				}
			}
		}
	})
}

// TestEachPeerIsAnnounced: as a flow, with its beginning and its end.
func TestEachPeerIsAnnounced(t *testing.T) {
	fam := families[0]
	w := newWorld(t, fam, time.Second, func(c *actors.Config) { c.Announce = flow.NewAnnouncer(c.Log) })
	peers := fam.peers(t, 3)
	for _, p := range peers {
		w.exchange(p, "x")
	}
	until(t, "all gone", func() bool { return w.Flows() == 0 })
	for _, p := range peers {
		begun := w.logs.FilterMessageSnippet(fmt.Sprintf("-> [%v]:%d", p.at.Addr(), p.at.Port())).All()
		if len(begun) != 1 {
			t.Fatalf("%d lines about %v", len(begun), p.at)
		}
		name, _, _ := strings.Cut(begun[0].Message, ":")
		if n := w.logs.FilterMessageSnippet(name + ": ended after").Len(); n != 1 {
			t.Errorf("%s has ended %d times", name, n)
		}
	}
}

// TestRows: datagrams of one size that follow each other, to and from several peers.
func TestRows(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		const n, size = 20, 1000
		w := newWorld(t, fam, time.Hour)
		peers := fam.peers(t, 3)
		to := make([]netip.AddrPort, len(peers))
		for i, p := range peers {
			to[i] = w.exchange(p, "x")
		}
		text := func(i, j int) string {
			return fmt.Sprintf("%d %d %s", i, j, strings.Repeat("z", size))[:size]
		}
		for range 10 {
			for i, p := range peers {
				for j := range n {
					w.send(p.at, text(i, j))
				}
			}
			for i, p := range peers {
				for j := range n {
					p.expect(text(i, j))
				}
			}
			for i, p := range peers {
				var row []byte
				for j := range n {
					row = append(row, text(i, j)...)
				}
				segment := make([]byte, unix.CmsgSpace(2)) // UDP_SEGMENT (udp(7))
				binary.NativeEndian.PutUint64(segment, uint64(unix.CmsgLen(2)))
				binary.NativeEndian.PutUint32(segment[8:], unix.SOL_UDP)
				binary.NativeEndian.PutUint32(segment[12:], unix.UDP_SEGMENT)
				binary.NativeEndian.PutUint16(segment[16:], size)
				if _, _, err := p.WriteMsgUDPAddrPort(row, segment, to[i]); err != nil {
					t.Fatal(err)
				}
			}
			next := make([]int, len(peers))
			for range n * len(peers) {
				d := w.next()
				for i, p := range peers {
					if d.from == p.at {
						if d.data != text(i, next[i]) {
							t.Fatalf("peer %d: got %.10q, want number %d", i, d.data, next[i])
						}
						next[i]++
					}
				}
			}
			for i := range next {
				if next[i] != n {
					t.Fatalf("%d datagrams of peer %d", next[i], i)
				}
			}
		}
	})
}
