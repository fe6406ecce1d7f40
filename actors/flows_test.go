package actors

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"

	"fusilli/actors/dhcp"
	"fusilli/actors/flow"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

func TestSlowReader(t *testing.T) {
	const n = 24 << 20
	forFamilies(t, func(t *testing.T, fam family) {
		t.Run("on the host", func(t *testing.T) {
			b := newBed(t, options{mtu: 9000})
			g, h := b.connect(fam, listen(t, fam))
			var all errgroup.Group
			all.Go(func() error { return send(g, n, 1) })
			all.Go(func() error {
				until(t, "guest's data held", func() bool { return b.env.Held.Used() > 0 })
				until(t, "our window closed", func() bool { return b.guest.port.closedIn.Load() > 0 })
				return receive(h, n, 1)
			})
			if err := all.Wait(); err != nil {
				t.Error(err)
			}
			h.Close()
			b.idle()
		})
		t.Run("in the guest", func(t *testing.T) {
			b := newBed(t, options{mtu: 9000})
			g, h := b.connect(fam, listen(t, fam))
			var all errgroup.Group
			all.Go(func() error { return send(h, n, 1) })
			all.Go(func() error {
				until(t, "guest's window closed", func() bool { return b.guest.port.closedOut.Load() > 0 })
				return receive(g, n, 1)
			})
			if err := all.Wait(); err != nil {
				t.Error(err)
			}
			g.Close()
			b.idle()
		})
		t.Run("both, one byte at a time first", func(t *testing.T) {
			b := newBed(t, options{})
			g, h := b.connect(fam, listen(t, fam))
			var all errgroup.Group
			for _, c := range []halfConn{g, h} {
				all.Go(func() error { return send(c, n, 1) })
				all.Go(func() error {
					until(t, "windows closed", func() bool {
						return b.guest.port.closedOut.Load() > 0 && b.guest.port.closedIn.Load() > 0
					})
					one := make([]byte, 1)
					want := newStream(n, 1)
					for i := range 300 {
						w := make([]byte, 1)
						want.Read(w)
						if _, err := io.ReadFull(c, one); err != nil || one[0] != w[0] {
							return fmt.Errorf("byte %d: %x, %v, want %x", i, one, err, w)
						}
					}
					rest, err := io.Copy(io.Discard, plainReader{c})
					if err != nil || int(rest) != n-300 {
						return fmt.Errorf("%d more bytes of %d, %v", rest, n-300, err)
					}
					return nil
				})
			}
			if err := all.Wait(); err != nil {
				t.Error(err)
			}
			b.idle()
		})
	})
}

// TestStopInTransfer: stop checks what must be so when Run has returned.
func TestStopInTransfer(t *testing.T) {
	b := newBed(t, options{})
	// One whose reader is slow.
	slow, _ := b.connect(families[0], listen(t, families[0]))
	go io.Copy(plainWriter{slow}, newStream(1<<30, 1))
	defer slow.abort()
	until(t, "data held", func() bool { return b.env.Held.Used() > 0 })
	var moved atomic.Int64
	var all errgroup.Group
	for i := range 8 {
		g, h := b.connect(families[i%2], listen(t, families[i%2]))
		for _, c := range []halfConn{g, h} {
			all.Go(func() error {
				_, err := io.Copy(plainWriter{c}, newStream(1<<30, 1))
				return err
			})
			all.Go(func() error {
				for buf := make([]byte, 32<<10); ; {
					n, err := c.Read(buf)
					moved.Add(int64(n))
					if err != nil {
						return err
					}
				}
			})
		}
		defer g.abort() // it may not hear of the end: its link is gone
	}
	// And one that is idle, one datagram flow.
	b.connect(families[1], listen(t, families[1]))
	u := b.dialUDP(t, families[0], echoUDP(t, families[0]))
	until(t, "data in flight", func() bool {
		u.Write([]byte("x")) // the link is busy, and may lose it
		// On a busy machine the guest may give up some of them before that.
		return moved.Load() > 1<<20 && b.Counters().UDP.Load() == 1 && b.Flows() > 1
	})

	b.stop()
	b.guest.close() // which ends the guest's connections
	if err := all.Wait(); err == nil {
		t.Error("a transfer of 1 GiB has ended well")
	}
}

func TestStopAtOnce(t *testing.T) {
	b := newBed(t, options{})
	b.stop()
}

// TestRunEndsWithContext: a deadline ends Run as a cancellation does.
func TestRunEndsWithContext(t *testing.T) {
	e, link, _ := newEngine(&options{})
	defer link.Close()
	ctx, cancel := context.WithDeadlineCause(t.Context(), time.Now(), errors.New("enough"))
	defer cancel()
	if err := e.Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

// TestGuestGoesAway: the link fails, and Run says so.
func TestGuestGoesAway(t *testing.T) {
	e, link, _ := newEngine(&options{})
	done := make(chan error, 1)
	go func() { done <- e.Run(t.Context()) }()
	link.Close()
	select {
	case err := <-done:
		if !errors.Is(err, tapio.ErrGone) {
			t.Errorf("Run = %v, want %v", err, tapio.ErrGone)
		}
	case <-time.After(patience):
		t.Fatal("Run does not return")
	}
}

// TestShortConnections: one after the other, in a few rows; flows, goroutines and descriptors go.
func TestShortConnections(t *testing.T) {
	const rows = 8
	each := scaled(4000) / rows
	b := newBed(t, options{})
	var all errgroup.Group
	for row := range rows {
		fam := families[row%2]
		l := listen(t, fam)
		hostEnds := row/2%2 == 0 // first
		all.Go(func() error {
			buf := make([]byte, 4)
			for range each {
				h, err := l.Accept()
				if err != nil {
					return err
				}
				if _, err := io.ReadFull(h, buf); err != nil {
					return err
				}
				h.Write(buf)
				if !hostEnds {
					h.Read(buf)
				}
				h.Close()
			}
			return nil
		})
		all.Go(func() error {
			want, got := make([]byte, 4), make([]byte, 4)
			for i := range each {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				g, err := b.guest.dial(ctx, addrOf(fam, l))
				cancel()
				if err != nil {
					return fmt.Errorf("connection %d: %w", i, err)
				}
				g.SetDeadline(time.Now().Add(patience))
				binary.BigEndian.PutUint32(want, uint32(i))
				g.Write(want)
				if _, err := io.ReadFull(g, got); err != nil || !bytes.Equal(got, want) {
					return fmt.Errorf("connection %d: %x, %w", i, got, err)
				}
				if hostEnds {
					g.Read(got)
				}
				g.Close()
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	b.idle()
	if n := b.Counters().TCP.Load(); n < uint64(rows*each) {
		t.Errorf("%d connections counted, want %d", n, rows*each)
	}
}

func TestFlowTableFull(t *testing.T) {
	const max = 8
	fam := families[0]
	b := newBed(t, options{maxFlows: max})
	l := listen(t, fam)
	var guests []*conn
	var hosts []*net.TCPConn
	for range max {
		g, h := b.connect(fam, l)
		guests, hosts = append(guests, g), append(hosts, h)
		// One whose handshake is not over for us gives way.
		g.Write([]byte("x"))
		if _, err := io.ReadFull(h, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		refused := b.Counters().TableFull.Load()
		go func() {
			defer cancel()
			until(t, "refusal counted", func() bool { return b.Counters().TableFull.Load() > refused })
		}()
		if _, err := b.guest.dial(ctx, addrOf(fam, l)); !errors.Is(err, context.Canceled) {
			t.Fatalf("connect with a full table: %v", err)
		}
	}
	if n := b.logs.FilterMessage("Flow table is full, new flows are refused").Len(); n != 1 {
		t.Errorf("%d log lines, want 1: %v", n, b.logs.All())
	}
	// Those there are go on.
	for i := range guests {
		guests[i].Write([]byte{byte(i)})
		var got [1]byte
		if _, err := io.ReadFull(hosts[i], got[:]); err != nil || got[0] != byte(i) {
			t.Errorf("connection %d: %x, %v", i, got, err)
		}
	}
	// One goes, one comes.
	hosts[0].Close()
	guests[0].Close()
	until(t, "one flow gone", func() bool { return b.Flows() < max })
	b.connect(fam, l)
	if n := b.Flows(); n > max {
		t.Errorf("%d flows, want %d at most", n, max)
	}
}

// TestServiceFlood: questions and stray segments in masses cost answers, not flows.
func TestServiceFlood(t *testing.T) {
	b := newBed(t, options{})
	g, h := b.connect(families[0], listen(t, families[0]))
	who := make([]byte, frame.MinFrame)
	frame.PutEth(who, frame.Broadcast, guestMAC, frame.EtherARP)
	copy(who[frame.L3Off:], []byte{0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2})
	stray := segment(families[0].alias, 9, 9, frame.ACK, 1, 1, nil)
	stop := make(chan struct{})
	var all, flood errgroup.Group
	flood.Go(func() error {
		for {
			select {
			case <-stop:
				return nil
			default:
				// A link's queue that is always full would lose the guest's own frames before
				// the engine sees them: let it drain.
				if b.link.Write(who) != nil || b.link.Write(stray) != nil {
					time.Sleep(time.Millisecond)
				}
			}
		}
	})
	all.Go(func() error { return exchange(g, h, scaled(1<<20), scaled(1<<20), 1) })
	err := all.Wait()
	close(stop)
	flood.Wait()
	if err != nil {
		t.Error(err)
	}
	if b.Counters().NoFlow.Load() == 0 {
		t.Error("no stray segment was counted")
	}
	b.idle()
}

// TestMailboxFull: what a flow's actor does not take is lost and counted, and nobody waits for it.
func TestMailboxFull(t *testing.T) {
	e, link, _ := newEngine(&options{queue: 4096})
	// An actor that never comes.
	k := flow.Key{Guest: frame.Addr4([4]byte{10, 0, 2, 15}), Remote: frame.Addr4([4]byte{10, 0, 2, 2}),
		GuestPort: 1000, RemotePort: 9, Proto: frame.ProtoTCP}
	p := flow.NewPort(k)
	if err := e.table.Insert(p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	const runs = 200
	for i := range runs {
		link.Write(segment(families[0].alias, 1000, 9, frame.ACK, uint32(i), 1, []byte("data")))
		link.Write(segment(families[0].alias, 2000, 9, frame.RST, 1, 1, nil)) // between two runs
	}
	until(t, "losses counted", func() bool {
		c := e.Counters()
		return c.MailboxFull.Load() > 0 && c.NoFlow.Load()+c.ServiceDrops.Load() == runs
	})
	n := 0
	for {
		r, ok := p.Recv()
		if !ok {
			break
		}
		n++
		r.Release()
	}
	if lost := int(e.Counters().MailboxFull.Load()); n+lost != runs {
		t.Errorf("%d runs in the mailbox and %d lost, of %d", n, lost, runs)
	}
	e.table.Remove(p)
	p.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	link.Close()
	if e.pool.Out() != 0 {
		t.Errorf("%d slabs out", e.pool.Out())
	}
}

// TestSlabsOut: when actors hold all slabs, frames are lost and counted until one comes back.
func TestSlabsOut(t *testing.T) {
	e, link, _ := newEngine(&options{})
	slabs, _, _ := divide(0)
	for e.pool.Out() < slabs-1 {
		defer e.pool.Get().Release()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	// The reader's own slab is held by a port nobody reads from.
	k := flow.Key{Guest: frame.Addr4([4]byte{10, 0, 2, 15}), Remote: frame.Addr4([4]byte{10, 0, 2, 2}),
		GuestPort: 1000, RemotePort: 9, Proto: frame.ProtoTCP}
	p := flow.NewPort(k)
	e.table.Insert(p)
	big := segment(families[0].alias, 1000, 9, frame.ACK, 1, 1, make([]byte, 60000))
	until(t, "losses counted", func() bool { link.Write(big); return e.Counters().SlabsOut.Load() > 0 })
	e.table.Remove(p)
	p.Close()
	// Now it has room again: a stray segment is answered.
	until(t, "frames taken", func() bool {
		link.Write(segment(families[0].alias, 2000, 9, frame.ACK, 1, 1, nil))
		return e.Counters().NoFlow.Load() > 0
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	link.Close()
}

// segment returns a frame with a TCP segment of the guest's to the port to of remote. Its checksum
// is not filled in: nobody on our side looks at it.
func segment(remote netip.Addr, from, to uint16, flags uint8, seq, ack uint32, data []byte) []byte {
	b := make([]byte, frame.L3Off+frame.IPv6Len+frame.TCPLen+len(data))
	src, etherType := families[0].guest(), uint16(frame.EtherIPv4)
	if remote.Is6() {
		src, etherType = families[1].guest(), frame.EtherIPv6
	}
	frame.PutEth(b, ourMAC, guestMAC, etherType)
	l4 := frame.L3Off + frame.PutIP(b[frame.L3Off:], &frame.IP{Src: frame.AddrOf(src), Dst: frame.AddrOf(remote),
		Proto: frame.ProtoTCP, TTL: 64, Len: frame.TCPLen + len(data)})
	frame.PutTCP(b[l4:], &frame.TCPFields{SrcPort: from, DstPort: to, Seq: seq, Ack: ack, Flags: flags, Window: 4096})
	return b[:l4+frame.TCPLen+copy(b[l4+frame.TCPLen:], data)]
}

// guest returns the guest's address.
func (f *family) guest() netip.Addr {
	if f.alias.Is4() {
		return netip.AddrFrom4([4]byte{10, 0, 2, 15})
	}
	return netip.MustParseAddr("fd00::15")
}

// echoUDP returns the port of a UDP socket on the host that sends back what it gets.
func echoUDP(t testing.TB, fam family) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(fam.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 65536); ; {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func (b *bed) dialUDP(t testing.TB, fam family, port uint16) net.Conn {
	t.Helper()
	c := b.guest.dialUDP(t, netip.AddrPortFrom(fam.alias, port))
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func TestUDP(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, options{})
		c := b.dialUDP(t, fam, echoUDP(t, fam))
		got := make([]byte, 2000)
		for _, n := range []int{0, 1, 17, 1400, 1452} {
			want, _ := io.ReadAll(newStream(n, uint64(n)))
			if _, err := c.Write(want); err != nil {
				t.Fatal(err)
			}
			m, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:m], want) {
				t.Fatalf("%d bytes: %d come back, %v", n, m, err)
			}
		}
		if n := b.Counters().UDP.Load(); n != 1 {
			t.Errorf("%d flows counted, want 1", n)
		}
	})
}

func TestUDPFlowsEndWhenIdle(t *testing.T) {
	b := newBed(t, options{idle: 20 * time.Millisecond})
	port := echoUDP(t, families[0])
	for range 20 {
		c := b.dialUDP(t, families[0], port)
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	b.idle()
}

func TestPing(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, options{})
		if fd, err := b.cfg.Host.Ping(fam.loopback); err != nil {
			t.Skipf("no ping sockets here (net.ipv4.ping_group_range): %v", err)
		} else {
			unix.Close(fd)
		}
		to, net := full(netip.AddrPortFrom(fam.alias, 0))
		proto, request, reply := icmp.ProtocolNumber4, byte(header.ICMPv4Echo), byte(header.ICMPv4EchoReply)
		if fam.alias.Is6() {
			proto, request, reply = icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest), byte(header.ICMPv6EchoReply)
		}
		var wq waiter.Queue
		ep, err := b.guest.NewEndpoint(proto, net, &wq)
		if err != nil {
			t.Fatal(err)
		}
		defer ep.Close()
		entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
		wq.EventRegister(&entry)
		defer wq.EventUnregister(&entry)
		for seq := range 3 {
			echo := append([]byte{request, 0, 0, 0, 0, 0, 0, byte(seq)}, "fusilli"...)
			if _, err := ep.Write(bytes.NewReader(echo), tcpip.WriteOptions{To: &to}); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ready:
			case <-time.After(patience):
				t.Fatal("no reply")
			}
			var got bytes.Buffer
			if _, err := ep.Read(&got, tcpip.ReadOptions{}); err != nil {
				t.Fatal(err)
			}
			r := got.Bytes()
			if len(r) != len(echo) || r[0] != reply || r[7] != byte(seq) || string(r[8:]) != "fusilli" {
				t.Errorf("reply %x to %x", r, echo)
			}
		}
	})
}

// TestServicesHaveMailboxesOfTheirOwn: a service that does not keep up costs the others nothing.
func TestServicesHaveMailboxesOfTheirOwn(t *testing.T) {
	e, link, _ := newEngine(&options{queue: 4096})
	// A DHCP server that hangs at its first line of log.
	release := make(chan struct{})
	core, _ := observer.New(zapcore.InfoLevel)
	e.cfg.DHCP = dhcp.New(&dhcp.Config{
		Guest: netip.MustParseAddr("10.0.2.15"), PrefixLen: 24, Gateway: families[0].alias,
		Log: zap.New(core, zap.Hooks(func(zapcore.Entry) error { <-release; return nil })),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	request := seed(false, 17, append([]byte{0, 68, 0, 67, 0, 248, 0, 0, 1, 1, 6}, make([]byte, 237)...)...)
	arp := append(make([]byte, frame.VnetLen+12), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2)
	b := make([]byte, frame.MaxFrame)
	for range 200 {
		link.Write(request)
		link.Write(arp)
		if n, err := link.Read(b); err != nil || n != frame.MinFrame || b[frame.L3Off+7] != 2 {
			t.Fatalf("read %d bytes, %v: no reply to ARP", n, err)
		}
	}
	until(t, "losses counted", func() bool { return e.Counters().ServiceDrops.Load() > 0 })
	close(release)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	link.Close()
	if n := e.pool.Out(); n != 0 {
		t.Errorf("%d slabs are out", n)
	}
}
