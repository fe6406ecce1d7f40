package flow

import "net/netip"

// Listener is a UDP port of the host that leads to the guest, as the actor knows it that serves its
// socket. The actor is the only one that calls it.
type Listener interface {
	// Route returns the flow that s begins, as the guest's link shows it. It returns false if that
	// leads elsewhere.
	Route(s *Sender) (Key, bool)
	// Elsewhere takes a datagram that leads elsewhere. data is lent until it returns.
	Elsewhere(s *Sender, data []byte)
	// Drained says that no more datagrams wait at the socket.
	Drained()
	// Removed reports whether the port leads to the guest no more, while flows that have begun go
	// on.
	Removed() bool
	// Connect returns a non-blocking socket for the flow that s has begun, bound to the address and
	// connected to the peer.
	Connect(s *Sender) (fd int, err error)
	// Ended says that the actor receives from the socket no more. works is false if that was a
	// fault of the socket, or for want of something.
	Ended(works bool)
}

// Sender is where a datagram has come from, and the address of the host it was sent to.
type Sender struct {
	Peer  netip.AddrPort
	Scope uint32 // interface of the peer's address, if that is link-local
	At    netip.Addr
	Iface uint32 // that it came in by, if At is link-local
	Ours  bool   // At is no group and no broadcast address
}
