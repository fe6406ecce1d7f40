package tapio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// socketBuffer is what is asked for as the sizes of a client's socket buffers. The kernel gives as
// much of it as net.core.wmem_max and rmem_max permit.
const socketBuffer = 1 << 30

// acceptPause is the time between attempts to accept a client for which there is no descriptor or
// memory.
const acceptPause = 100 * time.Millisecond

// ErrClientGone is what Read returns when the client has gone and the link was made for one only.
var ErrClientGone = errors.New("client is gone")

// ErrListener is what Read returns, with the reason, when no client can be accepted any more.
var ErrListener = errors.New("listening socket failed")

// StreamOptions say how a stream behaves. The zero value waits for one client after the other.
type StreamOptions struct {
	Log *zap.Logger // nil: nothing is logged

	// OneOff ends the link when its first client has gone: Read returns ErrClientGone.
	OneOff bool
}

// Stream is a link over a UNIX stream socket, the one hypervisors have: each frame is preceded by
// its length in 32 bits, big-endian. The other side knows no offloads, so rows are segmented and
// checksums completed here.
//
// A Stream outlives its clients. There is one at a time; others that come meanwhile are sent away.
// While there is none, frames written are dropped, and nothing else happens: a virtual machine that
// is started again, or whose hypervisor is, goes on where it was.
//
// Besides the caller's reader and writers there are a goroutine that accepts clients, from the
// first read on, and one for each client that sends what its socket did not take at once.
type Stream struct {
	log      *zap.Logger
	opt      StreamOptions
	listener *os.File // nil: there is only the client it was made with
	room     func()   // see OnRoom
	connect  func()   // see OnConnect

	cur      atomic.Pointer[client] // to write to
	arrivals chan *client           // to read from: at most one at a time
	failed   chan error             // from the acceptor
	done     chan struct{}          // closed by Close
	closing  atomic.Bool
	spent    atomic.Bool // a one-off has had its client
	started  atomic.Bool // the acceptor was
	wg       sync.WaitGroup
	mu       sync.Mutex // nothing is started once closing is set; not on a frame's path

	// By the reader.
	rc       *client // whom frames are read from
	over     error   // why there is nothing more to read
	in       deframer
	dry      bool // the last recv has most likely emptied the socket
	coalesce coalescer
	step     func(uintptr) bool
	to       []byte // step's argument: where a frame is wanted
	n        int    // its results
	errno    unix.Errno
	iov      [2]unix.Iovec
	msg      unix.Msghdr
}

// ListenStream returns the link to whoever connects to the listening socket fd, which it takes
// over.
func ListenStream(fd int, o StreamOptions) (*Stream, error) {
	s := newStream(o)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	unix.CloseOnExec(fd)
	s.listener = os.NewFile(uintptr(fd), "listener")
	return s, nil
}

// NewStream returns the link to the one who is at the other end of the connected socket fd, which
// it takes over. It is a one-off.
func NewStream(fd int, o StreamOptions) (*Stream, error) {
	o.OneOff = true
	s := newStream(o)
	c, err := newClient(s, fd)
	if err != nil {
		return nil, err
	}
	s.install(c)
	return s, nil
}

func newStream(o StreamOptions) *Stream {
	s := &Stream{opt: o, log: o.Log, arrivals: make(chan *client, 1), failed: make(chan error, 1), done: make(chan struct{})}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	s.step = func(uintptr) bool {
		s.n, s.errno = s.recv(s.to)
		return s.errno != unix.EAGAIN
	}
	return s
}

// OnRoom has f called when the link takes frames again after it has dropped some for want of room,
// or of a client. It is to be called before the first write; f may be called by anyone at any time
// and must not block.
func (s *Stream) OnRoom(f func()) { s.room = f }

// OnConnect has f called when a client was accepted and can be written to. It is to be called
// before the first read; f must not block.
func (s *Stream) OnConnect(f func()) { s.connect = f }

// Full reports whether a long frame would be dropped now.
func (s *Stream) Full() bool {
	c := s.cur.Load()
	return c == nil || c.full.Load()
}

// install makes c the client. The acceptor, or whoever makes the link, is the only one to call it.
func (s *Stream) install(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		c.close()
		return
	}
	s.wg.Go(c.drain)
	s.cur.Store(c)
	s.arrivals <- c
}

// accept is the goroutine that takes connections until the listener is closed.
func (s *Stream) accept() {
	defer s.listener.Close()
	raw, err := s.listener.SyscallConn()
	if err != nil {
		s.failed <- err
		return
	}
	short := false // of descriptors or memory
	for {
		fd := -1
		var failure error
		err := raw.Read(func(l uintptr) bool {
			fd, _, failure = unix.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return failure != unix.EAGAIN
		})
		switch {
		case s.closing.Load():
			if fd >= 0 {
				unix.Close(fd)
			}
			return
		case err != nil:
			s.failed <- err
			return
		case failure == unix.EINTR || failure == unix.ECONNABORTED:
			continue
		case failure == unix.EMFILE || failure == unix.ENFILE || failure == unix.ENOBUFS || failure == unix.ENOMEM:
			// It passes, and who wants to connect waits.
			if !short {
				s.log.Warn("No client can be accepted at present", zap.Error(failure))
			}
			short = true
			select {
			case <-time.After(acceptPause):
			case <-s.done:
			}
			continue
		case failure != nil:
			s.failed <- failure
			return
		}
		short = false
		s.admit(fd)
	}
}

// admit makes the connection fd the client, or sends it away.
func (s *Stream) admit(fd int) {
	pid := peer(fd)
	if c := s.cur.Load(); c != nil {
		if !c.hungUp() {
			s.log.Info(fmt.Sprintf("discarding connection from PID %d", pid))
			unix.Close(fd)
			return
		}
		// The reader is about to notice: who comes now is the next, not one too many.
		select {
		case <-c.done:
		case <-s.done:
			unix.Close(fd)
			return
		}
	}
	if s.spent.Load() {
		unix.Close(fd)
		return
	}
	c, err := newClient(s, fd)
	if err != nil {
		s.log.Warn("client cannot be served", zap.Error(err))
		return
	}
	s.log.Info(fmt.Sprintf("accepted connection from PID %d", pid))
	s.install(c)
	if s.room != nil {
		s.room()
	}
	if s.connect != nil {
		s.connect()
	}
}

// peer returns the process at the other end of fd, 0 if it is not known or not visible.
func peer(fd int) int32 {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0
	}
	return cred.Pid
}

// start starts to accept clients.
func (s *Stream) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started.Swap(true) || s.listener == nil || s.closing.Load() {
		return
	}
	s.wg.Go(s.accept)
}

// TryRead implements Link.
func (s *Stream) TryRead(b []byte) (int, error) {
	for {
		if n, err := s.cut(b); n != 0 || err != nil {
			return n, err
		}
		if s.rc == nil {
			select {
			case c := <-s.arrivals:
				s.rc = c
			case err := <-s.failed:
				return 0, s.listenFailure(err)
			default:
				return 0, nil
			}
		}
		if !s.rc.enter() {
			return 0, s.stopped()
		}
		if s.dry {
			s.dry = false // what has come meanwhile is for the next call
			s.rc.leave()
			return 0, nil
		}
		n, errno := s.recv(b)
		s.rc.leave()
		if errno == unix.EAGAIN {
			return 0, nil
		}
		if n > 0 {
			return n, nil
		}
		s.received(n, errno)
	}
}

// Read implements Link.
func (s *Stream) Read(b []byte) (int, error) {
	for {
		if n, err := s.cut(b); n != 0 || err != nil {
			return n, err
		}
		if s.rc == nil {
			select {
			case s.rc = <-s.arrivals:
			case err := <-s.failed:
				return 0, s.listenFailure(err)
			case <-s.done:
				return 0, s.stopped()
			}
		}
		if !s.rc.enter() {
			return 0, s.stopped()
		}
		s.coalesce.wait()
		s.to = b
		err := s.rc.in.wait(s.step)
		s.to = nil
		s.rc.leave()
		if err != nil {
			return 0, s.stopped() // nobody but Close sets a deadline
		}
		if s.n > 0 {
			return s.n, nil
		}
		s.received(s.n, s.errno)
	}
}

func (s *Stream) stopped() error {
	s.over = os.ErrClosed
	return s.over
}

func (s *Stream) listenFailure(err error) error {
	s.over = fmt.Errorf("%w: %w", ErrListener, err)
	return s.over
}

// cut copies the next frame that was received to b and returns its length with the virtio_net_hdr;
// 0 and nil if there is none.
func (s *Stream) cut(b []byte) (int, error) {
	if s.over != nil {
		return 0, s.over
	}
	if s.closing.Load() {
		return 0, s.stopped()
	}
	if !s.started.Load() {
		s.start()
	}
	if s.rc == nil {
		return 0, nil
	}
	f, err := s.in.next()
	if err != nil {
		s.log.Info("Bad frame size from guest, resetting connection")
		return 0, s.hangUp()
	}
	if f == nil || len(b) < frame.VnetLen {
		return 0, nil
	}
	clear(b[:frame.VnetLen])
	return frame.VnetLen + copy(b[frame.VnetLen:], f), nil
}

// recv receives more from the client. It returns the length of a frame that has come to b, with the
// virtio_net_hdr; 0 if what came is for cut; -1 at the end. Like sendmsg it takes so short that the
// scheduler need not know.
func (s *Stream) recv(b []byte) (int, unix.Errno) {
	var place, behind []byte
	have := 0
	if n := s.in.lend(); n > 0 && frame.VnetLen+n <= len(b) {
		place = b[frame.VnetLen-prefixLen : frame.VnetLen+n]
		have, behind = s.in.move(place)
		s.iov[1].Base = &behind[0]
		s.iov[1].SetLen(len(behind))
		s.msg.SetIovlen(2)
	} else {
		place = s.in.room()
		s.msg.SetIovlen(1)
	}
	s.iov[0].Base = &place[have]
	s.iov[0].SetLen(len(place) - have)
	s.msg.Iov = &s.iov[0]
	n, errno := recvmsg(s.rc.fd, &s.msg)
	s.iov[0].Base = nil
	s.dry = errno == 0 && n < len(place)-have+len(behind)
	s.coalesce.took(n, behind != nil)
	switch {
	case behind != nil:
		if s.in.settle(place, have+n) {
			clear(b[:frame.VnetLen])
			return frame.VnetLen + len(place) - prefixLen, 0
		}
	case n > 0:
		s.in.add(n)
	}
	if n == 0 && errno == 0 {
		return -1, 0
	}
	return 0, errno
}

// received notes what recv has returned, other than a frame.
func (s *Stream) received(n int, errno unix.Errno) {
	switch {
	case errno != 0:
		s.log.Info("Receive error on guest connection, reset", zap.Error(errno))
		s.hangUp()
	case n < 0:
		s.hangUp()
	}
}

// hangUp ends the connection to the client. It returns what there is to say to the reader.
func (s *Stream) hangUp() error {
	c := s.rc
	s.rc, s.dry = nil, false
	s.in.reset()
	if s.opt.OneOff {
		s.over = ErrClientGone
		s.spent.Store(true)
	} else {
		s.log.Info("Client connection closed")
	}
	s.cur.Store(nil)
	c.close()
	return s.over
}

// Write implements Link.
func (s *Stream) Write(b []byte) error {
	if len(b) < frame.L3Off || len(b) > frame.MaxFrame {
		return ErrRefused
	}
	c := s.cur.Load()
	if c == nil || !c.enter() {
		if s.closing.Load() {
			return os.ErrClosed
		}
		return ErrDropped
	}
	err := c.write(b)
	c.leave()
	return err
}

// Close implements Link. What the link has started has ended when it returns.
func (s *Stream) Close() error {
	s.mu.Lock()
	if s.closing.Swap(true) {
		s.mu.Unlock()
		return os.ErrClosed
	}
	close(s.done)
	if s.listener != nil {
		if s.started.Load() {
			s.listener.SetReadDeadline(time.Unix(1, 0))
		} else {
			s.listener.Close()
		}
	}
	if c := s.cur.Load(); c != nil {
		c.close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}
