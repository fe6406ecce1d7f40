package flow

// AwaitRoom reports whether the link is too full for another frame of length. If so p is woken,
// with Alarmed, when that has changed. Without a gate the link is never known to be full.
func (e *Env) AwaitRoom(p *Port) bool {
	if e.Backpressure == nil || !e.Backpressure.Full() {
		return false
	}
	if !p.waits.Swap(true) {
		e.waitMu.Lock()
		e.waiting = append(e.waiting, p)
		e.waitMu.Unlock()
		if !e.Backpressure.Full() {
			e.Room() // perhaps told of before p was there
		}
	}
	return true
}

// Room wakes all who wait for room on the link.
func (e *Env) Room() {
	e.waitMu.Lock()
	ports := e.waiting
	e.waiting = nil
	e.waitMu.Unlock()
	for _, p := range ports {
		p.waits.Store(false)
		p.note(noteAlarm)
	}
}
