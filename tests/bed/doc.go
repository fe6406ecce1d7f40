// Package bed makes the networks that the end-to-end tests, the benchmark and the
// demonstration run in, and takes them down without a trace.
//
// # Isolation
//
// [Isolate] runs the calling program a second time in user (when it is not root), mount,
// PID and network namespaces of its own, with a small init process above it. The kernel
// ends every process of a PID namespace with its init, and network namespaces end with
// their last holder, so nothing outlives a panic, a timeout or a kill. Within, /run is an
// empty file system and /etc/resolv.conf names [FarAddr4]. Namespaces have no names and
// are held by descriptors: several programs can do this at the same time.
//
// # Topology
//
// [New] makes two network namespaces joined by a link:
//
//	target ─ tap ─ translator │ host 10.77.0.2, fd77::2 ─ link ─ 10.77.0.1, fd77::1 far
//
// host is where a translator runs, far is the remote peer and the default gateway of host.
// The link is a veth pair, or a [Link] with a rate, a delay and loss. [Bed.Target] adds
// the namespace to be connected: it belongs to a process of an unprivileged user.
//
// # Running things
//
// [NS.Do] runs a function with its thread inside a network namespace: a socket opened there
// stays there whichever goroutine uses it later. [NS.Start] runs a program there.
// [Tree] tells what a process and its descendants consume.
//
// The package does not know what a translator is; its users start one and wait for it.
package bed
