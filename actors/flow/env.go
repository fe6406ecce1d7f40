package flow

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/frag"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// Headroom is what an actor's buffer has in front of the payload: the longest headers a frame
// begins with (virtio_net_hdr, Ethernet, IPv6, TCP without options), rounded up.
const Headroom = 96

// BufferSize is the size of the buffers of Env.Buffer: headers and the longest payload.
const BufferSize = Headroom + 65536

// Env is what all actors of one translator share. Its fields are set before the first actor starts
// and not changed any more, except for those with methods of their own.
type Env struct {
	Link tapio.Link
	Log  *zap.Logger

	OurMAC frame.MAC // source of frames to the guest
	MTU    int       // of the guest's link, bytes of IP packet

	// Fragment has packets longer than MTU go as fragments: the guest's device takes none.
	Fragment bool

	// Peek offset (SO_PEEK_OFF, socket(7)) works on TCP sockets of that family: Linux 6.9.
	PeekOff4, PeekOff6 bool

	// Present returns the address by which the guest knows an address of the host's network, and
	// whether it knows it at all; nil: all are known as they are. It may be called by anyone.
	Present func(netip.Addr) (netip.Addr, bool)

	// MACOf returns the Ethernet address that frames from an address come from, as the guest knows
	// it; nil: all come from OurMAC. It may be called by anyone.
	MACOf func(*frame.Addr) frame.MAC

	// Evict has one flow end that is easily missed, and reports whether there was one; nil: none
	// is. It may be called by anyone.
	EvictOne func() bool

	// SYNRetries is how often the SYN of a connection that the host asks for is repeated, and
	// SYNLinear how many of those come a second apart, before the time between them doubles.
	SYNRetries, SYNLinear uint8

	RTOMax time.Duration // longest time between two retransmissions; 0: 120 s

	UDPTimeout, UDPStreamTimeout time.Duration // idle time after which a UDP flow ends

	// Held is for what TCP flows hold of the guest's data: what their sockets did not take, and
	// what came before its turn.
	Held MemoryBudget

	// Ended are the TCP connections that have ended well of late.
	Ended Ended

	// Spinner decides whether the next message is looked for before one sleeps.
	Spinner Spinner[Port]

	// BulkLoad knows whether flows have work to do that should not wait for new ones.
	Load BulkLoad

	Closer *Closer // of the sockets of flows

	// Peers is the time for peers of UDP that a flow has not met before.
	Peers Budget

	// Backpressure, if not nil, is the link's.
	Backpressure tapio.Backpressure

	// Sharing has flows of UDP share sockets; nil: each has its own.
	Sharing Sharing

	guestMAC atomic.Uint64
	buffers  sync.Pool

	waitMu  sync.Mutex // taken only while the link is full
	waiting []*Port    // for room on the link

	Counters Counters
}

// Counters count what an operator may want to know. Each is only ever added to.
type Counters struct {
	// frames from the guest that were refused, by reason
	Dropped     [frame.NumReasons]atomic.Uint64
	MailboxFull atomic.Uint64 // runs lost since an actor had not caught up
	SlabsOut    Counter       // frames lost since no slab was free
	TableFull   Counter       // flows refused
	Evicted     Counter       // flows that have ended to make room for others
	EvictedIdle Counter       // those among them that were in use before
	// frames lost that would have opened flows, since too many came at a time
	NotAdmitted Counter
	NoSocket    Counter // flows refused for want of descriptors or memory
	// windows that stayed small since all flows together held too much
	HeldFull Counter
	// TCP segments dropped since all flows together kept too much
	EarlyFull Counter
	// bytes in order that neither the socket nor the budget had room for: runs of them
	HeldRefused  Counter
	Unasked      Counter       // TCP segments with data beyond the window
	LinkDropped  atomic.Uint64 // frames to the guest that the link did not take
	TCP, UDP     atomic.Uint64 // flows made
	ICMP         atomic.Uint64
	Panics       atomic.Uint64 // flows that ended by a panic
	NoFlow       atomic.Uint64 // TCP segments without a flow
	ServiceDrops Counter       // frames to ARP, NDP and the like that found the mailbox full
	BadNeigh     atomic.Uint64 // malformed ARP and NDP messages
	BadDHCP      atomic.Uint64 // malformed DHCP messages
	BadDHCPv6    atomic.Uint64 // malformed DHCPv6 messages

	// datagrams of UDP from peers the guest has not spoken to, on sockets that many share
	Filtered atomic.Uint64

	// fragments from the guest, by what has become of them
	Fragments        [frag.NumOutcomes]atomic.Uint64
	FragmentsExpired atomic.Uint64 // datagrams that were not complete in time
	FragmentsEvicted Counter       // those that gave way to others
}

// GuestMAC returns the guest's MAC address.
func (e *Env) GuestMAC() frame.MAC {
	v := e.guestMAC.Load()
	return frame.MAC{byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// SourceMAC returns the Ethernet address that frames from a come from. A flow asks when it has its
// first frame to send, by when the host's kernel has found out, and keeps to that.
func (e *Env) SourceMAC(a *frame.Addr) frame.MAC {
	if e.MACOf == nil {
		return e.OurMAC
	}
	return e.MACOf(a)
}

// SetGuestMAC makes m the destination of frames to the guest and reports whether that is a change.
func (e *Env) SetGuestMAC(m frame.MAC) bool {
	v := uint64(m[0])<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
	if e.guestMAC.Load() == v {
		return false
	}
	e.guestMAC.Store(v)
	return true
}

// Station is the Ethernet address that the frames of one flow go to: the guest's, or that of the
// station behind a bridge of the guest's that its frames come from, or of a guest with a new one
// that was not verified yet. The zero value is the guest's. It belongs to the flow's actor.
type Station struct{ mac frame.MAC }

// See notes that the frame b has come from s.
func (e *Env) See(s *Station, b []byte) {
	mac := frame.Src(b)
	if mac == e.GuestMAC() || mac[0]&1 != 0 || mac == e.OurMAC {
		mac = frame.MAC{}
	}
	s.mac = mac
}

// To returns the address of s.
func (e *Env) To(s Station) frame.MAC {
	if s.mac == (frame.MAC{}) {
		return e.GuestMAC()
	}
	return s.mac
}

// Buffer returns a buffer for building a frame, held by the caller until PutBuffer. Actors take
// one when they have something to send and give it back before they sleep, so that an idle flow
// holds none.
func (e *Env) Buffer() *[BufferSize]byte {
	b, _ := e.buffers.Get().(*[BufferSize]byte)
	if b == nil {
		b = new([BufferSize]byte)
	}
	return b
}

// PutBuffer gives b back.
func (e *Env) PutBuffer(b *[BufferSize]byte) { e.buffers.Put(b) }
