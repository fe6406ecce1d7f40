package vhost

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second // only a test that fails takes that long

// frontEnd is a hypervisor with a guest: it speaks the protocol on conn and has the guest's memory.
type frontEnd struct {
	t     testing.TB
	conn  int
	memfd int
	mem   []byte // guest physical addresses from guestBase on
	ring  [numQueues]*driver
}

const (
	guestBase = 0x40000000
	userBase  = 0x7f0000000000
)

// driver is the guest's side of one ring.
type driver struct {
	f                 *frontEnd
	index             int
	num               int
	desc, avail, used int // offsets in memory
	kick, call        int
	events            bool

	availIdx uint16
	usedIdx  uint16
	freeDesc []int
}

// dial makes a device and its front end.
func dial(t testing.TB, o Options) (*Device, *frontEnd) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(fds[0], o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, newFrontEnd(t, fds[1])
}

func newFrontEnd(t testing.TB, conn int) *frontEnd {
	t.Helper()
	f := &frontEnd{t: t, conn: conn}
	var err error
	if f.memfd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	const size = 8 << 20
	if err := unix.Ftruncate(f.memfd, size); err != nil {
		t.Fatal(err)
	}
	if f.mem, err = unix.Mmap(f.memfd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(patience))
	unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	t.Cleanup(func() {
		f.hangUp()
		unix.Close(f.memfd)
		unix.Munmap(f.mem)
	})
	return f
}

func (f *frontEnd) hangUp() {
	if f.conn >= 0 {
		unix.Close(f.conn)
		f.conn = -1
	}
}

// send sends a message. Its payload is 32-bit words.
func (f *frontEnd) send(request, flags uint32, fds []int, words ...uint32) error {
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, request)
	b = binary.NativeEndian.AppendUint32(b, flags|flagVersion)
	b = binary.NativeEndian.AppendUint32(b, uint32(4*len(words)))
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return f.sendRaw(b, fds)
}

func (f *frontEnd) sendRaw(b []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		if err := unix.Sendmsg(f.conn, b, oob, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return err
		}
	}
}

func words(v ...uint64) (w []uint32) {
	for _, x := range v {
		lo, hi := halves(x)
		w = append(w, lo, hi)
	}
	return w
}

var errClosed = errors.New("closed")

// reply receives a reply to request and returns its payload.
func (f *frontEnd) reply(request uint32) ([]byte, error) {
	b := make([]byte, headerLen)
	if n, err := readConn(f.conn, b); err != nil || n != headerLen {
		if err == nil || errors.Is(err, unix.ECONNRESET) {
			err = errClosed
		}
		return nil, err
	}
	if got := binary.NativeEndian.Uint32(b); got != request {
		f.t.Errorf("reply to request %d, want one to %d", got, request)
	}
	if flags := binary.NativeEndian.Uint32(b[4:]); flags != 5 {
		f.t.Errorf("reply with flags %#x", flags)
	}
	p := make([]byte, binary.NativeEndian.Uint32(b[8:]))
	if len(p) > 0 {
		if n, err := readConn(f.conn, p); err != nil || n != len(p) {
			return nil, errClosed
		}
	}
	return p, nil
}

// must sends a message and waits until the device has handled it.
func (f *frontEnd) must(request uint32, fds []int, words ...uint32) {
	f.t.Helper()
	if err := f.send(request, flagNeedReply, fds, words...); err != nil {
		f.t.Fatalf("request %d: %v", request, err)
	}
	p, err := f.reply(request)
	if err != nil {
		f.t.Fatalf("request %d: %v", request, err)
	}
	if len(p) == 8 && binary.NativeEndian.Uint64(p) != 0 && request != getFeatures {
		f.t.Fatalf("request %d: refused", request)
	}
}

func (f *frontEnd) ask(request uint32, words ...uint32) uint64 {
	f.t.Helper()
	if err := f.send(request, 0, nil, words...); err != nil {
		f.t.Fatal(err)
	}
	p, err := f.reply(request)
	if err != nil || len(p) != 8 {
		f.t.Fatalf("request %d: %v, %d bytes", request, err, len(p))
	}
	return binary.NativeEndian.Uint64(p)
}

// connect does what QEMU does when it connects.
func (f *frontEnd) connect() {
	f.ask(getFeatures)
	p := f.ask(getProtocolFeatures)
	f.must(setProtocolFeatures, nil, words(p&0xe)...)
	f.must(setOwner, nil)
	f.ask(getFeatures)
	for i := range f.ring {
		f.ring[i] = f.newDriver(i, 256)
		f.must(setVringCall, []int{f.ring[i].call}, words(uint64(i))...)
		f.must(setVringEnable, nil, uint32(i), 1)
	}
}

// layout: rings in the first MiB, then buffers.
func (f *frontEnd) newDriver(i, num int) *driver {
	d := &driver{f: f, index: i, num: num}
	base := i * (256 << 10)
	d.desc, d.avail, d.used = base, base+64<<10, base+128<<10
	var err error
	if d.kick, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		f.t.Fatal(err)
	}
	if d.call, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { unix.Close(d.kick); unix.Close(d.call) })
	return d
}

// startDriver does what QEMU does when the guest's driver starts.
func (f *frontEnd) startDriver(features uint64) {
	f.must(setFeatures, nil, words(features|fVersion1|fProtocol)...)
	f.must(setMemTable, []int{f.memfd}, append([]uint32{1, 0}, words(guestBase, uint64(len(f.mem)), userBase, 0)...)...)
	for i, d := range f.ring {
		d.reset(features&fEventIdx != 0)
		f.must(setVringNum, nil, uint32(i), uint32(d.num))
		f.must(setVringBase, nil, uint32(i), 0)
		a := func(off int) uint64 { return userBase + uint64(off) }
		f.must(setVringAddr, nil, append([]uint32{uint32(i), 0}, words(a(d.desc), a(d.used), a(d.avail), guestBase+uint64(d.used))...)...)
		f.must(setVringKick, []int{d.kick}, words(uint64(i))...)
		f.must(setVringCall, []int{d.call}, words(uint64(i))...)
	}
}

func (d *driver) reset(events bool) {
	clear(d.f.mem[d.desc : d.desc+256<<10])
	d.availIdx, d.usedIdx, d.events = 0, 0, events
	d.freeDesc = nil
	for i := range d.num {
		d.freeDesc = append(d.freeDesc, i)
	}
}

// buf is a buffer in guest memory.
type buf struct {
	off, n int
	write  bool
}

func (d *driver) putDesc(i int, b buf, next int) {
	m := d.f.mem[d.desc+descLen*i:]
	flags := uint16(0)
	if b.write {
		flags |= descWrite
	}
	if next >= 0 {
		flags |= descNext
		binary.LittleEndian.PutUint16(m[14:], uint16(next))
	}
	binary.LittleEndian.PutUint64(m[0:], guestBase+uint64(b.off))
	binary.LittleEndian.PutUint32(m[8:], uint32(b.n))
	binary.LittleEndian.PutUint16(m[12:], flags)
}

// add makes a chain of buffers available, without ringing, and returns its head.
func (d *driver) add(bufs ...buf) int {
	if len(d.freeDesc) < len(bufs) {
		d.f.t.Fatal("no free descriptors")
	}
	ids := d.freeDesc[:len(bufs)]
	d.freeDesc = d.freeDesc[len(bufs):]
	for k, b := range bufs {
		next := -1
		if k+1 < len(bufs) {
			next = ids[k+1]
		}
		d.putDesc(ids[k], b, next)
	}
	d.makeAvailable(ids[0])
	return ids[0]
}

func (d *driver) makeAvailable(head int) {
	m := d.f.mem[d.avail:]
	binary.LittleEndian.PutUint16(m[4+2*(int(d.availIdx)%d.num):], uint16(head))
	d.availIdx++
	barrier()
	binary.LittleEndian.PutUint16(m[2:], d.availIdx)
	barrier()
}

// ring kicks if the device wants it, and reports whether it did.
func (d *driver) ring() bool {
	m := d.f.mem[d.used:]
	barrier()
	if d.events {
		event := load16(m[4+8*d.num:])
		if d.availIdx-event-1 >= 1 && event+1 != d.availIdx {
			// Not exactly the rule, but the one of one chain at a time.
			if d.availIdx-event-1 >= uint16(d.num) {
				return false
			}
		}
	} else if load16(m)&usedNoNotify != 0 {
		return false
	}
	ringFD(d.kick)
	return true
}

// used waits for the next used chain.
func (d *driver) take() (head int, length int) {
	d.f.t.Helper()
	m := d.f.mem[d.used:]
	for end := time.Now().Add(patience); load16(m[2:]) == d.usedIdx; {
		if time.Now().After(end) {
			d.f.t.Fatalf("ring %d: nothing comes back", d.index)
		}
		if d.events {
			binary.LittleEndian.PutUint16(d.f.mem[d.avail+4+2*d.num:], d.usedIdx)
			barrier()
			if load16(m[2:]) != d.usedIdx {
				break
			}
		}
		p := []unix.PollFd{{Fd: int32(d.call), Events: unix.POLLIN}}
		unix.Poll(p, 100)
		var b [8]byte
		unix.Read(d.call, b[:])
	}
	e := m[4+8*(int(d.usedIdx)%d.num):]
	d.usedIdx++
	return int(binary.LittleEndian.Uint32(e)), int(binary.LittleEndian.Uint32(e[4:]))
}

func openFDs(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func ftruncate(fd int, n int64) error { return unix.Ftruncate(fd, n) }

func readConn(fd int, b []byte) (int, error) {
	for {
		if n, err := unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}
