package udp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen: long enough for a machine that is busy
// with other things, and under the race detector. Only a test that fails takes that long.
const patience = 2 * time.Minute

var (
	ourMAC   = frame.MAC{2, 0, 0, 0, 0, 1}
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 2}
)

var nopLog = zap.NewNop()

// family is the addresses of a test: those the guest sees, and the host's.
type family struct {
	name          string
	guest, remote netip.Addr
	loopback      netip.Addr
}

var families = []family{
	{"IPv4", netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("127.0.0.1")},
	{"IPv6", netip.MustParseAddr("2001:db8::15"), netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("::1")},
}

// forFamilies runs f for both IP versions.
func forFamilies(t *testing.T, f func(*testing.T, family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// bed is one flow and the guest's end of its link.
type bed struct {
	t      testing.TB
	fam    family
	env    *flow.Env
	pool   *flow.Pool
	key    flow.Key
	port   *flow.Port
	ttl    uint8
	tos    uint8
	frames chan []byte // what the guest has received
	done   chan struct{}
}

// options change what newBed makes.
type options struct {
	guestPort  uint16
	timeout    time.Duration
	stream     time.Duration
	dialer     Dialer
	without    tapio.Features
	doNotServe bool
}

// newBed makes a flow to the host's port, which begins to run with the first send.
func newBed(t testing.TB, fam family, port uint16, o options) *bed {
	if o.guestPort == 0 {
		o.guestPort = 40001
	}
	if o.timeout == 0 {
		o.timeout, o.stream = time.Hour, time.Hour
	}
	if o.dialer == nil {
		o.dialer = &sock.Host{}
	}
	link, guest := tapio.Pipe(tapio.PipeOptions{WithoutToB: o.without, Queue: 4096})
	b := &bed{
		t: t, fam: fam, ttl: 64, pool: flow.NewPool(64),
		env: &flow.Env{Link: link, Log: nopLog, OurMAC: ourMAC, MTU: 1500, UDPTimeout: o.timeout, UDPStreamTimeout: o.stream},
		key: flow.Key{Guest: frame.AddrOf(fam.guest), Remote: frame.AddrOf(fam.remote), GuestPort: o.guestPort,
			RemotePort: 40053, Proto: frame.ProtoUDP},
		frames: make(chan []byte, 4096), done: make(chan struct{}),
	}
	b.env.SetGuestMAC(guestMAC)
	b.port = flow.NewPort(b.key)
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, frame.MaxFrame)
		for {
			n, err := guest.Read(buf)
			if err != nil {
				return
			}
			b.frames <- bytes.Clone(buf[:n])
		}
	}()
	t.Cleanup(func() {
		link.Close()
		guest.Close()
		<-read
		if n := b.pool.Out(); n != 0 {
			t.Errorf("%d slabs were not given back", n)
		}
	})
	host := netip.AddrPortFrom(fam.loopback, port)
	if !o.doNotServe {
		go func() {
			defer close(b.done)
			for !b.port.Mail() && !b.port.Stopped() {
				runtime.Gosched()
			}
			Serve(b.env, b.port, o.dialer, host)
		}()
		t.Cleanup(func() {
			b.port.Stop()
			<-b.done
		})
	}
	return b
}

// frameOf returns a guest's frame with data; gso is the size of the datagrams in it, 0 for one.
func (b *bed) frameOf(data []byte, gso int) []byte {
	f := make([]byte, frame.L3Off+frame.IPv6Len+frame.UDPLen+len(data)+64)
	ip := frame.IP{Src: b.key.Guest, Dst: b.key.Remote, Proto: frame.ProtoUDP, TTL: b.ttl, TOS: b.tos, Len: frame.UDPLen + len(data)}
	etherType := uint16(frame.EtherIPv4)
	if b.key.V6() {
		etherType = frame.EtherIPv6
	}
	frame.PutEth(f, ourMAC, guestMAC, etherType)
	l4 := frame.L3Off + frame.PutIP(f[frame.L3Off:], &ip)
	frame.PutUDP(f[l4:], b.key.GuestPort, b.key.RemotePort, len(data), 0)
	copy(f[l4+frame.UDPLen:], data)
	if gso > 0 {
		frame.PutVnet(f, frame.Vnet{Flags: frame.NeedsCsum, GSOType: frame.GSOUDP, GSOSize: uint16(gso),
			HdrLen: uint16(l4 + frame.UDPLen - frame.VnetLen), CsumStart: uint16(l4 - frame.VnetLen), CsumOffset: 6})
	}
	return f[:l4+frame.UDPLen+len(data)]
}

// run returns the frames as the tap reader hands them over.
func (b *bed) run(frames ...[]byte) []flow.Run {
	var runs []flow.Run
	slab := b.pool.Get()
	start := 0
	for _, f := range frames {
		var p frame.Packet
		if why := frame.Parse(f, &p); why != frame.OK {
			b.t.Fatalf("frame of %d bytes: %v", len(f), why)
		}
		room := slab.Room()
		if room == nil {
			runs = append(runs, slab.Run(start))
			slab.Release()
			slab, start = b.pool.Get(), 0
			room = slab.Room()
		}
		copy(room, f)
		slab.Append(len(f), &p)
	}
	runs = append(runs, slab.Run(start))
	slab.Release()
	return runs
}

// offer hands the frames over.
func (b *bed) offer(frames ...[]byte) {
	b.t.Helper()
	for _, r := range b.run(frames...) {
		if !b.port.Offer(r) {
			r.Release()
			b.t.Fatal("mailbox is full")
		}
	}
}

// send has the guest send datagrams that are read off the tap in one go.
func (b *bed) send(datagrams ...[]byte) {
	b.t.Helper()
	var frames [][]byte
	for _, d := range datagrams {
		frames = append(frames, b.frameOf(d, 0))
	}
	b.offer(frames...)
}

// frame returns the next frame the guest gets.
func (b *bed) frame() []byte {
	b.t.Helper()
	select {
	case f := <-b.frames:
		return f
	case <-time.After(patience):
		b.t.Fatal("guest gets nothing")
		return nil
	}
}

// receive returns the datagrams in the next frame the guest gets, having checked its headers.
func (b *bed) receive() [][]byte {
	b.t.Helper()
	f := b.frame()
	data, size, err := b.check(f)
	if err != nil {
		b.t.Fatal(err)
	}
	var all [][]byte
	for {
		n := min(size, len(data))
		all = append(all, data[:n])
		if data = data[n:]; len(data) == 0 {
			return all
		}
	}
}

// check decodes a frame to the guest independently and returns its payload and the size of the
// datagrams in it.
func (b *bed) check(f []byte) (data []byte, size int, err error) {
	if len(f) < frame.MinFrame {
		return nil, 0, fmt.Errorf("frame is shorter than Ethernet's shortest: %d bytes", len(f))
	}
	v := frame.GetVnet(f)
	p := gopacket.NewPacket(f[frame.VnetLen:], layers.LayerTypeEthernet, gopacket.Default)
	// some ports stand for a protocol
	if e := p.ErrorLayer(); e != nil && p.TransportLayer() == nil {
		return nil, 0, fmt.Errorf("frame does not decode: %v", e.Error())
	}
	eth := p.LinkLayer().(*layers.Ethernet)
	if !bytes.Equal(eth.SrcMAC, ourMAC[:]) || !bytes.Equal(eth.DstMAC, guestMAC[:]) {
		return nil, 0, fmt.Errorf("MAC addresses %v to %v", eth.SrcMAC, eth.DstMAC)
	}
	src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
	if !bytes.Equal(src.Raw(), b.fam.remote.AsSlice()) || !bytes.Equal(dst.Raw(), b.fam.guest.AsSlice()) {
		return nil, 0, fmt.Errorf("IP addresses %v to %v", src, dst)
	}
	if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
		sum := frame.Sum(ip.Contents, 0)
		if frame.Fold(sum) != 0xffff || ip.TTL != 64 && ip.TTL != 255 || ip.Flags != layers.IPv4DontFragment {
			return nil, 0, fmt.Errorf("IPv4 header %x", ip.Contents)
		}
	}
	udp, ok := p.TransportLayer().(*layers.UDP)
	if !ok {
		return nil, 0, fmt.Errorf("no UDP: %v", p)
	}
	if uint16(udp.SrcPort) != b.key.RemotePort || uint16(udp.DstPort) != b.key.GuestPort {
		return nil, 0, fmt.Errorf("ports %d to %d", udp.SrcPort, udp.DstPort)
	}
	n := int(udp.Length) - frame.UDPLen
	data = udp.Payload[:n]
	pseudo := frame.PseudoSum(&b.key.Remote, &b.key.Guest, frame.ProtoUDP, frame.UDPLen+n)
	switch {
	case v.Flags&frame.NeedsCsum != 0:
		if udp.Checksum != frame.Fold(pseudo) {
			return nil, 0, fmt.Errorf("partial checksum %04x, want %04x", udp.Checksum, frame.Fold(pseudo))
		}
	case udp.Checksum != 0:
		if s := frame.Fold(frame.Sum(data, frame.Sum(udp.Contents, pseudo))); s != 0xffff {
			return nil, 0, fmt.Errorf("checksum %04x is wrong", udp.Checksum)
		}
	case b.key.V6():
		return nil, 0, fmt.Errorf("no checksum")
	}
	size = max(n, 1)
	if v.GSOType != frame.GSONone {
		if v.GSOType != frame.GSOUDP || v.GSOSize == 0 || int(v.GSOSize) >= n || n > maxSegments*int(v.GSOSize) {
			return nil, 0, fmt.Errorf("row of %d bytes: %+v", n, v)
		}
		size = int(v.GSOSize)
	}
	return data, size, nil
}

// newPeer is a UDP socket on the host's loopback address.
func newPeer(t testing.TB, fam family) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(fam.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadBuffer(4 << 20)
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// pattern returns n bytes that differ from those of another seed.
func pattern(n int, seed uint32) []byte {
	b := bytes.Clone(noise()[seed*2654435761>>16:][:n])
	if n >= 4 {
		binary.BigEndian.PutUint32(b, seed)
	}
	return b
}

var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<17)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
})
