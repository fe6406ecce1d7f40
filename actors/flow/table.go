package flow

import (
	"errors"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"

	"fusilli/tapio/frame"
)

// MaxFlows is the default bound on flows of all kinds together.
const MaxFlows = 131072

// Errors of Insert: the table holds as many flows as it may, or one with that key already.
var (
	ErrFull   = errors.New("flow table is full")
	ErrExists = errors.New("flow exists")
)

// Key names a flow by what the guest's link shows of it: protocol, the guest's address and port
// and the remote ones as the guest sees them. Echo flows have the identifier as GuestPort and 0 as
// RemotePort. It has no padding, so that it hashes as plain memory.
type Key struct {
	Guest, Remote         frame.Addr
	GuestPort, RemotePort uint16
	Proto                 uint16
}

// V6 reports whether the flow is one of IPv6.
func (k *Key) V6() bool { return !netip.AddrFrom16(k.Guest).Is4In6() }

// Table finds the port of a flow by its key.
//
// Lookups take no lock and may run while flows come and go; Insert and Remove serialise among
// themselves. A port that was removed may still be found by a lookup under way: what is offered to
// it then is lost, as it would have been a moment later.
type Table struct {
	seed    maphash.Seed
	buckets []atomic.Pointer[Port]
	limit   *Limit

	mu sync.Mutex
	n  int
}

// NewTable returns a table whose flows count against limit, which others may share.
func NewTable(limit *Limit) *Table {
	size := 1 << bits.Len(uint(limit.max-1))
	return &Table{seed: maphash.MakeSeed(), buckets: make([]atomic.Pointer[Port], size), limit: limit}
}

func (t *Table) bucket(k *Key) *atomic.Pointer[Port] {
	return &t.buckets[maphash.Comparable(t.seed, *k)&uint64(len(t.buckets)-1)]
}

// Lookup returns the port of the flow k, or nil.
func (t *Table) Lookup(k *Key) *Port {
	for p := t.bucket(k).Load(); p != nil; p = p.next.Load() {
		if p.key == *k {
			return p
		}
	}
	return nil
}

// Insert adds p under its key. It returns ErrExists when the key is in the table, and ErrFull when
// the limit is reached.
func (t *Table) Insert(p *Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.bucket(&p.key)
	for q := b.Load(); q != nil; q = q.next.Load() {
		if q.key == p.key {
			return ErrExists
		}
	}
	if !t.limit.Take(1) {
		return ErrFull
	}
	t.n++
	p.next.Store(b.Load())
	b.Store(p)
	return nil
}

// Remove takes p out of the table. A port that is not in it is left alone.
func (t *Table) Remove(p *Port) {
	t.mu.Lock()
	defer t.mu.Unlock()
	link := t.bucket(&p.key)
	for q := link.Load(); q != nil; q = link.Load() {
		if q == p {
			// p.next stays: a lookup that stands on p finds its way on.
			link.Store(p.next.Load())
			t.n--
			t.limit.Give(1)
			return
		}
		link = &q.next
	}
}

// Len returns the number of flows.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// Each calls f for every flow. Flows that come or go meanwhile may be missed.
func (t *Table) Each(f func(*Port)) {
	if t.Len() == 0 {
		return // to look at each bucket would give memory to all of them
	}
	for i := range t.buckets {
		for p := t.buckets[i].Load(); p != nil; p = p.next.Load() {
			f(p)
		}
	}
}
