// Package tcp carries TCP connections between the guest and the host's network, whichever side asks
// for them: each is one actor between segments on the guest's link and a stream socket of the host.
//
// # Theory of operation
//
// There is no full TCP here. The host's kernel speaks TCP to the outside and the guest's kernel
// speaks TCP to us; the actor translates between segments and socket calls, and keeps no data.
//
// From the host: data is peeked (MSG_PEEK at SO_PEEK_OFF), sent to the guest as one super-frame of
// up to 64 KiB within the guest's window, and taken off the socket (MSG_TRUNC) when the guest has
// acknowledged it. The socket's receive buffer is the retransmission buffer; to retransmit is to
// move the peek offset back.
//
// From the guest: payload in order is handed to the socket and acknowledged, all that has come in
// one call. On a link where each frame is one segment, every second full-sized segment of a bulk
// transfer is acknowledged, or the first after 1 ms. What comes before its turn is kept in the
// frames it came in until the gap before it is filled. What the socket does not take stays in the
// frames it came in until the socket is writable. The window advertised is the room in the socket's
// send buffer plus a bounded headroom: the kernel lets a send buffer grow only if it was full at
// times. A peer that stops reading thus fills the send buffer, then the headroom, and then closes
// the guest's window.
//
// Segments to the guest are as long as its SYN has said, until a router behind it says that they
// are too big (RFC 1191, RFC 8201): then they are shorter, for as long as the connection lasts.
// Towards the host that is the kernel's business.
//
// Control is translated one to one: SYN and connect, FIN and shutdown or end of file, RST and a
// reset. A guest's FIN is acknowledged only when the peer has acknowledged everything up to and
// including ours, so that a guest that lingers learns the truth; but at last when it was repeated
// for the third time, since a guest gives up at some time, and forgets the connection while its
// data is still on the way.
//
// # States
//
//	connecting   the host's socket connects; the guest repeats its SYN, which is ignored
//	synReceived  SYN,ACK sent, repeated on a timer; the guest's ACK establishes
//	synSent      a peer on the host's side has asked: its socket is accepted, SYN sent to the
//	             guest and
//	             repeated on a timer, always the same; the guest's SYN,ACK establishes and is
//	             acknowledged before any data. What the peer sends meanwhile stays in its socket.
//	             The
//	             guest's RST resets the peer, a peer that goes away resets the guest. A guest
//	             whose SYN crosses
//	             ours gets SYN,ACK, as from synReceived.
//	established  data both ways; each direction ends by itself (guestFIN, finSent)
//
// An actor ends when both directions have ended and both FINs are acknowledged, on a reset from
// either side, when retransmissions are used up, or after two hours without a segment. In place of
// TIME-WAIT, a connection that has ended well is remembered for a minute (flow.Ended), so that a
// guest that has missed our last acknowledgement gets another one.
//
// A segment is checked in the order of RFC 9293, section 3.10.7: first whether its sequence number
// lies in the window, then RST and SYN as RFC 5961 says, then its acknowledgement. Only what has
// passed these changes anything, also in a handshake; the rest is answered with an acknowledgement.
// Two things are exempt on purpose: a keep-alive or window probe, one byte before the window, says
// what the guest's window is; and before a connection is established a wrong acknowledgement is
// answered with a reset wherever it lies (section 3.5.2), which makes a guest forget an earlier
// connection with the same ports.
//
// # Timers
//
// All are deadlines of one alarm that is moved lazily: a later deadline costs nothing.
//
//	retransmission  unacknowledged data, FIN or SYN,ACK to the guest: what RFC 6298 makes of the
//	                round-trip times measured, at least 400 ms (1 s for SYN,ACK; 3 s for data
//	                after a
//	                SYN that took a repetition), doubled each time up to the host's tcp_rto_max_ms
//	                (120 s), reset after 7
//	SYN             1 s for as many times as the host's tcp_syn_linear_timeouts says (4), then
//	                doubled;
//	                reset, both ways, after tcp_syn_retries more, 7 at most in all
//	window probe    the guest's window is closed: as retransmission, but never gives up while the
//	                guest answers
//	keep-alive      30 s without a segment from the guest: a probe; a guest that forgot the
//	                connection answers RST and so frees it
//	inactivity      2 h
//
// # Limits
//
// A window may go beyond what the socket's send buffer takes for sure only as far as the flow has
// taken credit for that from the budget of all flows (flow.MemoryBudget): the headroom, 128 KiB,
// but no more than a 64th of what is free. It shrinks as more flows hold data. Where there is none,
// the window is what the send buffer has room for, and opens again when that does; a flow whose
// peer reads goes on like that. The first window, 65,535 bytes, shrinks likewise. Should the socket
// take less than its room made expect, and the budget have no more, what comes is not acknowledged,
// and the guest repeats it. What was acknowledged is never dropped.
//
// Of segments out of order a flow keeps 1024, within the window it has advertised, as long as half
// of the budget is free; they are copied while slabs are scarce, and dropped when the guest is
// silent for 30 s: what is not kept it sends again. Neither SACK nor timestamps are offered.
package tcp
