package forward

import (
	"context"
	"time"

	"go.uber.org/zap"

	"fusilli/autodetect/ports"
	"fusilli/config"
)

// scanPeriod is the time between two looks for bound ports.
const scanPeriod = time.Second

// view is what rules to be scanned for follow: for each direction the ports bound on the side it
// leads to, without our own.
type view [2]ports.Bound

// scan follows the bound ports until ctx ends.
func (f *Forwarder) scan(ctx context.Context) {
	ticker := time.NewTicker(scanPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f.rescan()
		}
	}
}

// rescan brings the listeners in line with the ports that are bound now.
func (f *Forwarder) rescan() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	// All of what is, before any of it changes.
	var now view
	for dir := range now {
		var tcp, udp bool
		for _, r := range f.rules[dir] {
			tcp = tcp || r.Scan && r.Protocol == config.TCP
			udp = udp || r.Scan && r.Protocol == config.UDP
		}
		var err error
		if now[dir], err = f.boundFor(config.Direction(dir), tcp, udp); err != nil {
			f.warn("Couldn't read bound ports: " + err.Error())
			return
		}
	}
	if f.quiet && now == f.last {
		return
	}
	f.last, f.quiet = now, true
	defer f.lookForCircles()
	for dir := range now {
		for _, r := range f.rules[dir] {
			if r.Scan {
				f.follow(config.Direction(dir), r, &now[dir])
			}
		}
	}
}

// follow brings the listeners of one rule in line with bound. f.mu is held.
func (f *Forwarder) follow(dir config.Direction, r *rule, bound *ports.Bound) {
	s := f.sides[from(dir)]
	want := wanted(&r.Rule, bound)
	gone, fresh := r.open, want
	gone.Subtract(&want)
	fresh.Subtract(&r.open)
	if gone != (ports.Set{}) {
		for port := range r.listeners {
			if gone.Has(port) {
				s.detach(r, port)
			}
		}
	}
	before := r.failed
	r.failed = make(map[uint16]error)
	if fresh == (ports.Set{}) {
		return
	}
	for _, failure := range f.listen(s, r, &fresh) {
		f.quiet = false // it is tried again
		if !failure.known(before) {
			f.cfg.Log.Warn(failure.Error())
		}
	}
	f.cfg.Log.Debug("forwarding follows bound ports", zap.Stringer("side", s.which), zap.Stringer("protocol", r.Protocol), zap.Int("ports", len(r.listeners)))
}

// boundFor returns the ports that rules of a direction follow, of the protocols asked for. f.mu is
// held.
func (f *Forwarder) boundFor(dir config.Direction, tcp, udp bool) (ports.Bound, error) {
	var b ports.Bound
	if !tcp && !udp {
		return b, nil
	}
	// What the guest sends from is no service either, whether it has come or gone meanwhile.
	own := f.shared(dir, nil)
	if err := f.scans[to(dir)].Read(&b, true, udp); err != nil {
		return b, err
	}
	own = f.shared(dir, own)
	for _, port := range own {
		b.UDP.Remove(port)
	}
	// What we listen on ourselves, for the opposite direction, is nobody's service.
	for _, r := range f.rules[1-dir] {
		if r.Protocol == config.TCP {
			b.TCP.Subtract(&r.open)
		}
	}
	b.UDP.Union(&b.TCP) // protocols like iperf3's use both
	for _, r := range f.rules[1-dir] {
		if r.Protocol == config.UDP {
			b.UDP.Subtract(&r.open)
		}
	}
	return b, nil
}

// shared adds to list the UDP ports, on the side that rules of a direction lead to, that flows of
// the guest's have.
func (f *Forwarder) shared(dir config.Direction, list []uint16) []uint16 {
	if to(dir) != Host || f.cfg.Tap == nil {
		return list
	}
	return append(list, f.cfg.Tap.Shared()...)
}

// wanted are the ports r is to listen on while bound are bound on the other side.
func wanted(r *config.Rule, bound *ports.Bound) ports.Set {
	set := &bound.TCP
	if r.Protocol == config.UDP {
		set = &bound.UDP
	}
	var want ports.Set
	for i := range r.Ports.Len() {
		if set.Has(r.To + uint16(i)) {
			want.Add(r.Ports.First + uint16(i))
		}
	}
	return want
}

func fill(set *ports.Set, r config.PortRange) {
	for p := int(r.First); p <= int(r.Last); p++ {
		set.Add(uint16(p))
	}
}
