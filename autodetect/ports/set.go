package ports

import "math/bits"

// Set is a set of ports. The zero value is empty; sets can be compared with ==.
type Set [65536 / 64]uint64

// Add puts p into s.
func (s *Set) Add(p uint16) { s[p/64] |= 1 << (p % 64) }

// Remove takes p out of s.
func (s *Set) Remove(p uint16) { s[p/64] &^= 1 << (p % 64) }

// Has reports whether p is in s.
func (s *Set) Has(p uint16) bool { return s[p/64]>>(p%64)&1 != 0 }

// Union adds all of t to s.
func (s *Set) Union(t *Set) {
	for i := range s {
		s[i] |= t[i]
	}
}

// Subtract takes all of t out of s.
func (s *Set) Subtract(t *Set) {
	for i := range s {
		s[i] &^= t[i]
	}
}

// Len returns the number of ports in s.
func (s *Set) Len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Bound are the bound ports of a network namespace.
type Bound struct{ TCP, UDP Set }
