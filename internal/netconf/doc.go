// Package netconf gives a guest's network namespace its configuration: the loopback
// interface up, and the tap with its MAC address, link-layer size, addresses and routes,
// the latter copied from the host's own where that is wanted.
//
// It works once, over rtnetlink, on the thread that calls it, which must be in the
// guest's namespace already. Creating the tap, entering the namespace and choosing what
// to copy are others' tasks (package autodetect reads it).
//
// Copying is best effort. An address or a route that the guest's kernel does not take is
// left out with a warning, and if the default route is among them a plain one is put in
// its place. It fails only where nothing useful is left.
package netconf
