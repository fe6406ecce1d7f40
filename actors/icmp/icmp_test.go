package icmp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 2 * time.Minute
	ident    = 0x1234
)

var (
	ourMAC   = frame.MAC{2, 0, 0, 0, 0, 1}
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 2}
)

type family struct {
	name                    string
	guest, remote, loopback netip.Addr
	request, reply          byte
}

var families = []family{
	{"IPv4", netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("127.0.0.1"), 8, 0},
	{"IPv6", netip.MustParseAddr("2001:db8::15"), netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("::1"), 128, 129},
}

func forFamilies(t *testing.T, f func(*testing.T, family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// kernel is the other end of a pair of sockets that stands for a ping socket: what is received from
// it was sent to the network.
type kernel struct{ fd, other int }

func newKernel(t *testing.T) *kernel {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range p {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	unix.SetNonblock(p[1], false)
	unix.SetsockoptTimeval(p[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	t.Cleanup(func() { unix.Close(p[1]) })
	return &kernel{p[0], p[1]}
}

func (k *kernel) Ping(netip.Addr) (int, error) { return k.fd, nil }

// request returns the next request.
func (k *kernel) request(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, 65536)
	n, err := unix.Read(k.other, b)
	for err == unix.EINTR { // the scheduler's own signals
		n, err = unix.Read(k.other, b)
	}
	if err != nil {
		t.Fatalf("no request: %v", err)
	}
	return b[:n]
}

// answer sends the reply to req as the kernel hands it on: with an identifier of its own.
func (k *kernel) answer(t *testing.T, typ byte, req []byte) {
	t.Helper()
	r := bytes.Clone(req)
	r[0], r[2], r[3], r[4], r[5] = typ, 0xaa, 0xaa, 0xbb, 0xbb
	if _, err := unix.Write(k.other, r); err != nil {
		t.Fatal(err)
	}
}

type bed struct {
	t      *testing.T
	fam    family
	env    *flow.Env
	port   *flow.Port
	pool   *flow.Pool
	frames chan []byte
	done   chan struct{}
}

func newBed(t *testing.T, fam family, dialer Dialer, log *zap.Logger) *bed {
	link, guest := tapio.Pipe(tapio.PipeOptions{})
	b := &bed{
		t: t, fam: fam, pool: flow.NewPool(16), frames: make(chan []byte, 64), done: make(chan struct{}),
		env: &flow.Env{Link: link, Log: log, OurMAC: ourMAC, MTU: 1500},
	}
	b.env.SetGuestMAC(guestMAC)
	proto := uint16(frame.ProtoICMP)
	if fam.request == 128 {
		proto = frame.ProtoICMPv6
	}
	b.port = flow.NewPort(flow.Key{Guest: frame.AddrOf(fam.guest), Remote: frame.AddrOf(fam.remote), GuestPort: ident, Proto: proto})
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
	go func() {
		defer close(b.done)
		Serve(b.env, b.port, dialer, fam.loopback)
	}()
	t.Cleanup(func() {
		b.port.Stop()
		<-b.done
		link.Close()
		guest.Close()
		<-read
		if n := b.pool.Out(); n != 0 {
			t.Errorf("%d slabs were not given back", n)
		}
	})
	return b
}

// request has the guest send an echo request.
func (b *bed) request(seq uint16, data []byte) []byte {
	b.t.Helper()
	k := b.port.Key()
	f := make([]byte, frame.L3Off+frame.IPv6Len+frame.ICMPLen+len(data))
	ip := frame.IP{Src: k.Guest, Dst: k.Remote, Proto: uint8(k.Proto), TTL: 64, Len: frame.ICMPLen + len(data)}
	etherType := uint16(frame.EtherIPv4)
	if k.V6() {
		etherType = frame.EtherIPv6
	}
	frame.PutEth(f, ourMAC, guestMAC, etherType)
	l4 := frame.L3Off + frame.PutIP(f[frame.L3Off:], &ip)
	msg := f[l4 : l4+frame.ICMPLen+len(data)]
	msg[0] = b.fam.request
	binary.BigEndian.PutUint16(msg[4:], ident)
	binary.BigEndian.PutUint16(msg[6:], seq)
	copy(msg[frame.ICMPLen:], data)
	f = f[:l4+len(msg)]

	var p frame.Packet
	if why := frame.Parse(f, &p); why != frame.OK {
		b.t.Fatalf("request of %d bytes: %v", len(data), why)
	}
	slab := b.pool.Get()
	defer slab.Release()
	copy(slab.Room(), f)
	slab.Append(len(f), &p)
	if r := slab.Run(0); !b.port.Offer(r) {
		r.Release()
		b.t.Fatal("mailbox is full")
	}
	return msg
}

// reply returns sequence number and data of the next reply the guest gets.
func (b *bed) reply() (seq uint16, data []byte) {
	b.t.Helper()
	var f []byte
	select {
	case f = <-b.frames:
	case <-time.After(patience):
		b.t.Fatal("no reply")
	}
	return b.replyIn(f)
}

// replyIn checks that the frame f is a reply to the guest, and returns sequence number and data.
func (b *bed) replyIn(f []byte) (seq uint16, data []byte) {
	b.t.Helper()
	p := gopacket.NewPacket(f[frame.VnetLen:], layers.LayerTypeEthernet, gopacket.Default)
	src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
	if !bytes.Equal(src.Raw(), b.fam.remote.AsSlice()) || !bytes.Equal(dst.Raw(), b.fam.guest.AsSlice()) {
		b.t.Fatalf("reply from %v to %v", src, dst)
	}
	msg := p.NetworkLayer().LayerPayload()
	sum := uint32(0)
	if b.fam.request == 128 {
		k := b.port.Key()
		sum = frame.PseudoSum(&k.Remote, &k.Guest, frame.ProtoICMPv6, len(msg))
	}
	if msg[0] != b.fam.reply || msg[1] != 0 || frame.Checksum(msg, sum) != 0 || binary.BigEndian.Uint16(msg[4:]) != ident {
		b.t.Fatalf("reply % x", msg[:8])
	}
	return binary.BigEndian.Uint16(msg[6:]), msg[8:]
}

func TestEcho(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		k := newKernel(t)
		b := newBed(t, fam, k, zap.NewNop())
		for i, n := range []int{0, 1, 17, 18, 56, 57, 1472, 9000, 65000, 56} {
			data := bytes.Repeat([]byte{byte(i + 1), 2, 3}, n/3+1)[:n]
			sent := b.request(uint16(i), data)
			req := k.request(t)
			if !bytes.Equal(req, sent) {
				t.Fatalf("%d bytes: request differs", n)
			}
			k.answer(t, fam.reply, req)
			if seq, got := b.reply(); seq != uint16(i) || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes: reply %d with %d bytes", n, seq, len(got))
			}
		}
	})
}

func TestDuplicateReplies(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		k := newKernel(t)
		b := newBed(t, fam, k, zap.NewNop())
		b.request(7, []byte("first"))
		req := k.request(t)
		k.answer(t, fam.reply, req)
		k.answer(t, fam.reply, req)
		k.answer(t, fam.request, req)     // no reply at all
		k.answer(t, fam.reply, req[:6+2]) // shorter, but the same number
		b.reply()
		b.request(8, []byte("second"))
		k.answer(t, fam.reply, k.request(t))
		if seq, _ := b.reply(); seq != 8 {
			t.Fatalf("duplicate of %d came through", seq)
		}
		// A number that is used again gets its reply.
		b.request(8, []byte("third"))
		k.answer(t, fam.reply, k.request(t))
		if seq, data := b.reply(); seq != 8 || string(data) != "third" {
			t.Fatalf("reply %d %q", seq, data)
		}
	})
}

func TestShortMessagesAreDropped(t *testing.T) {
	k := newKernel(t)
	b := newBed(t, families[0], k, zap.NewNop())
	b.request(1, nil)
	req := k.request(t)
	for n := 1; n < len(req); n++ {
		unix.Write(k.other, make([]byte, n))
	}
	k.answer(t, 0, req)
	if seq, _ := b.reply(); seq != 1 {
		t.Errorf("reply %d", seq)
	}
}

type noPing struct{ err error }

func (d noPing) Ping(netip.Addr) (int, error) { return -1, d.err }

func TestRefusedSocketWarnsOnce(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	lastWarning.Store(0)
	for range 3 {
		b := newBed(t, families[0], noPing{os.NewSyscallError("socket", unix.EACCES)}, zap.New(core))
		<-b.done
	}
	var got []string
	for _, e := range logs.All() {
		got = append(got, e.Message)
	}
	want := []string{
		`Cannot open "ping" socket. You might need to:`,
		`  sysctl -w net.ipv4.ping_group_range="0 2147483647"`,
		`...echo requests/replies will fail.`,
	}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("logged %q", got)
	}
	b := newBed(t, families[0], noPing{unix.ENETUNREACH}, zap.New(core))
	<-b.done
	if logs.Len() != len(want) {
		t.Error("an unreachable network is worth no warning")
	}
}

func TestFlowEndsWithSocket(t *testing.T) {
	k := newKernel(t)
	b := newBed(t, families[0], k, zap.NewNop())
	b.request(1, nil)
	k.request(t)
	b.port.Stop()
	select {
	case <-b.done:
	case <-time.After(patience):
		t.Error("flow does not end")
	}
}

// The time-out is checked on virtual time it is told, not by waiting.
func TestExpiry(t *testing.T) {
	k := newKernel(t)
	env := &flow.Env{Log: zap.NewNop()}
	c := &conn{env: env, port: flow.NewPort(flow.Key{}), last: -1, lastAt: flow.Now() - idle - 1}
	if err := c.port.Open(k.fd, c.fromHost); err != nil {
		t.Fatal(err)
	}
	defer c.port.Close()
	c.port.SetAlarm(flow.Now())
	for deadline := time.Now().Add(patience); c.step(); {
		if time.Now().After(deadline) {
			t.Fatal("flow does not end")
		}
		runtime.Gosched()
	}
}

// namespace opens ping sockets in a network namespace of its own, where they are permitted.
type namespace struct{ calls chan func() }

func newNamespace(t *testing.T) *namespace {
	n := &namespace{make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
				return err
			}
			return up("lo")
		}()
		ready <- err
		if err != nil {
			return
		}
		for f := range n.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Skipf("no namespace: %v", err)
	}
	t.Cleanup(func() { close(n.calls) })
	return n
}

func up(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

func (n *namespace) Ping(a netip.Addr) (fd int, err error) {
	done := make(chan struct{})
	n.calls <- func() {
		defer close(done)
		fd, err = (&sock.Host{}).Ping(a)
	}
	<-done
	return fd, err
}

func TestEchoFromRealHost(t *testing.T) {
	n := newNamespace(t)
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam, n, zap.NewNop())
		for i, size := range []int{0, 56, 1472, 9000, 60000, 56} {
			data := bytes.Repeat([]byte{byte(i + 1)}, size)
			b.request(uint16(i), data)
			if seq, got := b.reply(); seq != uint16(i) || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes: reply %d with %d bytes", size, seq, len(got))
			}
		}
	})
}
