// Package udp carries UDP flows between the guest and the host's network, whichever side begins:
// each is one actor between datagrams on the guest's link and a connected datagram socket of the
// host; or, all that one port of the guest's begins together, one actor and one socket that is
// connected to nobody.
//
// # Theory of operation
//
// A flow is made by the first datagram from a guest's port to a remote one. It has a socket of its
// own, bound to the guest's port number and connected to the remote end, so that nobody but the
// peer that was spoken to can answer. Nothing is kept: a datagram goes on in the moment it comes,
// or it is lost, as on any network.
//
// A flow that a peer on the host's side begins comes with such a socket, bound to the address and
// port the peer has spoken to, and with the datagrams that were received before there was one: the
// guest gets these first.
//
// From the guest: the mailbox is emptied, datagrams of one size that follow each other are gathered
// where they lie, and each such row leaves in one call (UDP_SEGMENT, udp(7)); different rows leave
// in one sendmmsg. A lone datagram is sent at once with one plain call. What the socket's send
// buffer does not take is lost, as in a full queue of a network card: waiting would only delay what
// the guest's sender does not know how to hold back. Where the kernel refuses to segment (datagrams
// longer than the path's MTU, devices that cannot) they go one by one, and the flow remembers.
//
// From the host: one call takes all that waits, up to maxBatch datagrams; rows of one size enter
// the guest as one frame with VIRTIO_NET_HDR_GSO_UDP_L4, everything else as frames of its own. The
// call is told to put datagrams next to each other on the guess that they are as long as the last
// ones, so that a row needs no copying; a wrong guess costs a copy. Datagrams longer than the
// link's MTU are whole frames nevertheless where the guest's kernel takes them, on a tap; to other
// devices they go as fragments.
//
// The socket's error queue is emptied when a call reports an error, and what routers and the peer
// have said there is told to the guest as ICMP (forwarding of local errors is left out: the guest
// did nothing wrong). An error ends the flow only if the socket cannot go on.
//
// # Lifetime
//
// A flow ends after UDPTimeout without a datagram in either direction, or after UDPStreamTimeout if
// it is more than a question and an answer: who was spoken to has sent, and one side has sent more
// than once.
// The alarm is moved lazily, so that traffic costs no timer calls.
//
// # Mapping and filtering
//
// In the words of RFC 4787: mapping is endpoint-independent, since all flows of a guest's port have
// the same port of the host: that port itself if no other program of the host, and no port
// forwarded elsewhere, has it (sock.Ports), or else one of the kernel's choice. Filtering depends
// on address and port: a peer that was not spoken to, or not of late, is not heard, unless the port
// is forwarded. A peer that the guest speaks to by two names, such as the resolver's and the
// address that stands for it, has two flows, the second by another port: what it answers tells
// ports, but no names.
//
// # Peer tables
//
// The first flow of a guest's port has a connected socket, which is all that most ever need. When
// the guest sends from there to another peer as well, the engine offers that to the same mailbox
// (flow.Sharing), and the actor gathers: it opens a second socket with the same port that is
// connected to nobody, connects the first one elsewhere, gives the guest what that has received,
// and closes it. From then on it has a table of peers: datagrams leave with an address each, still
// in rows where they follow each other and in one sendmmsg where not, and arrive with their
// sender's. One from a peer that is not in the table is dropped and counted, and so is what was
// sent to a group or a broadcast address. Errors are told by the destination they name; one that a
// call reports may be about any peer, so that the call is repeated. Each peer is a flow of its own
// to the table, the limits, the counters and the log, and is given up when its time is over; with
// the last one the actor ends.
//
// What comes to a port from strangers must not be taken from others. So there is no peer table on a
// port that is forwarded, and one there ends when that begins; nor where another socket of the host
// has the port at all addresses, which is tried out by binding it to one of loopback (sock.Host's
// ShareUDP). The flow then keeps alone, and each peer has an actor and a socket, as have
// destinations that are translated, link-local ones and groups. While there is traffic that is
// tried out again once a second: if another program has bound the port meanwhile (SO_REUSEADDR),
// the table's actor ends, and its peers begin anew with another port.
//
// # Peers that begin
//
// A port of the host that leads to the guest has a listening socket (package forward), and one
// actor serves it for all peers, as it serves a table (ServeListener). Here a peer need not be
// known: the first datagram of one has the forwarder say which flow it begins (flow.Listener), and
// that joins the table by its key, so that the guest's answers reach the actor's mailbox. Answers
// leave by the same socket with the address that the peer has spoken to as their source
// (IP_PKTINFO, ip(7)); a peer that speaks to another address of ours next is answered from that.
// Peers that lead elsewhere are handed back.
//
// The state of a peer that the guest has not answered is worth little: it is made again by the
// peer's next datagram. So the oldest gives way when there are too many, first to those of its own
// address or /64 (maxOfSource), then among all (maxCallersAsked). The datagram itself reaches the
// guest in any case, but while others move data: new peers then have a part of a CPU (flow.Budget),
// and what comes beyond that is lost. Peers that were answered once are bounded as well, and so are
// all together.
//
// When the port is not forwarded any more, the flows in use get a connected socket each and are
// ordinary ones from then on.
//
// # Limits
//
// A table has at most maxPeers. Beyond that, or when the table is full, who was silent for longest
// gives way, first of those that are no more than a question and an answer.
//
// Time to live (or hop limit) and type of service (or traffic class), ECN included, are carried
// over both ways, except that 64, the kernel's default, is taken for set, and that what leads to a
// group leaves with the kernel's time to live for that, 1. A socket whose port the host does not
// give us has another.
package udp
