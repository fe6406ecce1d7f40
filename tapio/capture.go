package tapio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"fusilli/tapio/frame"
)

const (
	// captureSize bounds the bytes of a capture that wait for a slow file, and with that the
	// time its writer may be away.
	captureSize = 4 << 20

	// captureWait is how long a frame waits, once, for room. Then the file counts as stuck, and
	// frames are left out of the capture until it takes some again.
	captureWait = 100 * time.Millisecond

	// captureSnap is the snap length. It is longer than any frame on a link with the largest MTU.
	captureSnap = 65535

	// captureSegments is the number of segments up to which a row is taken apart. The longest row
	// at an MTU of 576 has fewer; a row of shorter ones would become mostly headers, and is
	// recorded as one packet.
	captureSegments = 128

	recordLen     = 16
	captureHeader = 24
)

var (
	// ErrCaptureStuck tells that frames were left out of a capture since its file was too slow.
	ErrCaptureStuck = errors.New("file is too slow, frames are left out")

	// ErrCaptureFull tells that a capture has ended since its file has the size it was limited to.
	ErrCaptureFull = errors.New("file has reached its size")
)

// Capture writes what a guest's link carries, both ways and as the guest sees it, to a file in
// pcap format (draft-ietf-opsawg-pcap): rows of segments are taken apart and checksums completed,
// in a copy. The file's writer is a goroutine with a bounded buffer: a slow file holds the link up
// for a moment and is then left behind, a file that fails or has its full size ends the capture.
type Capture struct {
	file   io.Writer
	limit  int64
	failed func(error)

	// order is held while a frame is sent and gets its place in pending, so that answers come after
	// questions. What takes longer, to take a row apart or to wait for room, comes before.
	order sync.Mutex

	full   atomic.Bool // of limit
	broken atomic.Bool // the file has failed

	mu      sync.Mutex
	pending []byte
	claimed int           // bytes of pending that frames have claimed
	total   int64         // bytes of the file with those pending and claimed
	stuck   bool          // no use waiting
	room    chan struct{} // closed when pending is taken; nil: nothing waits for that
	lost    uint64
	closed  bool

	work chan struct{} // there is something pending, or the end
	done chan struct{} // the writer has ended
}

// NewCapture begins a capture in file, which stays the caller's. It ends when file has limit bytes,
// at the last packet that fits; 0 means no limit. failed is told why frames are missing, once for
// each reason, by any goroutine; it must not wait.
func NewCapture(file io.Writer, limit int64, failed func(error)) *Capture {
	c := &Capture{
		file: file, limit: limit, failed: failed,
		work: make(chan struct{}, 1), done: make(chan struct{}),
	}
	h := make([]byte, captureHeader)
	binary.NativeEndian.PutUint32(h, 0xa1b2c3d4) // microseconds
	binary.NativeEndian.PutUint16(h[4:], 2)
	binary.NativeEndian.PutUint16(h[6:], 4)
	binary.NativeEndian.PutUint32(h[16:], captureSnap)
	binary.NativeEndian.PutUint32(h[20:], 1) // Ethernet
	c.pending, c.total = h, captureHeader
	go c.write()
	c.wake()
	return c
}

// Link returns l with everything that goes through it captured. It is closed like l.
func (c *Capture) Link(l Link) Link { return &captured{l, c} }

// Close writes what is pending and returns the number of frames left out, without those that came
// after the file had its full size. No frame may come any more.
func (c *Capture) Close() (lost uint64) {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wake()
	<-c.done
	return c.lost
}

// wake wakes the writer.
func (c *Capture) wake() {
	select {
	case c.work <- struct{}{}:
	default:
	}
}

// write is the goroutine that writes the file.
func (c *Capture) write() {
	defer close(c.done)
	var batch []byte
	for range c.work {
		for {
			c.mu.Lock()
			batch, c.pending = c.pending, batch[:0]
			closed := c.closed
			if c.room != nil {
				close(c.room)
				c.room = nil
			}
			c.mu.Unlock()
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			if c.broken.Load() {
				continue
			}
			if _, err := c.file.Write(batch); err != nil {
				c.broken.Store(true)
				c.failed(fmt.Errorf("write: %w", err))
			}
		}
	}
}

// packets are what one frame is in a capture. They belong to one goroutine, from prepare to
// release.
type packets struct {
	one  []byte // a single packet: a part of the frame
	many []byte // else packets with their headers, which lack the time; a part of buf

	s   segmenter
	buf [frame.MaxFrame + captureSegments*(recordLen+longestHeader)]byte
}

// longestHeader is room for the headers of any packet: Ethernet, IPv4 and TCP with options, and for
// padding in their place.
const longestHeader = frame.EthLen + 60 + 60

var packetsPool = sync.Pool{New: func() any { return new(packets) }}

func (p *packets) release() {
	p.one, p.many, p.s.in = nil, nil, nil
	packetsPool.Put(p)
}

// prepare returns what the frame b, which begins with a virtio_net_hdr, is in a capture; nil if
// nothing more is recorded. The caller releases it before b changes.
func (c *Capture) prepare(b []byte) *packets {
	if len(b) < frame.VnetLen || c.full.Load() || c.broken.Load() {
		return nil
	}
	p := packetsPool.Get().(*packets)
	v := frame.GetVnet(b)
	if v.Flags&frame.NeedsCsum == 0 && v.GSOType == frame.GSONone || p.s.reset(b, false) != nil {
		p.one = b[frame.VnetLen:]
		return p
	}
	if p.s.row && len(p.s.in)-p.s.hdr > captureSegments*p.s.size {
		p.s.size = len(p.s.in) - p.s.hdr
	}
	n := 0
	for {
		// The header of a record takes the place of the virtio_net_hdr.
		k := p.s.next(p.buf[n+recordLen-frame.VnetLen:])
		if k == 0 {
			break
		}
		k -= frame.VnetLen
		putRecord(p.buf[n:], time.Time{}, k)
		n += recordLen + min(k, captureSnap)
	}
	p.many = p.buf[:n]
	return p
}

// size returns the number of bytes in the file.
func (p *packets) size() int {
	if p.one != nil {
		return recordLen + min(len(p.one), captureSnap)
	}
	return len(p.many)
}

// putRecord writes the header of a packet of n bytes.
func putRecord(b []byte, at time.Time, n int) {
	putTime(b, at)
	binary.NativeEndian.PutUint32(b[8:], uint32(min(n, captureSnap)))
	binary.NativeEndian.PutUint32(b[12:], uint32(n))
}

func putTime(b []byte, at time.Time) {
	binary.NativeEndian.PutUint32(b, uint32(at.Unix()))
	binary.NativeEndian.PutUint32(b[4:], uint32(at.Nanosecond()/1000))
}

// claim claims n bytes of pending, and reports whether there was room. It may wait for that.
func (c *Capture) claim(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var late <-chan time.Time
	for {
		switch {
		case c.broken.Load(), c.full.Load():
			return false
		case c.limit > 0 && c.total+int64(n) > c.limit:
			c.full.Store(true)
			c.failed(ErrCaptureFull)
			return false
		case len(c.pending)+c.claimed+n <= captureSize:
			c.stuck = false
			c.claimed += n
			c.total += int64(n)
			return true
		case c.stuck:
			return false
		}
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		if late == nil {
			timer := time.NewTimer(captureWait)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-room:
			c.mu.Lock()
		case <-late:
			c.mu.Lock()
			if !c.stuck && c.lost == 0 {
				c.failed(ErrCaptureStuck)
			}
			c.stuck = true
		}
	}
}

// unclaim gives back what a frame has claimed that was not sent.
func (c *Capture) unclaim(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claimed -= n
	c.total -= int64(n)
}

// lose counts a frame that is left out.
func (c *Capture) lose() {
	if c.full.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost++
}

// place appends p, which has claimed its room.
func (c *Capture) place(p *packets, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.pending)
	c.claimed -= p.size()
	if p.one != nil {
		var h [recordLen]byte
		putRecord(h[:], at, len(p.one))
		c.pending = append(append(c.pending, h[:]...), p.one[:min(len(p.one), captureSnap)]...)
	} else {
		c.pending = append(c.pending, p.many...)
		for b := c.pending[n:]; len(b) > 0; b = b[recordLen+binary.NativeEndian.Uint32(b[8:]):] {
			putTime(b, at)
		}
	}
	c.wake()
}

// captured is a Link whose frames are captured.
type captured struct {
	Link
	c *Capture
}

// Read implements Link.
func (l *captured) Read(b []byte) (int, error) { return l.came(b, l.Link.Read) }

// TryRead implements Link.
func (l *captured) TryRead(b []byte) (int, error) { return l.came(b, l.Link.TryRead) }

func (l *captured) came(b []byte, read func([]byte) (int, error)) (int, error) {
	n, err := read(b)
	l.c.add(b[:n], func() error { return nil })
	return n, err
}

// Write implements Link. Frames that the link does not take are not recorded.
func (l *captured) Write(b []byte) error {
	return l.c.add(b, func() error { return l.Link.Write(b) })
}

// add calls send, which sends or has received the frame b, and records b unless that is an error,
// which it returns.
func (c *Capture) add(b []byte, send func() error) error {
	p := c.prepare(b)
	if p == nil {
		err := send()
		if err == nil && len(b) > 0 && c.broken.Load() {
			c.lose()
		}
		return err
	}
	defer p.release()
	n := p.size()
	claimed := c.claim(n)
	c.order.Lock()
	defer c.order.Unlock()
	err := send()
	switch {
	case claimed && err == nil:
		c.place(p, time.Now())
	case claimed:
		c.unclaim(n)
	case err == nil:
		c.lose()
	}
	return err
}
