package tapio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
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

	recordLen = 16
)

// ErrCaptureStuck tells that frames were left out of a capture since its file was too slow.
var ErrCaptureStuck = errors.New("file is too slow, frames are left out")

// Capture writes what a guest's link carries, both ways and as the guest sees it, to a file in
// pcap format (draft-ietf-opsawg-pcap): rows of segments are taken apart and checksums completed,
// in a copy. The file's writer is a goroutine with a bounded buffer: a slow file holds the link up
// for a moment and is then left behind, a file that fails ends the capture.
type Capture struct {
	file   io.Writer
	failed func(error)

	// order is held while a frame is sent and recorded, so that answers come after questions.
	order sync.Mutex
	soft  softState
	stuck bool // no use waiting

	mu      sync.Mutex
	pending []byte
	lost    uint64
	broken  bool // the file has failed
	closed  bool

	work chan struct{} // there is something pending, or the end
	room chan struct{} // pending was taken
	done chan struct{} // the writer has ended
}

// NewCapture begins a capture in file, which stays the caller's. failed is told why frames are
// missing, once for each reason, by any goroutine; it must not wait.
func NewCapture(file io.Writer, failed func(error)) *Capture {
	c := &Capture{
		file: file, failed: failed,
		work: make(chan struct{}, 1), room: make(chan struct{}, 1), done: make(chan struct{}),
	}
	h := make([]byte, 24)
	binary.NativeEndian.PutUint32(h, 0xa1b2c3d4) // microseconds
	binary.NativeEndian.PutUint16(h[4:], 2)
	binary.NativeEndian.PutUint16(h[6:], 4)
	binary.NativeEndian.PutUint32(h[16:], captureSnap)
	binary.NativeEndian.PutUint32(h[20:], 1) // Ethernet
	c.pending = h
	go c.write()
	c.ring(c.work)
	return c
}

// Link returns l with everything that goes through it captured. It is closed like l.
func (c *Capture) Link(l Link) Link { return &captured{l, c} }

// Close writes what is pending and returns the number of frames left out. No frame may come any
// more.
func (c *Capture) Close() (lost uint64) {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.ring(c.work)
	<-c.done
	return c.lost
}

func (c *Capture) ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
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
			broken, closed := c.broken, c.closed
			c.mu.Unlock()
			c.ring(c.room)
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			if broken {
				continue
			}
			if _, err := c.file.Write(batch); err != nil {
				c.mu.Lock()
				c.broken = true
				c.mu.Unlock()
				c.failed(fmt.Errorf("write: %w", err))
			}
		}
	}
}

// add records the frame b, which begins with a virtio_net_hdr. The caller holds order.
func (c *Capture) add(b []byte) {
	now := time.Now()
	v := frame.GetVnet(b)
	if v.Flags&frame.NeedsCsum == 0 && v.GSOType == frame.GSONone || c.soft.s.reset(b, false) != nil {
		c.record(now, b[frame.VnetLen:])
		return
	}
	for {
		n := c.soft.s.next(c.soft.out[:])
		if n == 0 {
			break
		}
		c.record(now, c.soft.out[frame.VnetLen:n])
	}
	c.soft.s.in = nil
}

// record appends one packet, or counts it.
func (c *Capture) record(at time.Time, packet []byte) {
	if c.try(at, packet) {
		return
	}
	if !c.stuck {
		late := time.NewTimer(captureWait)
		defer late.Stop()
		for {
			select {
			case <-c.room:
				if c.try(at, packet) {
					return
				}
				continue
			case <-late.C:
			}
			break
		}
		c.stuck = true
		c.mu.Lock()
		first := c.lost == 0
		c.mu.Unlock()
		if first {
			c.failed(ErrCaptureStuck)
		}
	}
	c.mu.Lock()
	c.lost++
	c.mu.Unlock()
}

// try appends one packet, and reports whether there was room.
func (c *Capture) try(at time.Time, packet []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := packet[:min(len(packet), captureSnap)]
	switch {
	case c.broken:
		c.lost++
		return true
	case len(c.pending)+recordLen+len(kept) > captureSize:
		return false
	}
	c.stuck = false
	b := c.pending
	b = binary.NativeEndian.AppendUint32(b, uint32(at.Unix()))
	b = binary.NativeEndian.AppendUint32(b, uint32(at.Nanosecond()/1000))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(kept)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(packet)))
	c.pending = append(b, kept...)
	c.ring(c.work)
	return true
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
	if n >= frame.VnetLen {
		l.c.order.Lock()
		l.c.add(b[:n])
		l.c.order.Unlock()
	}
	return n, err
}

// Write implements Link. Frames that the link does not take are not recorded.
func (l *captured) Write(b []byte) error {
	l.c.order.Lock()
	defer l.c.order.Unlock()
	err := l.Link.Write(b)
	if err == nil && len(b) >= frame.VnetLen {
		l.c.add(b)
	}
	return err
}
