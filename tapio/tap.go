package tapio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

const tunPath = "/dev/net/tun"

// TapOptions say how a tap is opened. The zero value is one queue with all the kernel offers.
type TapOptions struct {
	// Queues is the number of queues asked for (IFF_MULTI_QUEUE); 0 is 1. If the kernel refuses
	// several there will be one.
	Queues int
	// Without are features to do without, as if the kernel had refused them.
	Without Features
	// TxQueueLen is the number of frames towards us that the kernel queues; 0 leaves its default
	// (1000 for most kernels).
	TxQueueLen int
}

// Tap is a tap device (linux/if_tun.h), the guest's interface in a network namespace. Used as a
// Link it is its first queue; frames written to one queue come out of the interface as those
// written to any other.
type Tap struct {
	queue
	more []*queue
}

// OpenTap makes the tap name, or attaches to it if it exists, in the network namespace of the
// calling thread; an empty name leaves the choice to the kernel. The namespace keeps it until
// Close; afterwards the calling thread's namespace does not matter any more. It needs CAP_NET_ADMIN
// in the namespace's user namespace.
//
// Offloads are asked for from all to none until the kernel agrees; Features says what came of it.
func OpenTap(name string, o TapOptions) (*Tap, error) {
	t, err := openTap(name, o)
	if err != nil {
		if name == "" {
			return nil, fmt.Errorf("open tap: %w", err)
		}
		return nil, fmt.Errorf("open tap %q: %w", name, err)
	}
	return t, nil
}

func openTap(name string, o TapOptions) (*Tap, error) {
	t := new(Tap)
	flags := uint16(0)
	if o.Queues > 1 {
		flags = unix.IFF_MULTI_QUEUE
	}
	err := t.queue.open(name, flags, o.Without)
	if flags != 0 && errors.Is(err, unix.EINVAL) {
		flags = 0
		err = t.queue.open(name, flags, o.Without)
	}
	if err != nil {
		return nil, err
	}
	for len(t.more)+1 < o.Queues && flags != 0 {
		q := new(queue)
		if err := q.open(t.name, flags, o.Without); err != nil {
			break // fewer queues than asked for will do
		}
		if q.features != t.features {
			q.Close()
			break
		}
		t.more = append(t.more, q)
	}
	if o.TxQueueLen > 0 {
		if err := setTxQueueLen(t.name, o.TxQueueLen); err != nil {
			t.Close()
			return nil, fmt.Errorf("set queue length: %w", err)
		}
	}
	return t, nil
}

// TakeTap takes over fd, a tap device that somebody else has opened and configured. What its flags
// say about the virtio_net_hdr stays as it is; o.Queues does not count.
func TakeTap(fd int, o TapOptions) (*Tap, error) {
	t := new(Tap)
	if err := t.queue.take(fd, o); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("use tap: %w", err)
	}
	if err := t.queue.use(fd); err != nil {
		return nil, fmt.Errorf("use tap: %w", err)
	}
	return t, nil
}

func (q *queue) take(fd int, o TapOptions) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return err
	}
	flags := ifr.Uint16()
	if flags&unix.IFF_TAP == 0 || flags&unix.IFF_NO_PI == 0 {
		return fmt.Errorf("%q is no tap, or has packet information", ifr.Name())
	}
	q.name, q.vnetSkip = ifr.Name(), frame.VnetLen
	if flags&unix.IFF_VNET_HDR != 0 {
		if err := setVnetHeader(fd); err != nil {
			return err
		}
		q.vnetSkip, q.features = 0, VnetHeader|offload(fd, o.Without)
	}
	return unix.SetNonblock(fd, true)
}

// Name returns the interface's name when it was opened.
func (t *Tap) Name() string { return t.name }

// Features returns what the tap does without help of software, for all its queues.
func (t *Tap) Features() Features { return t.features }

// Queues returns the number of queues, at least 1.
func (t *Tap) Queues() int { return 1 + len(t.more) }

// Queue returns the queue i of Queues as a Link of its own. Its Close closes that queue only.
func (t *Tap) Queue(i int) Link {
	if i == 0 {
		return &t.queue
	}
	return t.more[i-1]
}

// Close closes all queues. The interface goes away with the last of them.
func (t *Tap) Close() error {
	err := t.queue.Close()
	for _, q := range t.more {
		q.Close()
	}
	return err
}

// Leave has Close leave the interface behind, for its namespace to remove, which is about to end.
// To remove it is to wait for all who might still look at it, some 15 ms.
func (t *Tap) Leave() error {
	if !t.queue.enter() {
		return os.ErrClosed
	}
	defer t.queue.leave()
	return unix.IoctlSetInt(int(t.queue.fd), unix.TUNSETPERSIST, 1)
}

// queue is one queue of a tap: a descriptor of /dev/net/tun.
//
// The descriptor stays open while calls are under way.
type queue struct {
	name     string
	features Features
	fd       uintptr
	vnetSkip int // bytes of a buffer that the device does not know: VnetLen without VnetHeader

	life fdRef
	file *os.File
	raw  syscall.RawConn

	// By the reader, for step.
	step  func(uintptr) bool
	buf   []byte
	n     int
	errno unix.Errno

	writeRaw func([]byte) error // the method write, bound once

	failure atomic.Pointer[writeFailure] // of the write that has found the device unusable
}

// writeFailure is the error of a write. The reader is told, since writers are not the ones to end a
// link.
type writeFailure struct{ err error }

func (q *queue) open(name string, flags uint16, without Features) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", tunPath, err)
	}
	fail := func(err error) error {
		unix.Close(fd)
		return err
	}
	flags |= unix.IFF_TAP | unix.IFF_NO_PI
	q.features = VnetHeader
	if without&VnetHeader != 0 {
		q.features = 0
		ifr.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	} else {
		ifr.SetUint16(flags | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		if err == unix.EINVAL {
			q.features = 0
			ifr.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
	}
	if err != nil {
		return fail(err)
	}
	q.name = ifr.Name()
	if q.features == 0 {
		q.vnetSkip = frame.VnetLen
	} else {
		q.vnetSkip = 0
		if err := setVnetHeader(fd); err != nil {
			return fail(fmt.Errorf("set up virtio_net_hdr: %w", err))
		}
		q.features |= offload(fd, without)
	}

	return q.use(fd)
}

// use takes over fd, on which everything is set up.
func (q *queue) use(fd int) (err error) {
	q.fd = uintptr(fd)
	q.file = os.NewFile(q.fd, tunPath)
	// Not every descriptor can be waited for; ask now rather than when it matters.
	if err := q.file.SetReadDeadline(time.Time{}); err != nil {
		q.file.Close()
		return err
	}
	if q.raw, err = q.file.SyscallConn(); err != nil {
		q.file.Close()
		return err
	}
	q.step = func(uintptr) bool {
		q.n, q.errno = q.read(q.buf)
		return q.errno != unix.EAGAIN
	}
	q.writeRaw = q.write
	return nil
}

// setVnetHeader has the kernel use headers of frame.VnetLen bytes in little-endian order.
func setVnetHeader(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, frame.VnetLen); err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil && cpu.IsBigEndian {
		return err // otherwise the native order is the right one anyway
	}
	return nil
}

// offload asks for as many offloads as the kernel takes and returns which. Kernels refuse what they
// do not know with EINVAL: USO before Linux 6.2.
func offload(fd int, without Features) Features {
	bits := map[Features]int{
		Csum:   unix.TUN_F_CSUM,
		TSO:    unix.TUN_F_TSO4 | unix.TUN_F_TSO6,
		TSOECN: unix.TUN_F_TSO_ECN,
		USO:    unix.TUN_F_USO4 | unix.TUN_F_USO6,
	}
	if without&Csum != 0 {
		without |= TSO | USO
	}
	if without&TSO != 0 {
		without |= TSOECN
	}
	for _, want := range []Features{Csum | TSO | TSOECN | USO, Csum | TSO | TSOECN, Csum | TSO, Csum} {
		want &^= without
		arg := 0
		for f, b := range bits {
			if want&f != 0 {
				arg |= b
			}
		}
		if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, arg) == nil {
			return want
		}
	}
	unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	return 0
}

// setTxQueueLen sets the interface's transmit queue length (netdevice(7)).
func setTxQueueLen(name string, n int) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr.SetUint32(uint32(n))
	return unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, ifr)
}

// enter keeps the descriptor open until leave. It reports false after Close.
func (q *queue) enter() bool {
	ok, last := q.life.enter()
	if last {
		q.file.Close()
	}
	return ok
}

func (q *queue) leave() {
	if q.life.leave() {
		q.file.Close()
	}
}

// Close implements Link.
func (q *queue) Close() error {
	if !q.life.end() {
		return os.ErrClosed
	}
	// Wakes the reader, which leaves then. A reader about to wait finds the deadline passed.
	q.file.SetReadDeadline(time.Unix(1, 0))
	q.leave()
	return nil
}

// read reads one frame. It does not block and takes well under a microsecond when there is none, so
// the scheduler need not know of it.
func (q *queue) read(b []byte) (int, unix.Errno) {
	if len(b) <= frame.VnetLen {
		return 0, unix.EINVAL
	}
	p := b[q.vnetSkip:]
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, q.fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch errno {
		case 0:
			if q.vnetSkip != 0 {
				clear(b[:frame.VnetLen])
			}
			return int(n) + q.vnetSkip, 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// TryRead implements Link.
func (q *queue) TryRead(b []byte) (int, error) {
	if !q.enter() {
		return 0, os.ErrClosed
	}
	n, errno := q.read(b)
	q.leave()
	if f := q.failure.Load(); f != nil {
		return 0, f.err
	}
	if errno == unix.EAGAIN {
		return 0, nil
	}
	return q.got(n, errno)
}

// Read implements Link.
func (q *queue) Read(b []byte) (int, error) {
	if !q.enter() {
		return 0, os.ErrClosed
	}
	q.buf = b
	q.errno = 0
	err := q.raw.Read(q.step)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		// Go's poller waits for nothing that has failed, like a device that was removed. A read
		// says what it was.
		q.step(q.fd)
	}
	q.buf = nil
	q.leave()
	if err != nil {
		if f := q.failure.Load(); f != nil && !q.life.ended() {
			return 0, f.err
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, os.ErrClosed // by Close
		}
		if q.errno != 0 && q.errno != unix.EAGAIN {
			return q.got(0, q.errno)
		}
		return 0, fmt.Errorf("read tap %q: %w", q.name, err)
	}
	return q.got(q.n, q.errno)
}

func (q *queue) got(n int, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, fmt.Errorf("read tap %q: %w", q.name, gone(errno))
	}
	if n == q.vnetSkip {
		return 0, fmt.Errorf("read tap %q: %w", q.name, io.EOF)
	}
	return n, nil
}

// Write implements Link.
func (q *queue) Write(b []byte) error {
	if len(b) < frame.L3Off || len(b) > frame.MaxFrame {
		return ErrRefused
	}
	if NeedsSoft(b, q.features) {
		return WriteSoft(b, q.features, q.writeRaw)
	}
	return q.write(b)
}

// write sends a frame that asks for nothing the device does not have.
func (q *queue) write(b []byte) error {
	if !q.enter() {
		return os.ErrClosed
	}
	p := b[q.vnetSkip:]
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, q.fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	q.leave()
	switch errno {
	case 0:
		return nil
	case unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.ENOSPC, unix.ENOMEM, unix.EIO:
		// EIO: the interface is down. The others: no memory or no room now.
		return ErrDropped
	case unix.EINVAL, unix.EMSGSIZE:
		return ErrRefused // that frame is at fault, not the device
	case unix.EBADFD:
		return fmt.Errorf("write tap %q: %w", q.name, gone(errno)) // that wakes the reader, too
	}
	return q.fail(fmt.Errorf("%w %q: %w", ErrWrite, q.name, errno))
}

// fail has the reader end with err, that of a write, and returns it.
func (q *queue) fail(err error) error {
	if q.failure.CompareAndSwap(nil, &writeFailure{err}) && q.enter() {
		q.file.SetReadDeadline(time.Unix(1, 0)) // wakes the reader, or finds it before it waits
		q.leave()
	}
	return err
}

// gone gives errno a meaning: EBADFD is a queue whose interface was deleted.
func gone(errno unix.Errno) error {
	if errno == unix.EBADFD {
		return ErrGone
	}
	return errno
}
