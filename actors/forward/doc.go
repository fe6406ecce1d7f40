// Package forward listens: on the host for what is to reach the guest, and inside the guest's
// network namespace for what is to reach the host. What arrives it hands over to the engine
// (frames) or the splicer (socket to socket), as the address rules say; it carries no data of its
// own but the first datagrams of a flow.
//
// # Theory of operation
//
// A rule is a range of ports and where it leads (config.Rule). Each of its ports has one socket, a
// listener. Listeners come by the ten thousand, so they have neither a goroutine nor an entry in
// Go's poller each: all listeners of a side are in two epoll instances, level-triggered, one for
// connections and one for datagrams, and these are in the poller. One goroutine looks after each,
// so that accepting never waits behind datagrams. What it does for a listener at a time is bounded,
// in number and in time, and the kernel shows ready listeners in turn, so that none starves the
// others.
//
// TCP: a connection is accepted, and where it leads is found out by the peer's address and its own.
// One that leads nowhere is reset. When descriptors run out the listener rests for a moment, and
// its connections wait in the backlog.
//
// UDP over the guest's link: a listener that has something is lent to an actor there
// (Tap.ServeUDP). The actor receives from the listener's own socket and answers by it, for all
// peers, until nothing was said for a while; then the listener is watched again. So a peer costs no
// descriptor, and what a stranger sends from thousands of ports waits nowhere but at its own
// listener. When the listener goes away, the flows that have begun get a socket each, bound to the
// address that the peer has spoken to and connected to the peer.
//
// UDP from socket to socket: the first datagram from a peer makes a flow, with such a socket of its
// own. From then on the kernel gives that what the peer sends, in preference to the listener. What
// had arrived before is still in the listener's queue; so that is read until it is empty, and only
// then is the flow handed over, with its first datagrams in the order in which they came. Between
// bind and connect the new socket may also take datagrams of other peers, which are treated as if
// the listener had received them. Such peers are the host's own programs and the guest's; where the
// listener is lent, the actor hands their datagrams back.
//
// Rules marked for scanning (auto) listen only on ports that are bound on the other side. Both
// sides are looked at once a second; listeners come and go accordingly, while flows live on. Ports
// on which we listen ourselves do not count as bound, or each direction would follow the other.
// What counts is the state before the update, of both sides.
//
// Rules of both directions that lead in a circle are refused, and so are flows at ports of which
// that is found out when they are listened on (loop.go).
//
// All rules can be replaced at once. A port that both the old and the new rules listen on in the
// same way keeps its socket, so that no connection is refused meanwhile; what has begun goes on in
// any case.
//
// # Ownership
//
// Forwarder.mu is held while rules change: by Add, Remove, Replace, List and the scan. side.mu
// guards the listeners of a side between their use and their end: nobody closes a descriptor that
// is being accepted from. Neither is held while flows begin. A listener that is lent belongs to the
// actor but for its rule, which changes by one atomic store (inbound.now).
//
// # Limits
//
// Descriptors: listeners leave a part of what the process may open for the flows; one that is lent
// has two, of which the second counts as a flow. A datagram flow from socket to socket begins with
// at most maxFirst bytes.
package forward
