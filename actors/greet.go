package actors

// Greet asks the guest for the link-layer address of the addresses it should have. Its answers show
// the reader where frames are to go; a guest that was there before need not send anything first.
// From then on router advertisements are sent also without being asked for, now and then, and it is
// told of new neighbours. It may be called by anyone from New on.
func (e *Engine) Greet() {
	e.greeted.Store(true)
	e.guestAddr.reconnected()
	buf := e.env.Buffer()
	defer e.env.PutBuffer(buf)
	send := func(n int) {
		if n > 0 && e.env.Link.Write(buf[:n]) != nil {
			e.env.Counters.LinkDropped.Add(1)
		}
	}
	r := e.responder()
	if e.cfg.V4 {
		send(r.AskARP(buf[:]))
	}
	if e.cfg.V6 {
		send(r.AskNDP(buf[:]))
		if !r.NoRA {
			e.adverts.greeted()
		}
	}
}
