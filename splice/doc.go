// Package splice carries local traffic from socket to socket: between a socket in the host's
// network namespace and one in the guest's, without frames.
//
// Who listens and what leads where is decided elsewhere: a flow arrives here as an accepted
// connection, or as a connected datagram socket, together with the side and the address it is to go
// to.
//
// # Theory of operation
//
// A flow is two sockets and one goroutine that owns both, and all there is to know about them. It
// waits for both at once: they are in an epoll instance of their own, edge-triggered, and that
// instance is itself in Go's poller (a watch). So the flow is woken on the thread that saw the
// event, learns by one call what has happened to which socket, and needs no second goroutine, no
// lock and no message. Watches are kept for the next flow, as are sockets and pipes: to set up a
// connection costs connect(2) and two epoll_ctl(2).
//
// Each direction of a connection is a stream: what is read from one socket is held until the other
// has taken it, and nothing is read meanwhile; so a receiver that stops, stops the sender, and
// costs no wake-ups. Small messages are copied through a buffer: two calls, no pipe. A read that
// fills a good part of the buffer starts a bulk transfer: from then on data moves through a pipe
// with splice(2), without being copied, until there is little to move. An idle connection holds
// neither pipe nor buffer. Where no pipe can be had everything is copied.
//
// The end of one direction (a read of zero bytes) is passed on with shutdown(2) when all before it
// has been written; the other direction goes on for as long as it likes. A connection is over when
// both have ended. A reset, an error, or a failed connect resets both sides, so that both peers see
// RST. What a peer had sent before it reset is passed on first, as far as the other side takes it
// at once.
//
// Request and response traffic is noticed by flow.Spinner: then the flow looks for the
// next message for a short while before it sleeps.
//
// A datagram flow has the same watch, and moves datagrams in batches, each row of equal sizes as
// one message where the kernel can (UDP_GRO and UDP_SEGMENT, udp(7)). It ends when nothing has
// moved for the time-out of its kind. Errors are read and forgotten: there is nobody to tell.
//
// # Limits
//
// A connection has no time-out. The number of flows is bounded by Config.Limit, where each counts
// for three descriptors. A stream holds up to 64 KiB, or a pipe, of data. Urgent data is passed on
// as ordinary data.
package splice
