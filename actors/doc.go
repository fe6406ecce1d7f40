// Package actors is the translator between a guest's link and the host's sockets: the reader that
// takes frames off the link and hands them to flows, the place where flows are made, and the
// services a link needs.
//
// # Theory of operation
//
// One reader goroutine for each queue of the link reads frames into a slab until the link runs
// dry, parses each where it lies, and finds its flow in the table. Frames of one flow that follow
// each other make a run, which is offered to the flow's mailbox in one piece. The reader never
// waits for anybody: a mailbox that is full loses the run, an empty pool of slabs loses the frame,
// and both are counted.
//
// A frame that opens a flow makes one, in Engine.create and nowhere else, so that limits, counters
// and rules are applied to all of them. Every flow is a goroutine of its own (packages tcp, udp and
// icmp). A panic in a flow ends that flow only. Frames that belong to no flow (ARP, neighbour
// discovery, segments of unknown connections) go to the service goroutine, whose mailbox is bounded
// like all others, so that a flood of requests does not slow the flows.
//
// # Ending
//
// Run ends when its context ends or the link fails. The link is closed first, which ends the
// readers; then every flow is told to stop, and Run returns when the last goroutine has ended and
// the last descriptor is closed.
package actors
