package peers

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAnythingGoes has the guest and its peers do anything, for some rounds: ask, answer, go away
// and come back, fall silent until they expire; strangers speak, and the port becomes a listener's
// for a while. Whatever the guest gets was sent by who is said to have, to the guest, and once;
// errors are about who was away; and in the end everybody is heard.
func TestAnythingGoes(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		const seed = 4
		rnd := rand.New(rand.NewPCG(seed, uint64(fam.guest.BitLen())))
		for range 2 {
			r := &randomly{world: newWorld(t, fam, 200*time.Millisecond), rnd: rnd, stranger: newPeer(t, fam.host(99)),
				sent: make(map[datagram]bool), asked: make(map[string]netip.AddrPort)}
			for _, p := range fam.peers(t, 8) {
				r.peers = append(r.peers, p)
				r.away = append(r.away, false)
				r.was = append(r.was, false)
				r.to = append(r.to, netip.AddrPort{})
			}
			for range 400 {
				r.step()
			}
			r.conclude()
			// the next engine wants the port
			until(t, "all expired", func() bool { return r.Flows() == 0 })
		}
	})
}

// randomly is one round. All of it belongs to the test's goroutine.
type randomly struct {
	*world
	rnd      *rand.Rand
	peers    []*peer
	away     []bool           // now
	was      []bool           // ever
	to       []netip.AddrPort // by which each knows the guest
	stranger *peer
	listens  bool
	id       int

	sent  map[datagram]bool         // by peers, and not received yet
	asked map[string]netip.AddrPort // what the guest has sent, and to whom
}

func (r *randomly) step() {
	i := r.rnd.IntN(len(r.peers))
	p := r.peers[i]
	switch op := r.rnd.IntN(100); {
	case op < 50:
		for range 1 + r.rnd.IntN(4) {
			r.id++
			data := fmt.Sprintf("%d: %s", r.id, strings.Repeat("x", r.rnd.IntN(1400)))
			r.asked[data] = p.at
			r.ttl = 60 + uint8(r.rnd.IntN(8))
			r.send(p.at, data)
		}
	case op < 75:
		if !r.away[i] && r.to[i].IsValid() {
			for range 1 + r.rnd.IntN(3) {
				r.id++
				d := datagram{from: p.at, data: fmt.Sprintf("%d: %s", r.id, strings.Repeat("y", r.rnd.IntN(1400)))}
				r.sent[d] = true
				p.answer(r.to[i], d.data)
			}
		}
	case op < 83:
		if r.to[i].IsValid() {
			r.stranger.answer(r.to[i], "stranger")
		}
	case op < 88:
		if r.away[i] = !r.away[i]; r.away[i] {
			r.was[i] = true
			p.Close()
		} else {
			r.back(i)
		}
	case op < 90:
		r.listens = !r.listens
		r.Listens(r.port, r.port, r.listens)
	case op < 91:
		until(r.t, "all expired", func() bool { r.look(); return r.Flows() == 0 })
	}
	r.look()
}

// back has a peer that was away be there again.
func (r *randomly) back(i int) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(r.peers[i].at))
	if err != nil {
		r.t.Skip("somebody has taken the port")
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	r.peers[i].UDPConn = c
	r.away[i] = false
}

// look checks what has arrived by now.
func (r *randomly) look() {
	for i, p := range r.peers {
		if r.away[i] {
			continue
		}
		b := make([]byte, 2000)
		for {
			n, from, ok := p.try(b)
			if !ok {
				break
			}
			if to, ok := r.asked[string(b[:n])]; !ok || to != p.at {
				r.t.Fatalf("peer %v gets %.20q, which was for %v", p.at, b[:n], to)
			}
			delete(r.asked, string(b[:n]))
			if from.Port() != r.port {
				r.t.Fatalf("peer %v sees %v, want port %d", p.at, from, r.port)
			}
			r.to[i] = from
		}
	}
	for {
		select {
		case d := <-r.got:
			r.see(d)
			continue
		default:
		}
		return
	}
}

// try receives a datagram, if there is one, and returns its length and who it is from.
func (p *peer) try(b []byte) (n int, from netip.AddrPort, ok bool) {
	raw, err := p.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		n, sa, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		switch a := sa.(type) {
		case *unix.SockaddrInet4:
			from = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *unix.SockaddrInet6:
			from = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
		}
	})
	return n, from, err == nil
}

func (r *randomly) see(d datagram) {
	if d.icmp == [2]byte{} {
		if !r.sent[d] {
			r.t.Fatalf("the guest gets %.20q from %v", d.data, d.from)
		}
		delete(r.sent, d)
		return
	}
	for i, p := range r.peers {
		if p.at == d.from && r.was[i] {
			return
		}
	}
	r.t.Fatalf("the guest gets error %v about %v", d.icmp, d.from)
}

// conclude has everybody speak until the guest hears the answer.
func (r *randomly) conclude() {
	for i, p := range r.peers {
		if r.away[i] {
			r.back(i)
		}
		heard := false
		until(r.t, fmt.Sprintf("peer %d heard", i), func() bool {
			r.id++
			ask := fmt.Sprint(r.id, "?")
			r.asked[ask] = p.at
			r.send(p.at, ask)
			r.look()
			if !r.to[i].IsValid() {
				return false
			}
			d := datagram{from: p.at, data: fmt.Sprint(r.id, "!")}
			r.sent[d] = true
			p.answer(r.to[i], d.data)
			time.Sleep(time.Millisecond)
			r.look()
			heard = heard || !r.sent[d]
			return heard
		})
	}
}
