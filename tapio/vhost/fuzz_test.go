package vhost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/internal/leaktest"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

const fuzzMemory = 16 << 10 // bytes of the guest's memory in each of two regions that touch

// FuzzRing has a guest write anything to its memory, between any two uses of its rings. Whatever is
// there, nothing panics, a frame that is read lies in the memory, and a frame that is sent changes
// nothing else there than what was lent for it.
//
// Input is a size of the rings, flags, and operations: four bytes each, for what is done, a place,
// and a value.
func FuzzRing(f *testing.F) {
	// A chain of one descriptor at 8192 of 200 bytes, which is made available.
	one := func(flags byte) []byte {
		return bytes.Join([][]byte{
			{opStore64, 0, 0, 32}, // address: 32*256
			{opStore, 0, 8, 200}, {opStore, 0, 12, flags},
			{opAvail, 0, 0, 1},
		}, nil)
	}
	for _, in := range [][]byte{
		{3, 0},
		append(append([]byte{3, 0}, one(0)...), opRead, 0, 0, 0, opRead, 0, 0, 1),
		append(append([]byte{3, 1}, one(descWrite)...), opWrite, 0, 60, 0, opWrite, 1, 200, 1),
		append(append([]byte{3, 2}, one(descWrite)...), opWrite, 2, 60, 0, opRoom, 0, 0, 0, opWrite, 16, 0, 1),
		append(append([]byte{3, 3}, one(descNext)...), opRead, 0, 0, 0),
		append(append([]byte{0, 0}, one(descIndirect)...), opRead, 0, 0, 0),
		{10, 0, opAvail, 0, 0, 255, opRead, 0, 0, 0},
		append(append([]byte{1, 4}, one(descWrite|descNext)...), opStore, 0, 14, 1, opStore64, 0, 16, 48, opStore, 0, 24, 255, opStore, 0, 28, 2, opWrite, 0, 240, 0),
	} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 2 {
			return
		}
		r := newFuzzRing(1<<(in[0]%11), in[1])
		for in = in[2:]; len(in) >= 4; in = in[4:] {
			r.do(t, in[0]%numOps, binary.BigEndian.Uint16(in[1:]), in[3])
		}
	})
}

const (
	opStore   = iota // the guest writes a byte
	opStore64        // it writes an address
	opAvail          // it makes a number of chains available
	opRead           // a frame is read
	opWrite          // a frame is sent
	opRoom           // is there room again
	numOps
)

// fuzzRing is a ring in memory that is no guest's.
type fuzzRing struct {
	q     *queue
	all   []byte
	merge bool
	buf   []byte
	saved []byte
}

func newFuzzRing(num uint32, choice byte) *fuzzRing {
	words := make([]uint64, 2*fuzzMemory/8)
	all := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 2*fuzzMemory)
	m := &memory{logFD: -1, regions: []region{
		{guest: 0, user: 0, mem: all[:fuzzMemory:fuzzMemory]},
		{guest: fuzzMemory, user: fuzzMemory, mem: all[fuzzMemory:]},
	}}
	if choice&8 != 0 {
		m.logging, m.log = true, make([]byte, 4)
	}
	q := newQueue(0, m)
	q.num = min(num, 256) // what fits
	n := uint64(q.num)
	q.at = addresses{desc: 0, avail: n * descLen, used: (n*descLen + 6 + 2*n + 3) &^ 3, flags: uint64(choice >> 3 & 1)}
	if err := q.translate(); err != nil {
		panic(err)
	}
	q.started, q.enabled, q.events = true, true, choice&1 != 0
	return &fuzzRing{q: q, all: all, merge: choice&2 != 0, buf: make([]byte, frame.MaxFrame)}
}

func (r *fuzzRing) do(t *testing.T, op byte, at uint16, v byte) {
	q := r.q
	switch op {
	case opStore:
		r.all[int(at)%len(r.all)] = v
	case opStore64:
		binary.LittleEndian.PutUint64(r.all[int(at)%(len(r.all)-8):], uint64(v)<<8)
	case opAvail:
		idx := load16(q.avail[2:]) + uint16(v)
		binary.LittleEndian.PutUint16(q.avail[2:], idx)
	case opRead:
		n, _, err := q.read(r.buf, v&1 != 0)
		known(t, err)
		if n != 0 && (n < frame.L3Off || n > len(r.buf)) {
			t.Errorf("frame of %d bytes", n)
		}
	case opWrite:
		f := r.buf[:frame.L3Off+int(at)%(len(r.buf)-frame.L3Off)]
		for i := range f {
			f[i] = 0xa5
		}
		r.saved = append(r.saved[:0], r.all...)
		w := new(writer)
		err := q.take(w, max(len(f), frame.MinFrame)-frame.VnetLen+headerBytes, r.merge || v&1 != 0)
		known(t, err)
		if err != nil {
			return
		}
		lent := make([]bool, len(r.all))
		for _, p := range w.pieces {
			i := int(uintptr(unsafe.Pointer(&p.b[0])) - uintptr(unsafe.Pointer(&r.all[0])))
			for k := range p.b {
				lent[i+k] = true
			}
		}
		known(t, w.copy(f))
		for i, b := range r.all {
			if b != r.saved[i] && !lent[i] {
				t.Fatalf("byte %d was not lent", i)
			}
		}
		if _, err := q.give(w, false); err != nil {
			known(t, err)
		}
		if q.busy != 0 {
			t.Fatal("the ring stays busy")
		}
	case opRoom:
		_, err := q.hasRoom()
		known(t, err)
	}
}

// known fails for an error that is none a ring may have.
func known(t *testing.T, err error) {
	t.Helper()
	var v violation
	if err != nil && !errors.As(err, &v) && !errors.Is(err, tapio.ErrDropped) {
		t.Fatalf("%T %v", err, err)
	}
}

// FuzzMessages has a front end send anything, with descriptors that fit and others. Whatever comes,
// the device can be closed, and nothing is left of what came.
//
// Input is messages: a request, flags, a number of descriptors and how many words the payload has,
// and a byte for each word, which stands for one of the values that matter or for itself; the top
// bit makes it an address.
func FuzzMessages(f *testing.F) {
	region := []byte{0x80, 0, 4, 0, 0xc0, 0, 0, 0}
	f.Add([]byte{getFeatures, 0, 0, 0, setFeatures, 0, 0, 2, 0, 0})
	f.Add([]byte{setVringNum, 0, 0, 2, 0, 16, setVringBase, 0, 0, 2, 0, 0, setVringKick, 0, 1, 2, 0, 0})
	f.Add(append([]byte{addMemReg, 8, 1, 10, 0, 0}, region...))
	f.Add(append([]byte{setMemTable, 0, 1, 10, 1, 0}, region...))
	f.Add([]byte{setLogBase, 0, 1, 4, 4, 0, 0, 0, setLogFD, 0, 1, 0, getVringBase, 0, 0, 2, 0, 0})
	f.Add([]byte{99, 0, 0, 0})
	memfd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.Close(memfd) })
	if err := unix.Ftruncate(memfd, 1<<20); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		leaktest.NothingLeft(t, patience)
		before := openFDs(t)
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		d, err := New(fds[0], Options{})
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, frame.MaxFrame)
		d.TryRead(buf)
		for n := 0; len(in) >= 4 && n < 64; n++ {
			request, flags, count, size := in[0], in[1], int(in[2]%4), int(in[3]%72)
			in = in[4:]
			size = min(size, len(in))
			b := binary.NativeEndian.AppendUint32(nil, uint32(request))
			b = binary.NativeEndian.AppendUint32(b, uint32(flags)^flagVersion)
			b = binary.NativeEndian.AppendUint32(b, uint32(4*size))
			for _, v := range in[:size] {
				w := uint32(v)
				if v&0x80 != 0 {
					w = uint32(v&0x7f) << 12
				}
				b = binary.NativeEndian.AppendUint32(b, w)
			}
			in = in[size:]
			var oob []byte
			if count > 0 {
				oob = unix.UnixRights([]int{memfd, memfd, memfd}[:count]...)
			}
			if unix.Sendmsg(fds[1], b, oob, nil, unix.MSG_NOSIGNAL) != nil {
				break // it has hung up
			}
			d.Write(make([]byte, frame.MinFrame))
			d.TryRead(buf)
		}
		unix.Close(fds[1])
		d.Close()
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors are open, %d were", after, before)
		}
	})
}
