package flow

import "net/netip"

// Sharing is what the actor of a UDP flow needs to carry others from the same port of the guest
// with the same socket. Any goroutine may call it.
type Sharing interface {
	// Claim reports whether p may have port of the host for all of its peers: nobody else is to get
	// what strangers send there. If so, Disclaim is to be called before the socket is closed. p is
	// told to end when somebody else needs the port.
	Claim(p *Port, port uint16) bool
	Disclaim(p *Port, port uint16)

	// Join has the flow k be p's. Errors are those of Table's Insert.
	Join(p *Port, k *Key) (*Member, error)
	// Meet is Join for a flow that peer has begun, with local.
	Meet(p *Port, k *Key, peer, local netip.AddrPort) (*Member, error)
	// HandOver ends what Join or Meet has begun.
	Leave(m *Member)

	// Elsewhere has the frames of r, which are not p's, go to flows of their own. The caller does
	// not hold r any more.
	Elsewhere(r Run)
	// Accept begins the flow k with fd, a non-blocking socket connected to its peer, which has
	// begun it. The caller does not hold fd any more.
	Accept(fd int, k Key)
}

// Member is a flow that shares the socket of another.
type Member struct {
	Alias     *Alias
	Announced *Announced
	FromHost  bool // the peer has begun
}

// Share has a be the key by which the guest's next flow of the same port finds p. It is called
// before anybody else has the port.
func (p *Port) Share(a *Alias) { p.shared = a }

// Shared returns what Share was called with, or nil.
func (p *Port) Shared() *Alias { return p.shared }

// KeepAlone says that the actor takes no other flows. Only the actor calls it.
func (p *Port) KeepAlone() { p.alone.Store(true) }

// Alone reports whether the actor takes no other flows.
func (p *Port) Alone() bool { return p.alone.Load() }
