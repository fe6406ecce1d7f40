package sock

import "sync"

// maxPorts bounds the ports that are remembered: 64 KiB or so.
const maxPorts = 1024

// Ports remembers which port of the host stands for a guest's port that cannot be had, so that all
// of that port's peers see the same one (endpoint-independent mapping: RFC 4787, section 4.1), which
// is what a guest counts on that was told its address by a third party. It may be used by anyone;
// the zero value is empty.
type Ports struct {
	mu sync.Mutex
	m  map[portKey]uint16
}

type portKey struct {
	v4   bool
	port uint16
}

// get returns what stands for the guest's port, 0 if there is nothing.
func (p *Ports) get(v4 bool, port uint16) uint16 {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m[portKey{v4, port}]
}

// set has is stand for the guest's port. When there are too many, all others are forgotten: their
// flows stay as they are, and only their next peers see another port.
func (p *Ports) set(v4 bool, port, is uint16) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil || len(p.m) >= maxPorts {
		p.m = make(map[portKey]uint16)
	}
	p.m[portKey{v4, port}] = is
}
