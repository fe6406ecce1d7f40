package flow

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

func TestTableBound(t *testing.T) {
	for _, max := range []int{1, 2, 3, 4, 5, 100} {
		tab := NewTable(NewLimit(max))
		ports := make([]*Port, max)
		for i := range ports {
			ports[i] = NewPort(key(i))
			if err := tab.Insert(ports[i]); err != nil {
				t.Fatalf("max %d: flow %d: %v", max, i, err)
			}
		}
		extra := NewPort(key(max))
		if err := tab.Insert(extra); !errors.Is(err, ErrFull) {
			t.Fatalf("max %d: one more: %v, want ErrFull", max, err)
		}
		if k := key(max); tab.Lookup(&k) != nil || tab.Len() != max {
			t.Fatalf("max %d: the refused flow is in the table, or counted: %d", max, tab.Len())
		}
		tab.Remove(extra) // not in it: no effect
		if tab.Len() != max {
			t.Fatalf("max %d: %d flows after removing one that was not in the table", max, tab.Len())
		}
		tab.Remove(ports[max/2])
		if err := tab.Insert(extra); err != nil {
			t.Fatalf("max %d: after one went: %v", max, err)
		}
	}
}

// TestTableModel compares a table with a map over random operations; few buckets, so that flows
// share them.
func TestTableModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, max := range []int{1, 3, 8, 64} {
		tab, model := NewTable(NewLimit(max)), map[Key]*Port{}
		for range 5000 {
			k := key(rnd.IntN(2 * max))
			p := model[k]
			if got := tab.Lookup(&k); got != p {
				t.Fatalf("Lookup(%v) = %v, want %v", k, got, p)
			}
			if p != nil && !errors.Is(tab.Insert(NewPort(k)), ErrExists) {
				t.Fatal("a flow is there twice")
			}
			switch {
			case p != nil:
				tab.Remove(p)
				delete(model, k)
				if rnd.IntN(4) == 0 {
					tab.Remove(p)
				}
			case len(model) < max:
				p = NewPort(k)
				if err := tab.Insert(p); err != nil {
					t.Fatal(err)
				}
				model[k] = p
			default:
				if err := tab.Insert(NewPort(k)); !errors.Is(err, ErrFull) {
					t.Fatalf("Insert into a full table: %v", err)
				}
			}
			if tab.Len() != len(model) {
				t.Fatalf("Len = %d, want %d", tab.Len(), len(model))
			}
		}
		seen := 0
		tab.Each(func(p *Port) {
			seen++
			if model[*p.Key()] != p {
				t.Errorf("Each found %v, which was removed", p.Key())
			}
		})
		if seen != len(model) {
			t.Errorf("Each found %d flows of %d", seen, len(model))
		}
	}
}

// TestTableConcurrent has flows that stay found at any time while others around them, in the same
// buckets, come and go.
func TestTableConcurrent(t *testing.T) {
	const stay, churn, rounds = 8, 4, 3000
	tab := NewTable(NewLimit(stay + 2*churn))
	for i := range stay {
		if err := tab.Insert(NewPort(key(i))); err != nil {
			t.Fatal(err)
		}
	}
	var writers, readers sync.WaitGroup
	var stop atomic.Bool
	for w := range churn {
		writers.Go(func() {
			a, b := key(1000+w), key(2000+w)
			for range rounds {
				p, q := NewPort(a), NewPort(b)
				if err := tab.Insert(p); err != nil {
					t.Error(err)
				}
				if err := tab.Insert(q); err != nil {
					t.Error(err)
				}
				if tab.Lookup(&a) != p || tab.Lookup(&b) != q {
					t.Error("a flow just inserted is not found")
				}
				tab.Remove(p)
				if tab.Lookup(&a) != nil {
					t.Error("a flow just removed is found")
				}
				tab.Remove(q)
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for !stop.Load() {
				for i := range stay {
					k := key(i)
					if p := tab.Lookup(&k); p == nil || p.key != k {
						t.Errorf("flow %d, which stays, was not found", i)
						return
					}
				}
				n := 0
				tab.Each(func(*Port) { n++ })
				if n < stay {
					t.Errorf("Each saw %d of %d flows that stay", n, stay)
					return
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	if tab.Len() != stay {
		t.Errorf("%d flows are left, want %d", tab.Len(), stay)
	}
}

func TestKeyV6(t *testing.T) {
	k := key(1)
	if k.V6() {
		t.Error("an IPv4 flow is taken for IPv6")
	}
	k.Guest, k.Remote = [16]byte{0: 0xfd, 15: 2}, [16]byte{0: 0xfd, 15: 1}
	if !k.V6() {
		t.Error("an IPv6 flow is not taken for one")
	}
}

func TestLookupAllocatesNothing(t *testing.T) {
	tab := NewTable(NewLimit(100))
	for i := range 100 {
		tab.Insert(NewPort(key(i)))
	}
	k, miss := key(50), key(500)
	if n := testing.AllocsPerRun(100, func() {
		if tab.Lookup(&k) == nil || tab.Lookup(&miss) != nil {
			t.Error("wrong answer")
		}
	}); n != 0 {
		t.Errorf("%v allocations a lookup", n)
	}
}

// TestAliases: a port is found by each of its keys, counts once with each alias that counts, and
// stays found by the others when one goes.
func TestAliases(t *testing.T) {
	const max = 3
	limit := NewFileLimit(max, max)
	tab := NewTable(limit)
	p := NewPort(key(0))
	end := NewAlias(p.Key().Endpoint(), p, false)
	peers := []*Alias{NewAlias(key(1), p, true), NewAlias(key(2), p, true)}
	if err := tab.Insert(p); err != nil {
		t.Fatal(err)
	}
	for _, a := range append(peers, end) {
		if err := tab.Add(a); err != nil {
			t.Fatal(err)
		}
		if err := tab.Add(NewAlias(*a.Key(), p, true)); !errors.Is(err, ErrExists) {
			t.Errorf("the same alias again: %v", err)
		}
		if err := tab.Insert(NewPort(*a.Key())); !errors.Is(err, ErrExists) {
			t.Errorf("a flow with the key of an alias: %v", err)
		}
		if tab.Lookup(a.Key()) != p {
			t.Errorf("%v does not lead to the port", a.Key())
		}
	}
	if tab.Len() != max || limit.Len() != max || limit.open.Load() != 1 {
		t.Errorf("%d flows, %d in all with %d descriptors", tab.Len(), limit.Len(), limit.open.Load())
	}
	full := NewAlias(key(3), p, true)
	if err := tab.Add(full); !errors.Is(err, ErrFull) {
		t.Errorf("one too many: %v", err)
	}
	n := 0
	tab.Each(func(q *Port) {
		if n++; q != p {
			t.Errorf("Each finds %v", q.Key())
		}
	})
	if n != 1 {
		t.Errorf("Each finds %d ports", n)
	}
	tab.Remove(p)
	for _, a := range append(peers, end, full) {
		tab.Drop(a)
		tab.Drop(a)
		if tab.Lookup(a.Key()) != nil {
			t.Errorf("%v is still there", a.Key())
		}
	}
	if tab.Len() != 0 || limit.Len() != 0 || limit.open.Load() != 0 {
		t.Errorf("%d flows, %d in all with %d descriptors are left", tab.Len(), limit.Len(), limit.open.Load())
	}
}
