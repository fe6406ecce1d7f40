// Package vhost is the back end of a vhost-user network device: a link whose frames are in the
// guest's memory. The hypervisor is the front end. It connects to a UNIX socket, passes on the
// memory and the descriptors that ring for work, and is out of the way then.
//
// The protocol is QEMU's (docs/interop/vhost-user.rst), the rings are those of virtio 1.2 (split
// virtqueues, 2.7, and the network device, 5.1).
//
// # Theory of operation
//
// A Device outlives its front ends. There is one at a time, a session: a goroutine that reads its
// messages and answers them, and what they have set up: memory, rings, descriptors. When the
// session ends, all of that is given back, and the device waits for the next front end. Frames
// written meanwhile are dropped.
//
// The reader takes frames from the transmit ring: it copies the headers and the payload of a chain
// of descriptors once, and returns the chain. It looks at the ring until that is empty, then asks
// for a notification (EVENT_IDX or the flag of the ring), looks once more, and sleeps. The
// descriptor that the guest rings (kick) is in an epoll set that is itself in Go's poller, and is
// never read: a ring is an edge, and the counter tells nothing.
//
// A writer copies its frame to buffers of the receive ring. Several may do so at the same time:
// under the ring's lock each takes chains for its frame and later returns them; the copying between
// is not under the lock. Without enough buffers nothing is taken, and the link is full until the
// guest rings for the receive ring.
//
// A frame of up to 64 KiB is one chain, or many with mergeable buffers. What the guest has not
// negotiated is done in software (tapio.WriteSoft).
//
// # Memory that others write to
//
// The guest and the front end can change the shared memory at any time, and Go's memory model says
// nothing about them. Indices of rings are read and written by atomic operations on the word they
// are in, entries and descriptors are copied before they are checked, frames are copied before they
// are parsed. Nothing is read twice. The race detector does not see this memory.
//
// A front end may cut its file off, so that any access faults. Each access runs with
// debug.SetPanicOnFault; the panic ends the session.
//
// # Violations
//
// A message that is malformed, or a guest that breaks the rules of a ring (an address outside its
// memory, a loop of descriptors, a read-only buffer to receive into), ends the session with one
// line in the log. The process, the listener and the flows go on. Descriptors that came with a
// rejected message are closed.
package vhost
