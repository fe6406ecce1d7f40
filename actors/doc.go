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
// icmp), but for those of one UDP port of the guest's to ordinary hosts, which share one: the table
// finds the first by the guest's end alone, and it adds the others' keys as aliases of its port;
// and but for those that peers begin at a forwarded UDP port, which share one likewise. A panic in
// a flow ends that flow only. Frames that belong to no flow (ARP, neighbour discovery, segments of
// unknown connections) go to the service goroutine, whose mailbox is bounded like all others, so
// that a flood of requests does not slow the flows.
//
// # Where the guest is
//
// What the host opens goes to the guest's address, which a guest may change. Sources of frames are
// candidates only (guestAddr): in a namespace its kernel says which addresses the link's interface
// has, and that is believed at once; elsewhere the candidate and the present address are asked for
// on the link (verifier), and the present one stays while it is answered for. Replies need none of
// that: a flow's frames go to the station that its own frames come from.
//
// # Limits
//
// A hostile guest harms only itself. All that it can make us keep is bounded, and where a bound is
// reached that is counted and logged at most once a minute (flow.Counter).
//
//   - Flows: flow.MaxFlows, and as many as there are descriptors for; three quarters of those are
//     for one kind. A flow costs at most 16 KiB of heap and stacks, sockets apart.
//   - Flows that nobody has answered give way, the oldest first, when there are too many
//     (flow.Evictor): so a SYN flood or a port scan wears itself out, and others still find room. A
//     TCP connection that is established and a UDP flow in use (flow.InUse) never give way; idle
//     ones do where there is nobody else, that which was idle for longest first. Who asked for a
//     connection and has no answer yet is not told, and asks again; others are reset.
//   - Flows that begin: one makes its socket at a time, so that those there are get their turn
//     (admission). 512 KiB of frames wait for that, in slabs; what comes beyond that is lost.
//   - Time: while flows that last move data (flow.BulkLoad), an eighth of a CPU is for flows that
//     begin, another one for peers that a UDP port has not met before, and a sixteenth for each
//     service (flow.Budget).
//   - Data of all flows: Config.Memory. Two thirds of it are slabs of 128 KiB, for frames between
//     reader and actors. The rest is for fragments (package frag) and for what TCP connections hold
//     (package tcp), which a flow takes from flow.MemoryBudget.
//   - Candidates for the guest's address: one under way and one that waits for each of its three
//     addresses, with five questions in 400 ms.
//   - Beside them a fixed part: pools of buffers, the table, the services.
//
// What the kernel keeps in the sockets' buffers comes on top, within its own bounds (tcp_rmem,
// tcp_wmem and tcp_mem, tcp(7)): a guest that does not read or acknowledge leaves data there. One
// that answers nothing is given up after seven repetitions.
//
// # Ending
//
// Run ends when its context ends or the link fails. The link is closed first, which ends the
// readers; then every flow is told to stop, and Run returns when the last goroutine has ended and
// the last descriptor is closed.
package actors
