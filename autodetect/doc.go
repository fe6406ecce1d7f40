// Package autodetect finds out what the host has: the interface whose view of the
// network a guest is given, its addresses, routes and link-layer size, the resolvers in
// resolv.conf, and the kernel's own limits and timeouts.
//
// Everything is read once, without privileges, and handed over as plain values that
// nobody changes afterwards; a host that roams is detected again and the value replaced.
// For each address family the interface with the first default route becomes the
// template. A family without a usable template is in local mode: it gets fixed
// link-local addresses, so that guest and host can still talk. What is worth telling the
// user comes back as text and is not logged here.
//
// The package does not decide what the guest sees beyond that (mapping of addresses,
// announcements), and it configures nothing; package netconf does.
package autodetect
