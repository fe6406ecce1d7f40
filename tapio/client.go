package tapio

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// smallWrite is the length up to which a frame is kept for later when the socket is full: what
	// keeps flows going (acknowledgements, answers of services) is that short. Longer ones are
	// dropped, and their senders wait for room.
	smallWrite = 4 << 10
	// backlog is the number of writes that wait for the socket.
	backlog = 64
)

// client is the connection to the one at the other end of a stream.
//
// The reader receives from it, and anyone may write. Writers do not wait for each other: who finds
// nobody at the socket (busy) sends with one sendmsg and, before going, what others have left in
// queue meanwhile. Who finds somebody leaves a copy in queue. No frame is begun before the one
// before it is complete: what a socket did not take of a row whose beginning it took is copied to
// taken, and goes before everything else.
//
// When the socket has had enough (full), long frames are dropped at once and short ones queued, and
// drain, a goroutine, waits for the socket to take more.
type client struct {
	s    *Stream
	life fdRef
	fd   uintptr
	in   *pollSet      // for the reader
	out  *pollSet      // for drain, closed but for its waits
	done chan struct{} // closed with the connection

	busy  atomic.Bool
	full  atomic.Bool
	queue chan *chunk
	kick  chan struct{} // wakes drain

	// By who is busy.
	taken []*chunk // out of queue, or the rest of a row; the first may be sent in part
	freed bool     // full has ended since room was told of
	dead  bool     // the socket takes nothing any more
	iov   [backlog]unix.Iovec
	msg   unix.Msghdr
}

// chunk is a copy of frames that wait, with their lengths.
type chunk struct {
	b   []byte
	off int // what precedes it was sent
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

func newChunk() *chunk {
	ch := chunks.Get().(*chunk)
	ch.b, ch.off = ch.b[:0], 0
	return ch
}

// newClient takes over the connected socket fd.
func newClient(s *Stream, fd int) (*client, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	unix.CloseOnExec(fd)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer) // less will do
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	c := &client{
		s: s, fd: uintptr(fd), done: make(chan struct{}),
		queue: make(chan *chunk, backlog), kick: make(chan struct{}, 1), taken: make([]*chunk, 0, backlog),
	}
	var err error
	if c.in, err = newPollSet(fd, unix.EPOLLIN|unix.EPOLLRDHUP); err == nil {
		c.out, err = newPollSet(fd, 0)
	}
	if err != nil {
		c.shut()
		return nil, err
	}
	return c, nil
}

// shut closes the descriptors.
func (c *client) shut() {
	for _, g := range []*pollSet{c.in, c.out} {
		if g != nil {
			g.close()
		}
	}
	unix.Close(int(c.fd))
}

// enter keeps the descriptor open until leave. It reports false after close.
func (c *client) enter() bool {
	ok, last := c.life.enter()
	if last {
		c.shut()
	}
	return ok
}

func (c *client) leave() {
	if c.life.leave() {
		c.shut()
	}
}

// close ends the connection. It may be called more than once.
func (c *client) close() {
	if !c.life.end() {
		return
	}
	close(c.done)
	c.in.wake()
	c.out.wake()
	c.leave()
}

// hungUp reports whether the other side has closed the connection.
func (c *client) hungUp() bool {
	if !c.enter() {
		return true
	}
	defer c.leave()
	p := [1]unix.PollFd{{Fd: int32(c.fd)}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// write sends the frame b, a row perhaps. The caller has entered.
func (c *client) write(b []byte) error {
	full := c.full.Load()
	if full && len(b) > smallWrite {
		return ErrDropped
	}
	w := frameWriters.Get().(*frameWriter)
	defer w.done()
	if err := w.seg.reset(b, false); err != nil {
		return err
	}
	if full || !c.busy.CompareAndSwap(false, true) {
		return c.leaveFor(w)
	}
	err := c.send(w)
	c.release()
	return err
}

// leaveFor queues w for whoever is busy, or for drain.
func (c *client) leaveFor(w *frameWriter) error {
	ch := newChunk()
	if err := ch.append(w); err != nil {
		chunks.Put(ch)
		return err
	}
	select {
	case c.queue <- ch:
	default:
		chunks.Put(ch)
		return ErrDropped
	}
	// They may have looked just before. Full is ended only by one who looks once more.
	if !c.full.Load() && c.busy.CompareAndSwap(false, true) {
		c.flush()
		c.release()
	}
	return nil
}

// append adds all that is left of w's row.
func (ch *chunk) append(w *frameWriter) error {
	for {
		more, err := w.fill()
		if err != nil || !more {
			if err == nil && len(ch.b) == 0 {
				err = ErrRefused
			}
			return err
		}
		ch.b = w.rest(ch.b, 0)
	}
}

// send sends w's row behind what was queued before it. The caller is busy.
func (c *client) send(w *frameWriter) error {
	if !c.flush() {
		if len(w.seg.in) <= smallWrite {
			return c.leaveFor(w)
		}
		return ErrDropped
	}
	for first := true; ; first = false {
		more, err := w.fill()
		if err != nil || !more {
			if err == nil && first {
				err = ErrRefused
			}
			return err
		}
		n, errno := w.send(c.fd)
		switch {
		case errno == 0 && n == w.len:
			continue
		case errno == 0:
		case errno == unix.EAGAIN || errno == unix.ENOBUFS:
			n = 0 // all of it waits then, so that there is something to try the socket with
		default:
			c.fail()
			return ErrDropped
		}
		c.full.Store(true)
		ch := newChunk()
		ch.b = w.rest(ch.b, n)
		c.taken = append(c.taken, ch)
		if err := ch.append(w); err != nil && err != ErrRefused {
			return err
		}
		return nil
	}
}

// fail is called when the socket has: it takes nothing any more. The reader is told the same.
func (c *client) fail() {
	c.dead = true
	c.full.Store(true)
	for _, ch := range c.taken {
		chunks.Put(ch)
	}
	c.taken = c.taken[:0]
}

// flush sends what waits and reports whether nothing is left. The caller is busy.
func (c *client) flush() bool {
	for !c.dead {
		c.take()
		if len(c.taken) == 0 {
			if c.full.Load() {
				c.full.Store(false)
				c.freed = true
			}
			return true
		}
		for i, ch := range c.taken {
			c.iov[i].Base = &ch.b[ch.off]
			c.iov[i].SetLen(len(ch.b) - ch.off)
		}
		c.msg.Iov = &c.iov[0]
		c.msg.SetIovlen(len(c.taken))
		n, errno := sendmsg(c.fd, &c.msg)
		clear(c.iov[:len(c.taken)])
		switch errno {
		case 0:
			c.sent(n)
		case unix.EAGAIN, unix.ENOBUFS:
			c.full.Store(true)
			return false
		default:
			c.fail()
		}
	}
	return false
}

// take moves what is queued to taken, as far as there is room.
func (c *client) take() {
	for len(c.taken) < backlog {
		select {
		case ch := <-c.queue:
			c.taken = append(c.taken, ch)
		default:
			return
		}
	}
}

// sent removes the first n bytes from taken.
func (c *client) sent(n int) {
	i := 0
	for ; i < len(c.taken); i++ {
		ch := c.taken[i]
		left := len(ch.b) - ch.off
		if n < left {
			ch.off += n
			break
		}
		n -= left
		chunks.Put(ch)
	}
	c.taken = append(c.taken[:0], c.taken[i:]...)
}

// release makes way for the next one, and sees to what came meanwhile.
func (c *client) release() {
	for {
		freed := c.freed
		c.freed = false
		dead := c.dead
		waits := c.full.Load() && !dead
		c.busy.Store(false)
		if freed && c.s.room != nil {
			c.s.room()
		}
		if waits {
			select {
			case c.kick <- struct{}{}:
			default:
			}
			return
		}
		if dead || len(c.queue) == 0 || !c.busy.CompareAndSwap(false, true) {
			return
		}
		c.flush()
	}
}

// drain is the goroutine that sends what waits when the socket takes it, until the connection ends.
func (c *client) drain() {
	step := func(uintptr) bool {
		if !c.busy.CompareAndSwap(false, true) {
			return true // who is busy kicks again if there is reason to
		}
		done := c.flush() || c.dead
		c.release()
		if !done {
			c.out.ask(unix.EPOLLOUT)
		}
		return done
	}
	for {
		select {
		case <-c.kick:
		case <-c.done:
			return
		}
		if !c.enter() {
			return
		}
		err := c.out.wait(step)
		c.out.ask(0)
		c.leave()
		if err != nil {
			return
		}
	}
}
