package forward

import (
	"net/netip"
	"os"

	"fusilli/autodetect/ports"
	"fusilli/config"
)

// Replace makes inbound and outbound the rules, in place of those there are. Flows that have begun
// go on, and a port that is listened on by both the old rules and the new ones is never closed,
// even if it comes to lead elsewhere.
//
// If nothing is returned but an error, that is what is wrong with the rules, and nothing has
// changed. Otherwise the rules are in force, and the failures are ports that could not be had; with
// an error, a rule insists on some of them. They are tried again by the next Replace.
func (f *Forwarder) Replace(inbound, outbound []config.Rule) ([]Failure, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, os.ErrClosed
	}
	lists := [...][]config.Rule{config.Inbound: inbound, config.Outbound: outbound}
	var now view
	for dir, list := range lists {
		tcp, udp, err := f.check(config.Direction(dir), list)
		if err != nil {
			return nil, err
		}
		// All of what is, before any of it changes.
		if now[dir], err = f.boundFor(config.Direction(dir), tcp, udp); err != nil {
			return nil, err
		}
	}
	if err := f.refuseCircles(lists); err != nil {
		return nil, err
	}
	defer f.lookForCircles()
	var failures []Failure
	var failure error
	for dir, list := range lists {
		s := f.sides[from(config.Direction(dir))]
		if s == nil {
			continue // and no rules for it
		}
		failed, err := f.replace(s, config.Direction(dir), list, &now[dir])
		failures = append(failures, failed...)
		if failure == nil {
			failure = err
		}
	}
	f.quiet = false
	return failures, failure
}

// socketKind is what sockets of one port have in common if they can take each other's place.
type socketKind struct {
	protocol config.Protocol
	listen   netip.Addr
	ifName   string
}

func kindOf(r *rule) socketKind { return socketKind{r.Protocol, r.Listen, r.IfName} }

// replace makes list the rules of a direction. f.mu is held.
func (f *Forwarder) replace(s *side, dir config.Direction, list []config.Rule, bound *ports.Bound) ([]Failure, error) {
	old := make(map[config.Rule]*rule, len(f.rules[dir]))
	for _, r := range f.rules[dir] {
		old[r.Rule] = r
	}
	made := make([]*rule, len(list))
	want := make([]ports.Set, len(list))
	for i, cr := range list {
		if made[i] = old[cr]; made[i] == nil {
			made[i] = &rule{Rule: cr, listeners: make(map[uint16]*listener), failed: make(map[uint16]error)}
		}
		delete(old, cr)
		if cr.Scan {
			want[i] = wanted(&cr, bound)
		} else {
			fill(&want[i], cr.Ports)
		}
	}
	// What is left in old goes: to a new rule that wants such a socket, or away.
	gone := make(map[socketKind][]*rule)
	for _, r := range old {
		gone[kindOf(r)] = append(gone[kindOf(r)], r)
	}
	for i, r := range made {
		for _, from := range gone[kindOf(r)] {
			for port := range from.listeners {
				if want[i].Has(port) && !r.open.Has(port) {
					s.adopt(r, from, port)
				}
			}
		}
	}
	for _, r := range old {
		f.unlisten(s, r)
	}
	f.rules[dir] = made

	var failures []Failure
	var failure error
	for i, r := range made {
		if r.Scan && len(r.failed) > 0 {
			continue // the scan tries them again, and says so
		}
		missing, before := want[i], r.failed
		missing.Subtract(&r.open)
		if missing == (ports.Set{}) {
			continue
		}
		r.failed = make(map[uint16]error)
		for _, failed := range f.listen(s, r, &missing) {
			if !r.Weak || !failed.known(before) {
				failures = append(failures, failed)
			}
		}
		switch {
		case len(r.failed) == 0 || failure != nil || r.Weak && r.Scan:
		case !r.Weak:
			failure = errListen
		case len(r.listeners) == 0:
			failure = errAll(s.which, &r.Rule)
		}
	}
	return failures, failure
}

// adopt makes the listener of port of old that of r.
func (s *side) adopt(r, old *rule, port uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := old.listeners[port]
	if l == nil {
		return
	}
	delete(old.listeners, port)
	old.open.Remove(port)
	// What is being received from l is not disturbed: it goes where it was to go.
	heir := &listener{rule: r, socket: l.socket, slot: l.slot, port: port}
	if heir.inbound != nil {
		heir.inbound.now.Store(heir)
	}
	s.listeners[l.slot] = heir
	r.listeners[port] = heir
	r.open.Add(port)
	if heir.inbound == nil {
		s.watch(heir) // if l rests, nobody else will wake it
	}
}
