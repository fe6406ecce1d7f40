// Package flow is what every flow's actor stands on: the key a flow is found by, the table that
// finds it, the slabs frames arrive in, and the port: an actor's mailbox together with its host
// socket.
//
// # Theory of operation
//
// The tap reader reads frames into a slab, one after another, and hands each run of frames that
// belong to the same flow to that flow's actor through its port. Nothing is copied and nothing is
// allocated; a slab counts the runs that still point into it and goes back to its pool when the
// last one is released.
//
// An actor is one goroutine. It sleeps in exactly one place, Port.Delay, and three things wake it:
// mail (or an alarm, or the engine's stop), readiness of its socket, and a time limit. Go's poller
// wakes a goroutine that waits for a descriptor on the very thread that saw the event, which is
// the cheapest wake-up there is; but a goroutine in the poller cannot listen to a channel. So the
// doorbell is the descriptor's read deadline: whoever leaves mail moves the deadline into the
// past, the poller readies the actor at once, and the actor takes the deadline away again before
// it sleeps the next time. The port's state makes sure that only mail for a sleeping actor rings,
// and that no ring is lost: an actor announces that it will sleep, looks into its mailbox once
// more, and only then sleeps.
//
// Readiness from the poller is edge-triggered and entering the wait forgets an edge that came
// before. An actor therefore tries its socket inside the wait (the function given to Open), after
// it was armed and before it sleeps: either it finds data, or the edge is still to come.
//
// Writability is rarely waited for (a socket that connects, a full send buffer); then a second
// goroutine waits for it and leaves a note like everybody else.
//
// # Limits
//
// A mailbox holds mailboxSize runs. A run that finds it full is dropped and counted, as a network
// card drops what its ring cannot hold. The pool hands out at most its configured number of slabs;
// when none is left the reader drops frames until actors have caught up.
//
// Limit bounds flows and their descriptors, Evictor those that are not answered: 8192 half-open TCP
// connections and 4096 flows of UDP each way, 1024 echo flows, but a quarter of the limit at most.
package flow
