package vhost

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// acceptPause is the time between attempts to accept a front end for which there is no descriptor
// or memory.
const acceptPause = 100 * time.Millisecond

// Options say how a device behaves. The zero value waits for one front end after the other.
type Options struct {
	Log *zap.Logger // nil: nothing is logged

	// OneOff ends the link when its first front end has gone: Read returns tapio.ErrClientGone.
	OneOff bool

	// Compat offers only the features that passt offers, for guests that shall be able to move to
	// it.
	Compat bool
}

// Device is a vhost-user network device: a tapio.Link with one queue pair. It is also the link's
// backpressure (Full, OnRoom).
type Device struct {
	log      *zap.Logger
	opt      Options
	features uint64
	protocol uint64
	listener *os.File // nil: there is only the front end it was made with
	set      *pollSet // what wakes the reader

	cur    atomic.Pointer[session]
	guest  atomic.Pointer[guestAbility]
	faults atomic.Uint64
	over   atomic.Pointer[error] // why nothing more comes

	mu      sync.Mutex // not on a frame's path
	room    func()
	connect func()
	ready   bool // frames have been able to reach a guest
	closed  bool
	started bool
	spent   bool // a one-off has had its front end
	done    chan struct{}
	wg      sync.WaitGroup

	// By the reader.
	to   []byte
	n    int
	err  error
	step func(uintptr) bool
}

// guestAbility is what the guest's driver has negotiated.
type guestAbility struct {
	have  tapio.Features
	merge bool // frames may be in several buffers
}

// Listen returns the device for whatever front end connects to the listening socket fd, which it
// takes over.
func Listen(fd int, o Options) (*Device, error) {
	d, err := newDevice(o)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	unix.CloseOnExec(fd)
	d.listener = os.NewFile(uintptr(fd), "listener")
	return d, nil
}

// New returns the device for the front end at the other end of the connected socket fd, which it
// takes over. It is a one-off.
func New(fd int, o Options) (*Device, error) {
	o.OneOff = true
	d, err := newDevice(o)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	unix.CloseOnExec(fd)
	d.begin(fd)
	return d, nil
}

func newDevice(o Options) (*Device, error) {
	set, err := newPollSet()
	if err != nil {
		return nil, err
	}
	d := &Device{log: o.Log, opt: o, features: allFeatures, protocol: allProtocol, set: set, done: make(chan struct{})}
	if d.log == nil {
		d.log = zap.NewNop()
	}
	if o.Compat {
		d.features, d.protocol = compatFeatures, compatProtocol
	}
	d.guest.Store(&guestAbility{})
	d.step = func(uintptr) bool {
		d.n, d.err = d.look(d.to, true)
		return d.n != 0 || d.err != nil
	}
	return d, nil
}

// OnRoom makes the device call f when it takes frames again after it has dropped some for want of
// buffers, or of a guest. It is to be called before the first Write; any goroutine may call f,
// which must not block.
func (d *Device) OnRoom(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = f
}

// OnConnect makes the device call f when frames can reach a new guest for the first time. It is to
// be called before the first Read; f must not block.
func (d *Device) OnConnect(f func()) {
	d.mu.Lock()
	d.connect = f
	ready := d.ready // the front end that it was made with may have been faster
	d.mu.Unlock()
	if ready {
		f()
	}
}

// Faults returns the number of front ends whose connection was closed for breaking the protocol.
func (d *Device) Faults() uint64 { return d.faults.Load() }

// Full reports whether a long frame would be dropped now.
func (d *Device) Full() bool {
	s := d.cur.Load()
	if s == nil {
		return true
	}
	q := s.q[rxQueue]
	if q.full.Load() {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.usable()
}

// rxReady tells of a receive ring that can be used, for the first time perhaps.
func (d *Device) rxReady(first bool) {
	d.tellRoom()
	d.mu.Lock()
	connect := d.connect
	d.ready = true
	d.mu.Unlock()
	if first && connect != nil {
		connect()
	}
}

// tellRoom tells that frames are taken again.
func (d *Device) tellRoom() {
	d.mu.Lock()
	room := d.room
	d.mu.Unlock()
	if room != nil {
		room()
	}
}

// begin serves the front end at fd, until it has gone, in a goroutine of its own.
func (d *Device) begin(fd int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		unix.Close(fd)
		return
	}
	s := newSession(d, os.NewFile(uintptr(fd), "front end"))
	d.cur.Store(s)
	d.wg.Go(func() {
		err := s.serve()
		d.report(err)
		d.cur.CompareAndSwap(s, nil)
		for _, q := range s.q {
			q.lock()
			d.set.remove(q.kick)
			q.mu.Unlock()
		}
		s.close()
		if d.opt.OneOff {
			d.end(tapio.ErrClientGone)
		} else {
			d.log.Info("Client connection closed")
		}
	})
}

// end makes the reader return err.
func (d *Device) end(err error) {
	d.over.CompareAndSwap(nil, &err)
	d.set.wake()
}

// accept is the goroutine that takes connections until the listener is closed.
func (d *Device) accept() {
	defer d.listener.Close()
	raw, err := d.listener.SyscallConn()
	if err != nil {
		d.end(fmt.Errorf("%w: %w", tapio.ErrListener, err))
		return
	}
	for {
		fd := -1
		var failure error
		err := raw.Read(func(l uintptr) bool {
			fd, _, failure = unix.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return failure != unix.EAGAIN
		})
		switch {
		case err != nil:
			return // closed
		case failure == unix.EINTR || failure == unix.ECONNABORTED:
			continue
		case failure == unix.EMFILE || failure == unix.ENFILE || failure == unix.ENOBUFS || failure == unix.ENOMEM:
			select { // it passes, and the front end waits
			case <-time.After(acceptPause):
			case <-d.done:
			}
			continue
		case failure != nil:
			d.end(fmt.Errorf("%w: %w", tapio.ErrListener, failure))
			return
		}
		pid := int32(0)
		if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
		if !d.free() {
			d.log.Info(fmt.Sprintf("discarding connection from PID %d", pid))
			unix.Close(fd)
			continue
		}
		d.log.Info(fmt.Sprintf("accepted connection from PID %d", pid))
		d.begin(fd)
		d.mu.Lock()
		d.spent = d.opt.OneOff
		d.mu.Unlock()
	}
}

// free reports whether a front end can be served.
func (d *Device) free() bool {
	d.mu.Lock()
	spent := d.spent
	d.mu.Unlock()
	if spent {
		return false
	}
	s := d.cur.Load()
	if s == nil {
		return true
	}
	// A front end that has hung up is about to be noticed: the one that comes is the next.
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return d.await()
	}
	hup := false
	err = raw.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p[:], 0)
		hup = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	if err != nil || hup {
		return d.await()
	}
	return false
}

// await waits until the session that is ending has ended.
func (d *Device) await() bool {
	for range 1000 {
		if d.cur.Load() == nil {
			return true
		}
		select {
		case <-d.done:
			return false
		case <-time.After(time.Millisecond):
		}
	}
	return false
}

func (d *Device) start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started || d.closed {
		return
	}
	d.started = true
	if d.listener != nil {
		d.wg.Go(d.accept)
	}
}

// Read implements tapio.Link.
func (d *Device) Read(b []byte) (int, error) {
	if !d.started {
		d.start()
	}
	d.to = b
	err := d.set.wait(d.step)
	d.to = nil
	if err != nil {
		return 0, os.ErrClosed
	}
	return d.n, d.err
}

// TryRead implements tapio.Link.
func (d *Device) TryRead(b []byte) (int, error) {
	if !d.started {
		d.start()
	}
	return d.look(b, false)
}

// look takes the next frame, if there is one. With sleep the guest rings for the next one if there
// is none.
func (d *Device) look(b []byte, sleep bool) (int, error) {
	if err := d.over.Load(); err != nil {
		return 0, *err
	}
	s := d.cur.Load()
	if s == nil {
		return 0, nil
	}
	room, err := s.q[rxQueue].hasRoom()
	if room {
		d.tellRoom()
	}
	if err != nil {
		d.breakOff(s, err)
		return 0, nil
	}
	n, notify, err := s.q[txQueue].read(b, sleep)
	if notify >= 0 {
		ringFD(notify)
	}
	if err != nil {
		d.breakOff(s, err)
		return 0, nil
	}
	return n, nil
}

// Write implements tapio.Link.
func (d *Device) Write(b []byte) error {
	if len(b) < frame.L3Off || len(b) > frame.MaxFrame {
		return tapio.ErrRefused
	}
	s := d.cur.Load()
	if s == nil {
		if d.over.Load() != nil {
			return os.ErrClosed
		}
		return tapio.ErrDropped
	}
	g := d.guest.Load()
	if tapio.NeedsSoft(b, g.have) {
		return tapio.WriteSoft(b, g.have, func(b []byte) error { return d.send(s, b, g.merge) })
	}
	return d.send(s, b, g.merge)
}

func (d *Device) send(s *session, b []byte, merge bool) error {
	notify, err := s.q[rxQueue].write(b, merge)
	if notify >= 0 {
		ringFD(notify)
	}
	if err == nil || err == tapio.ErrDropped {
		return err
	}
	d.breakOff(s, err)
	return tapio.ErrDropped
}

// breakOff ends the session s because of err.
func (d *Device) breakOff(s *session, err error) {
	if d.cur.CompareAndSwap(s, nil) {
		d.report(err)
		s.conn.SetReadDeadline(time.Unix(1, 0)) // serve ends
	}
}

// Close implements tapio.Link. What the device has started has ended when it returns.
func (d *Device) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return os.ErrClosed
	}
	d.closed = true
	close(d.done)
	if d.listener != nil {
		if d.started {
			d.listener.SetReadDeadline(time.Unix(1, 0))
		} else {
			d.listener.Close()
		}
	}
	if s := d.cur.Load(); s != nil {
		s.conn.SetReadDeadline(time.Unix(1, 0))
	}
	d.mu.Unlock()
	d.end(os.ErrClosed)
	d.wg.Wait()
	d.set.close()
	return nil
}

// panicOnFault makes faults panic until the function it returns is called.
func panicOnFault() (restore func()) {
	old := debug.SetPanicOnFault(true)
	return func() { debug.SetPanicOnFault(old) }
}
