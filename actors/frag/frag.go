package frag

import (
	"bytes"
	"time"

	"fusilli/tapio/frame"
)

const (
	// Timeout is how long a datagram may take to be complete. RFC 8200 says 60 s and RFC 1122 no
	// less; the fragments have come over one link, and 30 s is what Linux waits.
	Timeout = 30 * time.Second

	// MaxDatagrams is the most that a table holds. Each has a buffer of frame.MaxFrame bytes.
	MaxDatagrams = 64

	maxRanges = 128
)

// Outcome is what has become of a fragment.
type Outcome uint8

// The outcomes.
const (
	Kept      Outcome = iota // the rest is awaited
	Whole                    // the datagram is complete
	Duplicate                // nothing new
	Malformed                // the fragment itself is impossible
	Conflict                 // it overlaps others, or contradicts them: the datagram is given up
	Late                     // of a datagram that was given up
	Scattered                // in too many pieces: the datagram is given up

	NumOutcomes = iota
)

var outcomes = [NumOutcomes]string{"kept", "whole", "duplicate", "malformed", "conflict", "late", "scattered"}

// String returns the name of o's counter.
func (o Outcome) String() string { return outcomes[o] }

// key names a datagram. Over IPv6 proto is 0: only the first fragment says the protocol.
type key struct {
	src, dst frame.Addr
	id       uint32
	proto    uint8
}

// Table holds incomplete datagrams. It has one owner.
type Table struct {
	max  int
	m    map[key]*datagram
	free []*[frame.MaxFrame]byte

	// Expired and Evicted count the datagrams that were forgotten, since their time was over or for
	// want of room.
	Expired, Evicted uint64
}

// datagram is what is there of one.
type datagram struct {
	b      *[frame.MaxFrame]byte // nil: given up
	since  time.Duration
	at     int     // of the payload in b
	total  int     // length of the payload; -1: not known
	ranges []space // in order, and never touching
	ip     frame.IP
	marked bool // congestion was experienced
	mac    [2]frame.MAC
}

// space is the bytes of payload from one offset to another.
type space struct{ from, to int }

// New returns an empty table that holds at most max incomplete datagrams.
func New(max int) *Table { return &Table{max: max, m: map[key]*datagram{}} }

// Len returns the number of incomplete datagrams.
func (t *Table) Len() int { return len(t.m) }

// Add takes the fragment in the frame b, parsed as p, at the time now, which never goes back. If
// that makes a datagram whole, it returns its frame, which is valid until the next call. b is not
// kept.
func (t *Table) Add(b []byte, p *frame.Packet, now time.Duration) (whole []byte, o Outcome) {
	id, off, more := p.Fragment(b)
	data := b[p.L4:p.End]
	hlen := frame.IPv4Len
	k := key{src: p.Src, dst: p.Dst, id: id, proto: p.Proto}
	if p.V6 {
		hlen, k.proto = frame.IPv6Len, 0
	}
	s := space{off, off + len(data)}
	longest := frame.MaxFrame - frame.L3Off - frame.IPv6Len // of an IPv6 payload
	if !p.V6 {
		longest -= hlen
	}
	if len(data) == 0 || more && len(data)%8 != 0 || s.to > longest {
		return nil, Malformed
	}
	d := t.m[k]
	if d != nil && now-d.since > Timeout {
		t.forget(k, d)
		t.Expired++
		d = nil
	}
	if d == nil {
		d = t.begin(k, now)
		d.at = frame.L3Off + hlen
	}
	if d.b == nil {
		return nil, Late
	}
	if o := d.fits(s, data, more); o != Kept {
		if o != Duplicate {
			t.giveUp(d)
		}
		return nil, o
	}
	copy(d.b[d.at+s.from:], data)
	if !more {
		d.total = s.to
	}
	if off == 0 {
		d.ip = frame.IP{Src: p.Src, Dst: p.Dst, Proto: p.Proto, TTL: p.TTL, TOS: p.TOS, FlowLabel: p.FlowLabel}
		d.mac = [2]frame.MAC{frame.Dst(b), frame.Src(b)}
	}
	d.marked = d.marked || p.TOS&3 == 3
	if !d.insert(s) {
		t.giveUp(d)
		return nil, Scattered
	}
	if d.total < 0 || d.ranges[0] != (space{0, d.total}) {
		return nil, Kept
	}
	whole = d.frame(p.V6)
	t.forget(k, d)
	return whole, Whole
}

// begin makes room for a datagram.
func (t *Table) begin(k key, now time.Duration) *datagram {
	if len(t.m) >= t.max {
		var (
			oldest key
			since  = time.Duration(1<<63 - 1)
		)
		for k, d := range t.m {
			if d.since < since {
				oldest, since = k, d.since
			}
		}
		t.forget(oldest, t.m[oldest])
		t.Evicted++
	}
	d := &datagram{since: now, total: -1}
	if n := len(t.free); n > 0 {
		d.b, t.free = t.free[n-1], t.free[:n-1]
	} else {
		d.b = new([frame.MaxFrame]byte)
	}
	t.m[k] = d
	return d
}

// forget ends d. Its bytes stay as they are until the next Add.
func (t *Table) forget(k key, d *datagram) {
	t.giveUp(d)
	delete(t.m, k)
}

// giveUp drops what there is of d.
func (t *Table) giveUp(d *datagram) {
	if d.b != nil {
		t.free = append(t.free, d.b)
		d.b, d.ranges = nil, nil
	}
}

// Expire forgets what is not complete in time, and gives memory back that is not in use. It is to
// be called now and then.
func (t *Table) Expire(now time.Duration) {
	for k, d := range t.m {
		if now-d.since > Timeout {
			t.forget(k, d)
			t.Expired++
		}
	}
	t.free = nil
}

// fits says whether the fragment with data at s may be added: Kept, or why not.
func (d *datagram) fits(s space, data []byte, more bool) Outcome {
	last := 0
	if n := len(d.ranges); n > 0 {
		last = d.ranges[n-1].to
	}
	switch {
	case d.total >= 0 && (s.to > d.total || !more && s.to != d.total), !more && s.to < last:
		return Conflict
	}
	for _, r := range d.ranges {
		switch {
		case s.to <= r.from || r.to <= s.from:
		case r.from <= s.from && s.to <= r.to && bytes.Equal(d.b[d.at+s.from:d.at+s.to], data):
			return Duplicate
		default:
			return Conflict
		}
	}
	return Kept
}

// insert adds s, which overlaps nothing, and reports whether there was room.
func (d *datagram) insert(s space) bool {
	i := 0
	for i < len(d.ranges) && d.ranges[i].to < s.from {
		i++
	}
	before := i < len(d.ranges) && d.ranges[i].to == s.from
	j := i
	if before {
		j++
	}
	after := j < len(d.ranges) && d.ranges[j].from == s.to
	switch {
	case before && after:
		d.ranges[i].to = d.ranges[j].to
		d.ranges = append(d.ranges[:j], d.ranges[j+1:]...)
	case before:
		d.ranges[i].to = s.to
	case after:
		d.ranges[j].from = s.from
	case len(d.ranges) == maxRanges:
		return false
	default:
		d.ranges = append(d.ranges, space{})
		copy(d.ranges[i+1:], d.ranges[i:])
		d.ranges[i] = s
	}
	return true
}

// frame writes the headers of the complete datagram and returns its frame.
func (d *datagram) frame(v6 bool) []byte {
	b := d.b[:d.at+d.total]
	etherType := uint16(frame.EtherIPv4)
	if v6 {
		etherType = frame.EtherIPv6
	}
	d.ip.Len = d.total
	if d.marked {
		d.ip.TOS |= 3
	}
	frame.PutVnet(b, frame.Vnet{})
	frame.PutEth(b, d.mac[0], d.mac[1], etherType)
	frame.PutIP(b[frame.L3Off:], &d.ip)
	return b
}
