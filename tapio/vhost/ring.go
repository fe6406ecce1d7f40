package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/tapio"
	"fusilli/tapio/frame"
)

const (
	maxRing = 1024 // descriptors of a ring, or of an indirect table

	descLen      = 16
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1 // flags of the available ring
	usedNoNotify     = 1 // flags of the used ring

	// headerBytes is the length of virtio_net_hdr_mrg_rxbuf: the header of package frame and the
	// number of buffers.
	headerBytes = frame.VnetLen + 2

	// maxPending is the number of transmitted chains after which the guest gets them back, at the
	// latest.
	maxPending = 32
)

// violation is a ring, or memory, that is not as it has to be.
type violation string

func (e violation) Error() string { return "vhost-user: guest: " + string(e) }

func violationf(format string, args ...any) error { return violation(fmt.Sprintf(format, args...)) }

var errFault = errors.New("vhost-user: the guest's memory is not there any more")

// piece is a contiguous part of a buffer.
type piece struct {
	b    []byte
	addr uint64 // the guest's, for the log
}

// chain is a chain of descriptors that was taken from a ring.
type chain struct {
	head    uint16
	pieces  int // the number of those in the list they were appended to
	written uint32
}

// addresses are those of a ring, the front end's.
type addresses struct {
	flags, desc, used, avail, log uint64
}

// queue is a ring. Messages of the front end change it, the reader or writers use it.
type queue struct {
	index int
	mem   *memory // nil: not usable, ever again

	mu   sync.Mutex
	idle sync.Cond // busy has become 0

	// By mu.
	num     uint32
	at      addresses
	desc    []byte // nil: no addresses
	avail   []byte
	used    []byte
	kick    int // descriptors; -1: none
	call    int
	err     int
	started bool
	enabled bool
	events  bool // VIRTIO_F_EVENT_IDX
	busy    int  // writers between take and give

	next      uint16 // index of the next available chain
	done      uint16 // index of the next used chain
	pending   int    // used chains that the guest does not know of yet
	signalled uint16 // done when the guest was last notified
	sure      bool   // signalled is right

	pieces []piece // of one take

	full atomic.Bool // no buffers: the guest was asked to ring
}

func newQueue(index int, mem *memory) *queue {
	q := &queue{index: index, mem: mem, kick: -1, call: -1, err: -1}
	q.idle.L = &q.mu
	return q
}

// usable reports whether the ring can be used. The caller holds mu.
func (q *queue) usable() bool {
	return q.mem != nil && q.started && q.enabled && q.desc != nil
}

// lock waits until nobody uses the guest's memory, and returns with mu held.
func (q *queue) lock() {
	q.mu.Lock()
	for q.busy > 0 {
		q.idle.Wait()
	}
}

// translate finds the parts of the ring in the guest's memory. The caller holds lock.
func (q *queue) translate() error {
	a := &q.at
	n := uint64(q.num)
	if n == 0 {
		return protocolErrorf("addresses of ring %d before its size", q.index)
	}
	desc, avail, used := q.mem.atUser(a.desc, n*descLen), q.mem.atUser(a.avail, 6+2*n), q.mem.atUser(a.used, 6+8*n)
	if desc == nil || avail == nil || used == nil || a.desc%16 != 0 || a.avail%2 != 0 || a.used%4 != 0 {
		q.desc, q.avail, q.used = nil, nil, nil
		return protocolErrorf("invalid vring_addr message for ring %d", q.index)
	}
	q.desc, q.avail, q.used = desc, avail, used
	return nil
}

// forget ends the use of the ring: GET_VRING_BASE. The caller holds lock.
func (q *queue) forget() {
	q.started = false
	q.desc, q.avail, q.used = nil, nil, nil
	q.at = addresses{}
	q.pending, q.sure = 0, false
	q.full.Store(false)
	closeFD(&q.kick)
	closeFD(&q.call)
}

// close ends all use of the queue.
func (q *queue) close() {
	q.lock()
	defer q.mu.Unlock()
	q.forget()
	closeFD(&q.err)
	q.mem = nil
}

func closeFD(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
		*fd = -1
	}
}

// load16 reads the 16-bit little-endian number at b, which others change, by an atomic load of the
// aligned word it is in. b is at an even address, so that this word holds all of it.
func load16(b []byte) uint16 {
	p := unsafe.Pointer(&b[0])
	off := uintptr(p) & 3
	w := atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(off))))
	if littleEndian {
		return uint16(w >> (8 * off))
	}
	v := uint16(w >> (8 * (2 - off)))
	return v>>8 | v<<8
}

// storeUsed writes the flags and the index of the used ring, in this order in one word.
func (q *queue) storeUsed(flags uint16) {
	var b [4]byte
	binary.LittleEndian.PutUint16(b[0:], flags)
	binary.LittleEndian.PutUint16(b[2:], q.done)
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&q.used[0])), binary.NativeEndian.Uint32(b[:]))
}

var fence atomic.Uint32

// barrier orders all accesses before it and all after it: an atomic exchange does, on each
// architecture.
func barrier() { fence.Swap(1) }

// availIndex is how many chains the guest has made available. What it has made available is not
// read before.
func (q *queue) availIndex() uint16 { return load16(q.avail[2:]) }

// waiting returns the number of chains that can be taken.
func (q *queue) waiting() (int, error) {
	n := q.availIndex() - q.next
	if uint32(n) > q.num {
		return 0, violationf("ring %d: %d of %d entries available", q.index, n, q.num)
	}
	return int(n), nil
}

// pop takes the next chain, of which there is one, and appends its pieces to q.pieces: those the
// device may write to with write, else those it may read.
func (q *queue) pop(write bool) (chain, error) {
	slot := q.next & uint16(q.num-1)
	c := chain{head: load16(q.avail[4+2*slot:])}
	if uint32(c.head) >= q.num {
		return c, violationf("ring %d: descriptor %d of %d", q.index, c.head, q.num)
	}
	before := len(q.pieces)
	table, size := q.desc, q.num
	i := uint32(c.head)
	indirect := false
	var copied [descLen]byte
	for steps := uint32(0); ; steps++ {
		if steps > size {
			return c, violationf("ring %d: loop of descriptors", q.index)
		}
		if !indirect || int(i)*descLen+descLen <= len(table) {
			copy(copied[:], table[int(i)*descLen:])
		} else {
			return c, violationf("ring %d: descriptor outside its table", q.index)
		}
		addr := binary.LittleEndian.Uint64(copied[0:])
		length := binary.LittleEndian.Uint32(copied[8:])
		flags := binary.LittleEndian.Uint16(copied[12:])
		next := uint32(binary.LittleEndian.Uint16(copied[14:]))
		if flags&descIndirect != 0 {
			if indirect || flags&(descNext|descWrite) != 0 || length == 0 || length%descLen != 0 || length > maxRing*descLen {
				return c, violationf("ring %d: bad indirect table", q.index)
			}
			// A table in two regions is copied, as would be one that is not.
			t := make([]byte, 0, length)
			for uint32(len(t)) < length {
				part := q.mem.at(addr+uint64(len(t)), uint64(length)-uint64(len(t)))
				if part == nil {
					return c, violationf("ring %d: indirect table outside the memory", q.index)
				}
				t = append(t, part...)
			}
			table, size, i, indirect, steps = t, length/descLen, 0, true, 0
			steps--
			continue
		}
		if w := flags&descWrite != 0; w == write {
			if err := q.add(addr, length); err != nil {
				return c, err
			}
		} else if write || len(q.pieces) == before {
			return c, violationf("ring %d: descriptor of the wrong direction", q.index)
		}
		if flags&descNext == 0 {
			break
		}
		if i = next; i >= size {
			return c, violationf("ring %d: descriptor %d of %d", q.index, i, size)
		}
	}
	c.pieces = len(q.pieces) - before
	q.next++
	return c, nil
}

// add appends the pieces of one descriptor.
func (q *queue) add(addr uint64, length uint32) error {
	if length == 0 {
		return violationf("ring %d: empty descriptor", q.index)
	}
	for n := uint64(length); n > 0; {
		b := q.mem.at(addr, n)
		if b == nil {
			return violationf("ring %d: descriptor outside the memory", q.index)
		}
		q.pieces = append(q.pieces, piece{b, addr})
		n -= uint64(len(b))
		addr += uint64(len(b))
	}
	return nil
}

// push gives the chain c back, without telling the guest yet.
func (q *queue) push(c chain) {
	slot := int(q.done & uint16(q.num-1))
	e := q.used[4+8*slot:]
	binary.LittleEndian.PutUint32(e[0:], uint32(c.head))
	binary.LittleEndian.PutUint32(e[4:], c.written)
	q.done++
	q.pending++
	if q.at.flags&1 != 0 {
		q.mem.dirty(q.at.log+4+8*uint64(slot), 8)
	}
}

// publish tells the guest of the chains that were given back, and returns whether it wants to be
// notified of them.
func (q *queue) publish() (notify bool) {
	if q.pending == 0 {
		return false
	}
	old := q.done - uint16(q.pending)
	q.pending = 0
	flags := uint16(0)
	if !q.events && !q.full.Load() {
		flags = usedNoNotify // until askForKick
	}
	q.storeUsed(flags)
	if q.at.flags&1 != 0 {
		q.mem.dirty(q.at.log+2, 2)
	}
	q.mem.tellLog()
	barrier()
	if q.call < 0 {
		return false
	}
	if !q.events {
		return load16(q.avail)&availNoInterrupt == 0
	}
	if q.sure {
		old = q.signalled
	}
	event := load16(q.avail[4+2*q.num:])
	if !q.sure || q.done-event-1 < q.done-old {
		q.signalled, q.sure = q.done, true
		return true
	}
	return false
}

// askForKick makes the guest ring when it adds a chain from here on, and returns whether one has
// come meanwhile.
func (q *queue) askForKick() bool {
	if q.events {
		e := q.used[4+8*q.num:]
		binary.LittleEndian.PutUint16(e, q.next)
	} else {
		q.storeUsed(0)
	}
	barrier()
	return q.availIndex() != q.next
}

// caught turns a fault of the guest's memory into an error. It is deferred by each function that
// looks at that memory.
func caught(err *error) {
	switch v := recover().(type) {
	case nil:
	case interface {
		runtime.Error
		Addr() uintptr
	}:
		*err = errFault
	default:
		panic(v)
	}
}

// read copies the next frame to b, which has room for frame.MaxFrame bytes, and returns its length
// with the virtio_net_hdr; 0: there is none, and the guest rings if sleep says so. notify is the
// descriptor to ring; -1: none.
func (q *queue) read(b []byte, sleep bool) (n int, notify int, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	q.mu.Lock()
	defer q.mu.Unlock()
	notify = -1
	if !q.usable() {
		return 0, -1, nil
	}
	for {
		waiting, err := q.waiting()
		if err != nil {
			return 0, -1, err
		}
		if waiting == 0 || q.pending >= maxPending {
			if q.publish() {
				notify = q.call
			}
			if waiting == 0 && (!sleep || !q.askForKick()) {
				return 0, notify, nil
			}
			if waiting == 0 {
				continue
			}
		}
		q.pieces = q.pieces[:0]
		c, err := q.pop(false)
		if err != nil {
			return 0, notify, err
		}
		n := gather(b, q.pieces)
		q.push(c)
		if n > 0 {
			return n, notify, nil
		}
	}
}

// gather copies a frame with its header to b, and returns its length; 0: it is none that can be
// carried.
func gather(b []byte, pieces []piece) int {
	var h [headerBytes]byte
	total, have := 0, 0
	for i := range pieces {
		total += len(pieces[i].b)
	}
	n := total - headerBytes + frame.VnetLen
	if n < frame.L3Off || n > frame.MaxFrame || n > len(b) {
		return 0
	}
	to := b[frame.VnetLen:n]
	for i := range pieces {
		p := pieces[i].b
		if have < headerBytes {
			k := copy(h[have:], p)
			have += k
			p = p[k:]
		}
		to = to[copy(to, p):]
	}
	frame.PutVnet(b, frame.Vnet{
		Flags: h[0], GSOType: h[1],
		HdrLen: binary.LittleEndian.Uint16(h[2:]), GSOSize: binary.LittleEndian.Uint16(h[4:]),
		CsumStart: binary.LittleEndian.Uint16(h[6:]), CsumOffset: binary.LittleEndian.Uint16(h[8:]),
	})
	return n
}

// writer is what sending one frame needs.
type writer struct {
	chains []chain
	pieces []piece
}

var writers = sync.Pool{New: func() any { return new(writer) }}

// write sends the frame b to the guest, as it is. With merge it may be in several chains. notify is
// the descriptor to ring; -1: none. The error is tapio.ErrDropped where there is no room, and else
// a violation.
func (q *queue) write(b []byte, merge bool) (notify int, err error) {
	w := writers.Get().(*writer)
	defer writers.Put(w)
	if err := q.take(w, max(len(b), frame.MinFrame)-frame.VnetLen+headerBytes, merge); err != nil {
		return -1, err
	}
	err = w.copy(b)
	notify, err2 := q.give(w, err != nil)
	if err == nil {
		err = err2
	}
	return notify, err
}

// take takes chains with room for n bytes.
func (q *queue) take(w *writer, n int, merge bool) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.usable() {
		return tapio.ErrDropped
	}
	w.chains = w.chains[:0]
	q.pieces = w.pieces[:0]
	first := q.next
	for room := 0; room < n; {
		waiting, err := q.waiting()
		if err == nil && waiting == 0 {
			q.next = first // nothing was taken
			if !q.askForKickFrom(first + uint16(len(w.chains))) {
				q.full.Store(true)
				return tapio.ErrDropped
			}
			q.next = first + uint16(len(w.chains))
			continue
		}
		if err != nil {
			return err
		}
		c, err := q.pop(true)
		if err != nil {
			return err
		}
		for _, p := range q.pieces[len(q.pieces)-c.pieces:] {
			room += len(p.b)
		}
		w.chains = append(w.chains, c)
		if room < n && !merge {
			q.next = first
			return tapio.ErrDropped // it fits no buffer of this guest's
		}
		if len(q.pieces) > 16*maxRing {
			return violationf("ring %d: a frame in more than %d pieces", q.index, len(q.pieces))
		}
	}
	w.pieces = q.pieces
	q.pieces = nil
	q.busy++
	return nil
}

// askForKickFrom is askForKick for chains from index n on.
func (q *queue) askForKickFrom(n uint16) bool {
	have := q.next
	q.next = n
	more := q.askForKick()
	q.next = have
	return more
}

// copy copies the frame b to what was taken.
func (w *writer) copy(b []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	v := frame.GetVnet(b)
	var h [headerBytes]byte
	h[0], h[1] = v.Flags, v.GSOType
	binary.LittleEndian.PutUint16(h[2:], v.HdrLen)
	binary.LittleEndian.PutUint16(h[4:], v.GSOSize)
	binary.LittleEndian.PutUint16(h[6:], v.CsumStart)
	binary.LittleEndian.PutUint16(h[8:], v.CsumOffset)
	binary.LittleEndian.PutUint16(h[10:], uint16(len(w.chains)))
	var padding [frame.MinFrame]byte
	parts := [3][]byte{h[:], b[frame.VnetLen:], padding[:max(0, frame.MinFrame-len(b))]}
	part, off := 0, 0
	i := 0
	for k := range w.chains {
		c := &w.chains[k]
		c.written = 0
		for ; c.pieces > 0; c.pieces-- {
			to := w.pieces[i].b
			for len(to) > 0 && part < len(parts) {
				n := copy(to, parts[part][off:])
				to = to[n:]
				c.written += uint32(n)
				if off += n; off == len(parts[part]) {
					part, off = part+1, 0
				}
			}
			w.pieces[i].b = w.pieces[i].b[:len(w.pieces[i].b)-len(to)] // what was written
			i++
		}
	}
	return nil
}

// give gives the chains of w back. With failed they hold nothing.
func (q *queue) give(w *writer, failed bool) (notify int, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() {
		clear(w.pieces)
		if q.busy--; q.busy == 0 {
			q.idle.Broadcast()
		}
	}()
	if failed || !q.usable() {
		return -1, nil
	}
	for _, p := range w.pieces {
		q.mem.dirty(p.addr, uint64(len(p.b)))
	}
	for _, c := range w.chains {
		q.push(c)
	}
	if q.publish() {
		return q.call, nil
	}
	return -1, nil
}

// hasRoom reports whether a ring that was full has buffers again, and is not full any more then.
func (q *queue) hasRoom() (room bool, err error) {
	if !q.full.Load() {
		return false, nil
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer caught(&err)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.usable() && q.availIndex() == q.next {
		return false, nil
	}
	q.full.Store(false)
	return true, nil
}
