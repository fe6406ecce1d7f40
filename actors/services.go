package actors

import (
	"fusilli/actors/flow"
	"fusilli/actors/tcp"
	"fusilli/tapio/frame"
)

// serviceMailbox is the number of runs of frames that wait for the services.
const serviceMailbox = 64

// serve is the goroutine that answers what belongs to no flow, until the reader has ended.
func (e *Engine) serve() {
	for r := range e.services {
		var v flow.View
		for r.Next(&v) {
			e.answer(&v)
		}
		r.Release()
	}
}

// answer sends the reply to one frame, if there is one.
func (e *Engine) answer(v *flow.View) {
	var pkt frame.Packet
	if frame.Parse(v.Frame, &pkt) != frame.OK {
		return
	}
	buf := e.env.Buffer()
	defer e.env.PutBuffer(buf)
	n := 0
	switch pkt.Kind {
	case frame.ARP:
		if e.cfg.V4 {
			n = e.cfg.Neigh.ARP(v.Frame, buf[:])
		}
	case frame.NDP:
		if e.cfg.V6 {
			n = e.cfg.Neigh.NDP(&pkt, v.Frame, buf[:])
		}
	case frame.TCP:
		e.env.Counters.NoFlow.Add(1)
		n = tcp.Refuse(e.env, v.Frame, &pkt, buf[:])
	}
	if n > 0 && e.env.Link.Write(buf[:n]) != nil {
		e.env.Counters.LinkDropped.Add(1)
	}
}
