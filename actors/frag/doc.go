// Package frag puts together the fragments of IPv4 (RFC 791) and IPv6 (RFC 8200, section 4.5)
// packets that a guest sends. It is pure: fragments in, whole frames out.
//
// # Theory of operation
//
// A datagram is known by its addresses and its identification, over IPv4 also by its protocol. Its
// fragments may come in any order; a Table keeps their bytes where they will lie in the whole
// frame, and which ranges it has. The IP header of the whole is a new one with what the first
// fragment says: options and extension headers in front of the fragment header are left out.
//
// A fragment that brings the same bytes again is ignored. One that overlaps others in any other
// way, or that contradicts what is known of the length, makes an end of the whole datagram and of
// all that is still to come of it (RFC 5722): there is no honest reason for that. If a router on
// the guest's side has marked one fragment for congestion, the whole is marked (RFC 3168, section
// 5.3).
//
// # Limits
//
// A Table holds at most MaxDatagrams incomplete datagrams, each in a buffer for the longest packet:
// 4.1 MiB altogether. One more takes the place of the oldest. What is not complete after Timeout is
// forgotten. A datagram may be in maxRanges separate pieces at a time; what comes in order is one
// piece. Nobody is told about what was lost: the sender's own time-out is shorter than an answer's.
package frag
