package actors

import (
	"fusilli/actors/flow"
	"fusilli/actors/tcp"
	"fusilli/tapio/frame"
)

// again takes run, of segments that the guest has sent to a connection that has ended: if there is
// a SYN among them, that begins a new one.
func (e *Engine) again(run flow.Run) {
	var v flow.View
	var pkt frame.Packet
	if !tcp.FindOpening(&run) {
		run.Release()
		return
	}
	at := run
	if !at.Next(&v) || frame.Parse(v.Frame, &pkt) != frame.OK {
		run.Release()
		return
	}
	k := keyOf(&pkt)
	p := e.table.Lookup(&k)
	if p != nil && p.Gone() {
		e.table.Remove(p)
		p = nil
	}
	if p == nil {
		p = e.create(&k, v.Frame, &pkt)
	}
	if p == drop || p.Gone() || !p.Offer(run) {
		run.Release()
	}
}
