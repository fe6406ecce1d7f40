// Package pesto changes what a running pasta or passt forwards: the server of the control socket
// (--conf-path), and its client, the program pesto.
//
// # Theory of operation
//
// The server begins: it greets a client with its tables of rules, HOST for what it listens for on
// the host and, if the guest is a namespace, SPLICE for what it listens for in there, and with what
// may be in each. The client answers with whole tables, or hangs up. Tables that the client does
// not send become empty; one that comes in parts has the rules of all parts. What the client asks
// for is read to its end and checked as the command line's rules are before any of it is done; if
// anything is wrong with it, nothing is. Then the server closes the connection. There is no other
// answer: which ports could not be had is in the server's log. Our own client waits for that close,
// so that what was asked for has happened when it ends.
//
// A client has five seconds for all of that. Clients are served one after the other, others wait to
// be accepted, and none of it concerns the goroutines that carry flows.
//
// # Format
//
// That of the programs of these names, so that either end can be another's: integers are
// big-endian, names padded with NUL.
//
//	greeting   "basil:s" NUL, u32 version (2), u32 size of a table's name (128), u32 of an
//	           interface's (16),
//	           tables, u8 0
//	table      u8 number, name, u32 capabilities, u32 number of rules, rules
//	answer     for each table: u8 number, u32 number of rules, rules; then u8 0
//	rule       address to listen on (16 bytes), target address (16), interface (16), u16 first
//	           port,
//	           u16 last, u16 first port of the target, u8 IP protocol, u8 flags
//
// An IPv4 address is in its IPv6 form (RFC 4291, 2.5.5.2); an unspecified target is none. A rule
// for all addresses has "::" and the flag of both IP versions. Where the capabilities have one
// version only, a client sends "::ffff:0.0.0.0" or "::" without that flag: other servers refuse the
// flag there. Ours takes it to mean the one version there is.
package pesto
