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

// Endpoint returns the key of all flows of UDP that the guest begins at its end of k: one without a
// remote end, which no flow has.
func (k *Key) Endpoint() Key { return Key{Guest: k.Guest, GuestPort: k.GuestPort, Proto: k.Proto} }

// entry is a key in a Table, and the port that is found by it.
type entry struct {
	key  Key
	port *Port
	next atomic.Pointer[entry]
}

// Alias is one more key that a port is found by. It belongs to whoever has made it.
type Alias struct {
	entry
	counts bool // as a flow, without a descriptor
	in     bool // the table, whose mutex guards it
}

// NewAlias returns an alias of p that is in no table yet. With counts it counts as a flow there.
func NewAlias(key Key, p *Port, counts bool) *Alias {
	a := &Alias{counts: counts}
	a.key, a.port = key, p
	return a
}

// Key returns the key.
func (a *Alias) Key() *Key { return &a.key }

// Table finds the port of a flow by its key, or by another one that leads to it.
//
// Lookups take no lock and may run while flows come and go; Insert and Remove serialise among
// themselves. A port that was removed may still be found by a lookup under way: what is offered to
// it then is lost, as it would have been a moment later.
type Table struct {
	seed    maphash.Seed
	buckets []atomic.Pointer[entry]
	limit   *Limit

	mu sync.Mutex
	n  int
}

// NewTable returns a table whose flows count against limit, which others may share.
func NewTable(limit *Limit) *Table {
	size := 1 << bits.Len(uint(limit.max-1))
	return &Table{seed: maphash.MakeSeed(), buckets: make([]atomic.Pointer[entry], size), limit: limit}
}

func (t *Table) bucket(k *Key) *atomic.Pointer[entry] {
	return &t.buckets[maphash.Comparable(t.seed, *k)&uint64(len(t.buckets)-1)]
}

// Lookup returns the port of the flow k, or nil.
func (t *Table) Lookup(k *Key) *Port {
	for e := t.bucket(k).Load(); e != nil; e = e.next.Load() {
		if e.key == *k {
			return e.port
		}
	}
	return nil
}

// Insert adds p under its key. It returns ErrExists when the key is in the table, and ErrFull when
// the limit is reached.
func (t *Table) Insert(p *Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.insert(&p.entry, true, 1)
}

// Add adds a. Errors are those of Insert.
func (t *Table) Add(a *Alias) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.insert(&a.entry, a.counts, 0)
	a.in = err == nil
	return err
}

func (t *Table) insert(e *entry, counts bool, files int) error {
	b := t.bucket(&e.key)
	for q := b.Load(); q != nil; q = q.next.Load() {
		if q.key == e.key {
			return ErrExists
		}
	}
	if counts {
		if !t.limit.Acquire(files) {
			return ErrFull
		}
		t.n++
	}
	e.next.Store(b.Load())
	b.Store(e)
	return nil
}

// Remove takes p out of the table, but not its aliases. A port that is not in it is left alone.
func (t *Table) Remove(p *Port) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.remove(&p.entry) {
		t.n--
		t.limit.Release(1)
	}
}

// Drop takes a out of the table, if it is there. a is not to be added again.
func (t *Table) Drop(a *Alias) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !a.in {
		return
	}
	a.in = false
	if t.remove(&a.entry) && a.counts {
		t.n--
		t.limit.Release(0)
	}
}

func (t *Table) remove(e *entry) bool {
	link := t.bucket(&e.key)
	for q := link.Load(); q != nil; q = link.Load() {
		if q == e {
			// e.next stays: a lookup that stands on e finds its way on.
			link.Store(e.next.Load())
			return true
		}
		link = &q.next
	}
	return false
}

// Len returns the number of flows.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// Each calls f for every port. Flows that come or go meanwhile may be missed.
func (t *Table) Each(f func(*Port)) {
	if t.Len() == 0 {
		return // to look at each bucket would give memory to all of them
	}
	for i := range t.buckets {
		for e := t.buckets[i].Load(); e != nil; e = e.next.Load() {
			if e == &e.port.entry {
				f(e.port)
			}
		}
	}
}
