package flow

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"fusilli/tapio/frame"
)

// put keeps a frame with that data in s and reports whether there was room.
func put(s *Slab, data []byte) bool {
	room := s.Room()
	if room == nil {
		return false
	}
	n := copy(room[frame.L3Off:], data) + frame.L3Off
	s.Append(n, &frame.Packet{L3: frame.L3Off, L4: frame.L3Off, Payload: frame.L3Off, End: n})
	return true
}

// runOf returns a run of one frame with data, in a slab of its own.
func runOf(t testing.TB, p *Pool, data []byte) Run {
	t.Helper()
	s := p.Get()
	if s == nil {
		t.Fatal("no slab is free")
	}
	put(s, data)
	r := s.Run(0)
	s.Release()
	return r
}

func TestSlabKeepsFrames(t *testing.T) {
	for _, sizes := range [][]int{
		{0}, {1}, {7}, {8}, {60}, {1500}, {65535},
		{1, 2, 3, 4, 5, 6, 7, 8, 9},
		{1500, 0, 65535},
	} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			p := NewPool(1)
			s := p.Get()
			for i, n := range sizes {
				if !put(s, bytes.Repeat([]byte{byte(i + 1)}, n)) {
					t.Fatalf("no room for frame %d of %d bytes", i, n)
				}
			}
			r := s.Run(0)
			var v View
			for i, n := range sizes {
				if !r.Next(&v) {
					t.Fatalf("%d frames, want %d", i, len(sizes))
				}
				if len(v.Frame) != frame.L3Off+n || !bytes.Equal(v.Data(), bytes.Repeat([]byte{byte(i + 1)}, n)) {
					t.Errorf("frame %d of %d bytes came back as %d bytes", i, n, len(v.Data()))
				}
			}
			if r.Next(&v) {
				t.Error("more frames than were put in")
			}
			r.Release()
			s.Release()
			if p.Out() != 0 {
				t.Errorf("%d slabs out", p.Out())
			}
		})
	}
}

// TestSlabOffsets: what was parsed comes back with the frame.
func TestSlabOffsets(t *testing.T) {
	p := NewPool(1)
	s := p.Get()
	defer s.Release()
	b := s.Room()
	want := View{Frame: b[:65559], L3: 24, L4: 576, Payload: 636, End: 65559}
	s.Append(65559, &frame.Packet{L3: want.L3, L4: want.L4, Payload: want.Payload, End: want.End})
	r := s.Run(0)
	defer r.Release()
	var v View
	if !r.Next(&v) || v.L3 != want.L3 || v.L4 != want.L4 || v.Payload != want.Payload || v.End != want.End ||
		len(v.Frame) != len(want.Frame) || &v.Frame[0] != &b[0] {
		t.Errorf("got %d bytes, %d %d %d %d", len(v.Frame), v.L3, v.L4, v.Payload, v.End)
	}
}

func TestSlabRoomTakesTheLongestFrame(t *testing.T) {
	p := NewPool(1)
	s := p.Get()
	defer s.Release()
	n := 0
	for {
		room := s.Room()
		if room == nil {
			break
		}
		if len(room) < frame.MaxFrame {
			t.Fatalf("room of %d bytes after %d frames", len(room), n)
		}
		put(s, make([]byte, 46))
		n++
	}
	if n < 500 {
		t.Errorf("a slab is full after %d short frames", n)
	}
}

func TestPoolBound(t *testing.T) {
	p := NewPool(4)
	var slabs []*Slab
	for i := range 4 {
		if scarce := p.Scarce(); scarce != (i > 2) {
			t.Errorf("with %d of 4 out Scarce is %v", i, scarce)
		}
		slabs = append(slabs, p.Get())
	}
	if p.Get() != nil || p.Out() != 4 {
		t.Fatalf("a fifth slab of 4; %d out", p.Out())
	}
	slabs[0].Release()
	s := p.Get()
	if s == nil || s.Used() != 0 || !s.Idle() {
		t.Fatal("no empty slab after one came back")
	}
	s.Release()
	for _, s := range slabs[1:] {
		s.Release()
	}
	if p.Out() != 0 {
		t.Errorf("%d slabs out", p.Out())
	}
}

// TestRunHolds: a slab comes home with the last of the runs that point into it, and not before.
func TestRunHolds(t *testing.T) {
	p := NewPool(2)
	s := p.Get()
	put(s, []byte("one"))
	a := s.Run(0)
	at := s.Used()
	put(s, []byte("two"))
	b := s.Run(at)
	hold := b.Hold()
	if s.Idle() {
		t.Error("idle with three holds")
	}
	s.Release()
	a.Release()
	a.Release() // a run that is released twice gives back one hold
	var v View
	if !b.Next(&v) || string(v.Data()) != "two" || b.Next(&v) {
		t.Errorf("second run holds %q", v.Data())
	}
	b.Release()
	if p.Out() != 1 {
		t.Fatalf("%d slabs out while one is held", p.Out())
	}
	if string(v.Data()) != "two" {
		t.Errorf("%q is what is held", v.Data())
	}
	if hold.Next(&v) {
		t.Error("a hold has frames")
	}
	hold.Release()
	if p.Out() != 0 {
		t.Errorf("%d slabs out", p.Out())
	}
}

// TestSlabsComeHome passes runs between goroutines which release them in any order.
func TestSlabsComeHome(t *testing.T) {
	const readers = 3
	p := NewPool(16)
	var ways [readers]chan Run
	var wg sync.WaitGroup
	for i := range ways {
		ways[i] = make(chan Run, 8)
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			var kept []Run
			for r := range ways[i] {
				var v View
				for r.Next(&v) {
					if len(v.Data()) == 0 || v.Data()[0] != byte(i) {
						t.Errorf("reader %d got a frame of another one", i)
					}
				}
				if rnd.IntN(3) == 0 {
					kept = append(kept, r.Hold())
				}
				r.Release()
				if len(kept) > 4 {
					kept[0].Release()
					kept = kept[1:]
				}
			}
			for i := range kept {
				kept[i].Release()
			}
		})
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	lost := 0
	for range 2000 {
		s := p.Get()
		if s == nil {
			lost++
			continue
		}
		for range 1 + rnd.IntN(4) {
			to, at := rnd.IntN(readers), s.Used()
			for range 1 + rnd.IntN(3) {
				put(s, bytes.Repeat([]byte{byte(to)}, 1+rnd.IntN(100)))
			}
			ways[to] <- s.Run(at)
		}
		s.Release()
	}
	for i := range ways {
		close(ways[i])
	}
	wg.Wait()
	if p.Out() != 0 {
		t.Errorf("%d slabs did not come home; %d times none was free", p.Out(), lost)
	}
}

func TestRunAllocatesNothing(t *testing.T) {
	p := NewPool(2)
	s := p.Get()
	defer s.Release()
	data := make([]byte, 1400)
	if n := testing.AllocsPerRun(100, func() {
		s.Reset()
		put(s, data)
		put(s, data)
		r := s.Run(0)
		var v View
		for r.Next(&v) {
		}
		h := r.Hold()
		r.Release()
		h.Release()
	}); n != 0 {
		t.Errorf("%v allocations a run", n)
	}
}
