package actors

// Greet asks the guest for the link-layer address of the addresses it should have. Its answers show
// the reader where frames are to go; a guest that was there before need not send anything first. From
// then on router advertisements are sent also without being asked for, now and then. It may be called
// by anyone from New on.
func (e *Engine) Greet() {
	buf := e.env.Buffer()
	defer e.env.PutBuffer(buf)
	send := func(n int) {
		if n > 0 && e.env.Link.Write(buf[:n]) != nil {
			e.env.Counters.LinkDropped.Add(1)
		}
	}
	if e.cfg.V4 {
		send(e.cfg.Neigh.AskARP(buf[:]))
	}
	if e.cfg.V6 {
		send(e.cfg.Neigh.AskNDP(buf[:]))
		if !e.cfg.Neigh.NoRA {
			e.adverts.greeted()
		}
	}
}
