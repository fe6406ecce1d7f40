package actors

import (
	"context"
	"time"

	"fusilli/actors/flow"
	"fusilli/actors/frag"
	"fusilli/tapio/frame"
)

// sweep is how often fragments are looked for whose time is over, while there are any.
const sweep = 5 * time.Second

// fragments is the actor that puts fragments from the guest together, and hands what is whole to
// its flow as the reader would have. reassemble's goroutine is the only one that touches it.
type fragments struct {
	e     *Engine
	table *frag.Table
	out   reader
	slab  *flow.Slab // where whole frames go; nil: none is held
}

// reassemble is the goroutine of that service.
func (e *Engine) reassemble(ctx context.Context) {
	f := &fragments{e: e, table: frag.New(e.datagrams), out: reader{e: e}}
	p := e.services.fragments
	defer func() {
		p.Close()
		f.letGo()
	}()
	tick := time.NewTimer(sweep)
	defer tick.Stop()
	tick.Stop()
	sweeping := false
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-p.Inbox():
			e.serveRun(&r, nil, f.take)
			if !sweeping {
				sweeping = true
				tick.Reset(sweep)
			}
		case <-tick.C:
			f.table.Expire(time.Duration(flow.Now()))
			f.count()
			f.letGo()
			if sweeping = f.table.Len() > 0; sweeping {
				tick.Reset(sweep)
			}
		}
	}
}

// take is the service's answer to a frame: none, but what it makes whole goes on.
func (f *fragments) take(v *flow.View, pkt *frame.Packet, _ []byte) int {
	whole, o := f.table.Add(v.Frame, pkt, time.Duration(flow.Now()))
	f.e.env.Counters.Fragments[o].Add(1)
	f.count()
	if o == frag.Whole {
		f.deliver(whole)
	}
	return 0
}

// deliver hands on the frame b.
func (f *fragments) deliver(b []byte) {
	var pkt frame.Packet
	if why := frame.Parse(b, &pkt); why != frame.OK {
		f.e.env.Counters.Dropped[why].Add(1)
		return
	}
	room := f.room()
	if room == nil {
		f.e.env.Counters.SlabsOut.Hit(f.e.cfg.Log, "Frames come faster than they are dealt with, some are lost")
		return
	}
	b = room[:copy(room, b)]
	f.out.sort(f.slab, b, &pkt)
	f.out.deliver(f.slab)
}

// room returns where a frame can go in f.slab, nil if there is none to be had.
func (f *fragments) room() []byte {
	if f.slab != nil {
		if f.slab.Idle() {
			f.slab.Reset()
		}
		if room := f.slab.Room(); room != nil {
			return room
		}
		f.letGo()
	}
	if f.slab = f.e.pool.Get(); f.slab == nil {
		return nil
	}
	return f.slab.Room()
}

// letGo gives the slab back, if one is held.
func (f *fragments) letGo() {
	if f.slab != nil {
		f.slab.Release()
		f.slab = nil
	}
}

// count carries over what the table has counted itself.
func (f *fragments) count() {
	c := &f.e.env.Counters
	c.FragmentsExpired.Add(f.table.Expired)
	f.table.Expired = 0
	for ; f.table.Evicted > 0; f.table.Evicted-- {
		c.FragmentsEvicted.Hit(f.e.cfg.Log, "Too many incomplete datagrams, the oldest give way to others")
	}
}
