// Package dhcpv6 is the DHCPv6 server on a guest's link (RFC 8415). It has one address to give,
// always the same, for ever, to whoever asks.
//
// # Theory of operation
//
// There are no leases and hence no state but the identifier (DUID) the Server makes itself when it
// is made. A reply is computed from the request alone. A client finds the server with SOLICIT and
// takes the address with REQUEST; RENEW, REBIND and CONFIRM get the same answer again;
// INFORMATION-REQUEST is for clients that only want to know resolvers and search list. What gives
// an address back gets no reply.
//
// The first identity association for addresses (IA_NA) gets the address. Clients that ask for more,
// for temporary addresses (IA_TA) or for prefixes (IA_PD), are told for each that there are none,
// so that they do not wait. A client that brings an address it had elsewhere (REQUEST, RENEW,
// CONFIRM) is told that it is not on link, and starts again.
//
// # What differs from RFC 8415
//
// A REPLY always has an IA_NA, whatever was asked. REBIND is answered also if it names a server, as
// long as that is us. There is no rapid commit and no relay.
package dhcpv6
