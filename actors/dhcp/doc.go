// Package dhcp is the DHCP server on a guest's link (RFC 2131, RFC 2132). It has one address to
// give, always the same, for ever, to whoever asks.
//
// # Theory of operation
//
// There are no leases and hence no state: a Server is made once from what the guest is to be told,
// and a reply is computed from the request alone. A DISCOVER is answered with an OFFER, or at once
// with an ACK if the client takes that (rapid commit, RFC 4039), a REQUEST and a request of BOOTP
// (RFC 951, no message type) with an ACK. Nobody is refused: a guest that asks for an address it
// had elsewhere is told the right one, and a NAK would only send it round once more. What only
// gives an address back, or asks for parameters alone, gets no reply.
//
// # Options
//
// All options are sent whether they were asked for or not, those asked for first and in the
// client's order, since there are clients that look for some where they put them. The message type
// precedes all others unless the client has it elsewhere. The area for options is what every client
// has room for (RFC 2131, 2: a message of 576 bytes); what does not fit beside what a guest cannot
// do without is left out when the Server is made.
//
// The option that lets options go on in other fields (overload, RFC 2132, 9.3) is not followed.
package dhcp
