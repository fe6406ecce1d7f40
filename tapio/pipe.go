package tapio

import (
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"fusilli/tapio/frame"
)

const (
	// reorderDelay is how long a frame that is to be overtaken waits for one that overtakes it.
	reorderDelay = 2 * time.Millisecond
	// longestDelay is how late a frame that is delayed is at most, whatever overtakes it.
	longestDelay = 20 * time.Millisecond
)

// PipeOptions say how the two ends of a pipe behave. The zero value is a perfect link that carries
// every frame as it is.
type PipeOptions struct {
	// Queue is the number of frames each direction holds before Write drops them; 0 is 1024.
	Queue int
	// WithoutToA and WithoutToB are the features that frames read from the first and the second end
	// do without: that is done in software on the way, as for a guest without offloads.
	WithoutToA, WithoutToB Features
	// FaultsToA and FaultsToB spoil the frames on their way to that end.
	FaultsToA, FaultsToB Faults
}

// Faults are probabilities, from 0 to 1 each, for what happens to a frame on its way. With the same
// seed and the same frames the same happens.
type Faults struct {
	Lose, Duplicate, Reorder, Delay float64
	Seed                            uint64
}

// End is one end of a pipe, a Link.
type End struct {
	in, out *direction
	done    chan struct{} // closed by Close
	once    sync.Once
	peer    *End
	buffers *sync.Pool
}

// direction is one way through a pipe.
type direction struct {
	frames  chan *buffer
	have    Features
	dropped atomic.Uint64

	mu     sync.Mutex // for what follows: only with faults is there anything to guard
	faults Faults
	rnd    *rand.Rand
	held   *buffer
	timer  *time.Timer
}

type buffer struct {
	n int
	b [frame.MaxFrame]byte
}

// Pipe returns the two ends of a link in memory: what is written to one is read from the other. It
// is the twin of Tap for tests, with its contract: when one end is closed the other one reads what
// is still queued, and then gets ErrGone.
func Pipe(o PipeOptions) (a, b *End) {
	if o.Queue <= 0 {
		o.Queue = 1024
	}
	toA := newDirection(o.Queue, o.WithoutToA, o.FaultsToA)
	toB := newDirection(o.Queue, o.WithoutToB, o.FaultsToB)
	pool := &sync.Pool{New: func() any { return new(buffer) }}
	a = &End{in: toA, out: toB, done: make(chan struct{}), buffers: pool}
	b = &End{in: toB, out: toA, done: make(chan struct{}), buffers: pool}
	a.peer, b.peer = b, a
	return a, b
}

func newDirection(queue int, without Features, f Faults) *direction {
	d := &direction{frames: make(chan *buffer, queue), have: allFeatures &^ without, faults: f}
	if f.Lose > 0 || f.Duplicate > 0 || f.Reorder > 0 || f.Delay > 0 {
		d.rnd = rand.New(rand.NewPCG(f.Seed, 0))
	}
	return d
}

// Read implements Link.
func (e *End) Read(b []byte) (int, error) {
	select {
	case <-e.done:
		return 0, os.ErrClosed
	default:
	}
	select {
	case f := <-e.in.frames:
		return e.take(f, b)
	default:
	}
	select {
	case f := <-e.in.frames:
		return e.take(f, b)
	case <-e.done:
		return 0, os.ErrClosed
	case <-e.peer.done:
		// Its last frame may have come with the close.
		select {
		case f := <-e.in.frames:
			return e.take(f, b)
		default:
			return 0, ErrGone
		}
	}
}

// TryRead implements Link.
func (e *End) TryRead(b []byte) (int, error) {
	select {
	case <-e.done:
		return 0, os.ErrClosed
	default:
	}
	select {
	case f := <-e.in.frames:
		return e.take(f, b)
	default:
	}
	select {
	case <-e.peer.done:
		return 0, ErrGone
	default:
		return 0, nil
	}
}

func (e *End) take(f *buffer, b []byte) (int, error) {
	n := copy(b, f.b[:f.n])
	short := n < f.n
	e.buffers.Put(f)
	if short {
		return n, io.ErrShortBuffer
	}
	return n, nil
}

// Write implements Link.
func (e *End) Write(b []byte) error {
	if len(b) < frame.L3Off || len(b) > frame.MaxFrame {
		return ErrRefused
	}
	select {
	case <-e.done:
		return os.ErrClosed
	case <-e.peer.done:
		return ErrGone
	default:
	}
	if NeedsSoft(b, e.out.have) {
		return WriteSoft(b, e.out.have, e.send)
	}
	return e.send(b)
}

// send queues a copy of b, or does to it what faults ask for.
func (e *End) send(b []byte) error {
	d := e.out
	f := e.buffers.Get().(*buffer)
	f.n = copy(f.b[:], b)
	if d.rnd == nil {
		return e.queue(f)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	lose, dup, late := d.rnd.Float64(), d.rnd.Float64(), d.rnd.Float64()
	if lose < d.faults.Lose {
		e.buffers.Put(f)
		return nil // the sender does not know
	}
	if dup < d.faults.Duplicate {
		g := e.buffers.Get().(*buffer)
		g.n = copy(g.b[:], b)
		e.queue(g)
	}
	if d.faults.Delay > 0 && d.rnd.Float64() < d.faults.Delay {
		time.AfterFunc(time.Duration(d.rnd.Float64()*float64(longestDelay)), func() { e.queue(f) })
		return nil
	}
	if late < d.faults.Reorder && d.held == nil {
		d.held = f
		d.timer = time.AfterFunc(reorderDelay, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.held == f {
				d.held = nil
				e.queue(f)
			}
		})
		return nil
	}
	err := e.queue(f)
	if g := d.held; g != nil {
		d.held = nil
		d.timer.Stop()
		e.queue(g)
	}
	return err
}

// queue hands f over to the reader or drops it.
func (e *End) queue(f *buffer) error {
	select {
	case e.out.frames <- f:
		return nil
	default:
		e.out.dropped.Add(1)
		e.buffers.Put(f)
		return ErrDropped
	}
}

// Dropped returns the number of frames written to e that found the queue full.
func (e *End) Dropped() uint64 { return e.out.dropped.Load() }

// Close implements Link.
func (e *End) Close() error {
	err := os.ErrClosed
	e.once.Do(func() {
		close(e.done)
		e.out.mu.Lock()
		if e.out.timer != nil {
			e.out.timer.Stop()
		}
		e.out.mu.Unlock()
		err = nil
	})
	return err
}
