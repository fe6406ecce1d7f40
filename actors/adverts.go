package actors

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Router advertisements that nobody has asked for are so far apart (RFC 4861, 6.2.1 and 6.2.4).
const (
	minAdvertInterval = 200 * time.Second
	maxAdvertInterval = 600 * time.Second
)

// adverts decides when router advertisements are due that nobody has asked for: from one interval
// after the guest was greeted on. It belongs to the service that sends them, but for ready; a nil
// one is for a service that sends nothing unasked.
type adverts struct {
	ready chan struct{} // filled by who greets
	timer *time.Timer
}

func newAdverts() adverts { return adverts{ready: make(chan struct{}, 1)} }

// greeted notes that there is a guest. It may be called by anyone and does not block.
func (a *adverts) greeted() {
	select {
	case a.ready <- struct{}{}:
	default: // one is enough
	}
}

// begin returns what the service waits for.
func (a *adverts) begin() (ready <-chan struct{}, due <-chan time.Time) {
	if a == nil {
		return nil, nil
	}
	a.timer = time.NewTimer(maxAdvertInterval)
	a.timer.Stop()
	return a.ready, a.timer.C
}

func (a *adverts) end() {
	if a != nil {
		a.timer.Stop()
	}
}

// next chooses when the next one is due, and returns in how long that is.
func (a *adverts) next() time.Duration {
	d := minAdvertInterval + rand.N(maxAdvertInterval-minAdvertInterval)
	a.timer.Reset(d)
	return d
}

// advertise sends an advertisement; the next one follows in d. A link without a guest loses it, and
// then it was none.
func (e *Engine) advertise(d time.Duration) {
	buf := e.env.Buffer()
	defer e.env.PutBuffer(buf)
	r := e.responder()
	n := r.Announce(buf[:])
	if n > 0 && e.env.Link.Write(buf[:n]) == nil {
		e.cfg.Log.Info(fmt.Sprintf("NDP: sending unsolicited RA, next in %ds", d/time.Second))
	}
}
