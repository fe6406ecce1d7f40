package flow

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"fusilli/tapio/frame"
)

const (
	// SlabSize leaves room behind one frame of maximum size for a run of small ones.
	SlabSize = 128 << 10
	// recordLen is the length of what precedes every frame in a slab: its length, where its
	// layer 4 header and its payload begin, and where its payload ends.
	recordLen = 16
	// slabNeed is the room a slab must have left for one more frame.
	slabNeed = recordLen + frame.MaxFrame
)

// Slab is a buffer that the tap reader fills with frames and actors read from. It is shared by the
// runs that point into it.
type Slab struct {
	refs atomic.Int32
	pool *Pool
	used int // by the reader
	b    [SlabSize]byte
}

// Pool hands out slabs, at most a fixed number at a time.
type Pool struct {
	max  int32
	out  atomic.Int32
	free sync.Pool
}

// NewPool returns a pool of at most max slabs of 128 KiB.
func NewPool(max int) *Pool {
	return &Pool{max: int32(max)}
}

// Get returns an empty slab held by the caller, or nil when all are out.
func (p *Pool) Get() *Slab {
	if p.out.Add(1) > p.max {
		p.out.Add(-1)
		return nil
	}
	s, _ := p.free.Get().(*Slab)
	if s == nil {
		s = &Slab{pool: p}
	}
	s.used = 0
	s.refs.Store(1)
	return s
}

// Scarce reports whether most slabs are out, so that nobody should keep one for long.
func (p *Pool) Scarce() bool { return p.out.Load() > p.max/2 }

// Out returns the number of slabs in use.
func (p *Pool) Out() int { return int(p.out.Load()) }

// Release gives up one hold on s.
func (s *Slab) Release() {
	if s.refs.Add(-1) == 0 {
		s.pool.out.Add(-1)
		s.pool.free.Put(s)
	}
}

// Room returns where the next frame may be read to, or nil when s is full. It is valid until the
// next call of Append.
func (s *Slab) Room() []byte {
	if len(s.b)-s.used < slabNeed {
		return nil
	}
	return s.b[s.used+recordLen : s.used+recordLen+frame.MaxFrame]
}

// Append keeps the frame of n bytes that was read to Room, parsed as pkt.
func (s *Slab) Append(n int, pkt *frame.Packet) {
	r := s.b[s.used : s.used+recordLen]
	binary.NativeEndian.PutUint32(r[0:], uint32(n))
	binary.NativeEndian.PutUint32(r[4:], uint32(pkt.End))
	binary.NativeEndian.PutUint16(r[8:], uint16(pkt.L3))
	binary.NativeEndian.PutUint16(r[10:], uint16(pkt.L4))
	binary.NativeEndian.PutUint16(r[12:], uint16(pkt.Payload))
	s.used += (recordLen + n + 7) &^ 7
}

// Idle reports whether the caller is the only one who holds s.
func (s *Slab) Idle() bool { return s.refs.Load() == 1 }

// Reset empties s, which must be idle.
func (s *Slab) Reset() { s.used = 0 }

// Used returns how far s is filled: the place where the next run begins.
func (s *Slab) Used() int { return s.used }

// Run returns the run of all frames kept since start (an earlier Used). It has a hold of its own
// on s, which whoever gets the run gives back with Run.Release.
func (s *Slab) Run(start int) Run {
	s.refs.Add(1)
	return Run{slab: s, off: uint32(start), end: uint32(s.used)}
}

// Run is a row of frames of one flow, in the order in which they were read. It is a value with one
// holder, who releases it once.
type Run struct {
	slab     *Slab
	off, end uint32
}

// View is one frame of a run. Its slices are valid until the run is released.
type View struct {
	Frame                []byte // from the virtio_net_hdr on
	L3, L4, Payload, End int    // offsets into Frame
}

// Data returns the layer 4 payload.
func (v *View) Data() []byte { return v.Frame[v.Payload:v.End] }

// Next moves to the next frame, if there is one.
func (r *Run) Next(v *View) bool {
	if r.off >= r.end {
		return false
	}
	h := r.slab.b[r.off : r.off+recordLen]
	n := binary.NativeEndian.Uint32(h[0:])
	v.End = int(binary.NativeEndian.Uint32(h[4:]))
	v.L3 = int(binary.NativeEndian.Uint16(h[8:]))
	v.L4 = int(binary.NativeEndian.Uint16(h[10:]))
	v.Payload = int(binary.NativeEndian.Uint16(h[12:]))
	v.Frame = r.slab.b[r.off+recordLen : r.off+recordLen+n]
	r.off += (recordLen + n + 7) &^ 7
	return true
}

// Len returns the bytes the run takes up in its slab: its frames and a little more.
func (r *Run) Len() int { return int(r.end - r.off) }

// Release gives the run's hold on its slab back.
func (r *Run) Release() {
	if r.slab != nil {
		r.slab.Release()
		r.slab = nil
	}
}

// Hold returns a run without frames that has a hold of its own on r's slab, for a part of r that is
// to outlive it.
func (r *Run) Hold() Run {
	r.slab.refs.Add(1)
	return Run{slab: r.slab}
}

// Rest returns the frames of r that Next has not come to yet, with a hold of their own.
func (r *Run) Rest() Run {
	r.slab.refs.Add(1)
	return *r
}

// Until returns the frames of r before those of rest, which is what is left of it, with a hold of
// their own.
func (r *Run) Until(rest *Run) Run {
	r.slab.refs.Add(1)
	return Run{slab: r.slab, off: r.off, end: rest.off}
}

// Lendable reports whether slabs are plenty, so that r may be kept for a while.
func (r *Run) Lendable() bool { return !r.slab.pool.Scarce() }
