// Package forward listens: on the host for what is to reach the guest, and inside the guest's network
// namespace for what is to reach the host. What arrives it hands over to the engine (frames) or the
// splicer (socket to socket), as the address rules say; it carries no data of its own but the first
// datagrams of a flow.
//
// # Theory of operation
//
// A rule is a range of ports and where it leads (config.Rule). Each of its ports has one socket, a
// listener. Listeners come by the ten thousand, so they have neither a goroutine nor an entry in Go's
// poller each: all listeners of a side are in one epoll instance, level-triggered, and that instance is
// in the poller. One goroutine a side looks after them. What it does for a listener at a time is
// bounded, and the kernel shows ready listeners in turn, so that none starves the others.
//
// TCP: a connection is accepted, and where it leads is found out by the peer's address and its own. One
// that leads nowhere is reset. When descriptors run out the listener rests for a moment, and its
// connections wait in the backlog.
//
// UDP: the first datagram from a peer makes a flow. The flow gets a socket of its own, bound to the
// address and port the datagram was sent to and connected to the peer. From then on the kernel gives it
// what the peer sends, in preference to the listener. What had arrived before is still in the
// listener's queue; so that is read until it is empty, and only then is the flow handed over, with its
// first datagrams in the order in which they came. Between bind and connect the new socket may also
// take datagrams of other peers, which are treated as if the listener had received them. What is sent to
// a group or a broadcast address always comes to the listener, since a connected socket has one address.
//
// Rules marked for scanning (auto) listen only on ports that are bound on the other side. Both sides
// are looked at once a second; listeners come and go accordingly, while flows live on. Ports on which
// we listen ourselves do not count as bound, or each direction would follow the other. What counts is
// the state before the update, of both sides.
//
// All rules can be replaced at once. A port that both the old and the new rules listen on in the same
// way keeps its socket, so that no connection is refused meanwhile; what has begun goes on in any case.
//
// # Ownership
//
// Forwarder.mu is held while rules change: by Add, Remove, Replace, List and the scan. side.mu guards the
// listeners of a side between their use and their end: nobody closes a descriptor that is being
// accepted from. Neither is held while flows begin.
//
// # Limits
//
// Descriptors: listeners leave a part of what the process may open for the flows. A datagram flow
// begins with at most maxFirst bytes.
package forward
