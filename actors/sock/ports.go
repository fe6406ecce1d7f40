package sock

import (
	"sync"

	"golang.org/x/sys/unix"
)

// maxPorts bounds the ports that are remembered: 64 KiB or so.
const maxPorts = 1024

// Ports knows which UDP ports of the host flows of the guest's have, and which port stands for one
// of the guest's that cannot be had, so that all of that port's peers see the same one
// (endpoint-independent mapping: RFC 4787, section 4.1), which is what a guest counts on that was
// told its address by a third party. It may be used by anyone; the zero value is empty.
type Ports struct {
	// Forwarded reports whether the UDP port of the host is listened on for the guest's port of the
	// same number; nil: none is. It is set before the first use.
	Forwarded func(port uint16) bool

	mu   sync.Mutex
	m    map[portKey]uint16 // what stands for a port of the guest's
	held map[portKey]int    // flows that have a port of the host
}

type portKey struct {
	v4   bool
	port uint16
}

// Held is a port that a flow has; the zero value is none.
type Held struct {
	p *Ports
	k portKey
}

// Release says that the flow's socket is closed.
func (h *Held) Release() {
	if h.p == nil {
		return
	}
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	if h.p.held[h.k]--; h.p.held[h.k] <= 0 {
		delete(h.p.held, h.k)
	}
	h.p = nil
}

// bind finds a port for one of the guest's and has try bind to it: to that port itself unless it is
// in use, or any is set, and else to the one that stands for it. try binds to a port, that of the
// kernel's choice if it is 0, and returns which that is. ours says that flows of ours, or what
// listens for the same port of the guest's, have it already, so that it is to be shared; else
// nobody may have it. Errors are those of try.
func (p *Ports) bind(v4 bool, port uint16, any bool, try func(port uint16, ours bool) (uint16, error)) (Held, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	guest := portKey{v4, port}
	other := p.m[guest]
	if other != 0 && p.held[portKey{v4, other}] > 0 { // what the others of the port have
		if got, err := try(other, true); err == nil {
			return p.hold(v4, got), nil
		}
		other = 0
	}
	if !any {
		ours := p.held[guest] > 0 || p.Forwarded != nil && p.Forwarded(port)
		got, err := try(port, ours)
		if err == nil {
			delete(p.m, guest)
			return p.hold(v4, got), nil
		}
		if err != unix.EADDRINUSE && err != unix.EACCES {
			return Held{}, err
		}
	}
	got, err := uint16(0), error(unix.EADDRINUSE)
	if other != 0 {
		got, err = try(other, false)
	}
	if err != nil {
		if got, err = try(0, false); err != nil {
			return Held{}, err
		}
	}
	p.set(v4, port, got)
	return p.hold(v4, got), nil
}

// hold counts one more flow that has port. p.mu is held.
func (p *Ports) hold(v4 bool, port uint16) Held {
	if p.held == nil {
		p.held = make(map[portKey]int)
	}
	k := portKey{v4, port}
	p.held[k]++
	return Held{p, k}
}

// set has is stand for the guest's port. When there are too many, all others are forgotten: their
// flows stay as they are, and only their next peers see another port. p.mu is held.
func (p *Ports) set(v4 bool, port, is uint16) {
	if p.m == nil || len(p.m) >= maxPorts {
		p.m = make(map[portKey]uint16)
	}
	p.m[portKey{v4, port}] = is
}
