package app

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/frag"
	"fusilli/splice"
	"fusilli/tapio/frame"
)

// headerEvery is the number of rows of the table of --stats between two headers.
const headerEvery = 20

// count is one column of that table: something that is only ever added to, or else a level, which
// goes up and down and makes no row by itself.
type count struct {
	name  string // at most six characters
	load  func() uint64
	level bool
}

// levels are the columns that say what is in use.
func levels() []count {
	return []count{
		{"gorout", func() uint64 { return uint64(runtime.NumGoroutine()) }, true},
		{"heap", heap, true}, // bytes
	}
}

// heap is the size of all objects in memory. Package runtime/metrics would tell it without a stop
// of the program, some 50 µs, but takes 0.3 ms or more at each start, whether it is asked or not.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// flowCounts are the columns that come from the engine.
func flowCounts(c *flow.Counters) []count {
	return []count{
		{name: "tcp", load: c.TCP.Load},   // flows made
		{name: "udp", load: c.UDP.Load},   // flows made
		{name: "icmp", load: c.ICMP.Load}, // flows made
		{name: "noflow", load: c.NoFlow.Load},
		{name: "reject", load: func() (n uint64) {
			for i := range c.Dropped {
				n += c.Dropped[i].Load()
			}
			return n
		}},
		{name: "lost", load: func() uint64 {
			return c.MailboxFull.Load() + c.SlabsOut.Load() + c.ServiceDrops.Load() + c.LinkDropped.Load()
		}},
		{name: "full", load: func() uint64 { return c.TableFull.Load() + c.NotAdmitted.Load() + c.NoSocket.Load() }},
		{name: "faults", load: c.Panics.Load},
	}
}

// spliceCounts are those that come from a splicer, nil for none.
func spliceCounts(s *splice.Splicer) []count {
	if s == nil {
		return nil
	}
	c := s.Counters()
	return []count{
		{name: "spltcp", load: c.TCP.Load}, // flows made
		{name: "spludp", load: c.UDP.Load}, // flows made
		{name: "splref", load: c.Refused.Load},
		{name: "spllos", load: c.Lost.Load},
		{name: "splerr", load: func() uint64 { return c.Full.Load() + c.Failed.Load() + c.Panics.Load() }},
	}
}

// dumpCounts logs what an engine and a splicer have counted, for those who debug. Either may be
// nil.
func dumpCounts(log *zap.Logger, c *flow.Counters, s *splice.Splicer) {
	if !log.Core().Enabled(zap.DebugLevel) {
		return
	}
	var fields []zap.Field
	add := func(name string, n uint64) {
		if n > 0 {
			fields = append(fields, zap.Uint64(name, n))
		}
	}
	if c != nil {
		add("tcp", c.TCP.Load())
		add("udp", c.UDP.Load())
		add("icmp", c.ICMP.Load())
		add("no_flow", c.NoFlow.Load())
		add("mailbox_full", c.MailboxFull.Load())
		add("slabs_out", c.SlabsOut.Load())
		add("services_full", c.ServiceDrops.Load())
		add("bad_neighbour", c.BadNeigh.Load())
		add("bad_dhcp", c.BadDHCP.Load())
		add("bad_dhcpv6", c.BadDHCPv6.Load())
		add("link_dropped", c.LinkDropped.Load())
		for i := range c.Fragments {
			add("fragments_"+frag.Outcome(i).String(), c.Fragments[i].Load())
		}
		add("fragments_expired", c.FragmentsExpired.Load())
		add("fragments_evicted", c.FragmentsEvicted.Load())
		add("table_full", c.TableFull.Load())
		add("gave_way", c.Evicted.Load())
		add("idle_gave_way", c.EvictedIdle.Load())
		add("crowded", c.NotAdmitted.Load())
		add("no_socket", c.NoSocket.Load())
		add("strangers", c.Filtered.Load())
		add("held_full", c.HeldFull.Load())
		add("early_full", c.EarlyFull.Load())
		add("held_refused", c.HeldRefused.Load())
		add("unasked", c.Unasked.Load())
		add("panics", c.Panics.Load())
		for i := range c.Dropped {
			add("dropped_"+frame.Reason(i).String(), c.Dropped[i].Load())
		}
	}
	if s != nil {
		c := s.Counters()
		add("spliced_tcp", c.TCP.Load())
		add("spliced_udp", c.UDP.Load())
		add("spliced_bytes", c.Bytes.Load())
		add("spliced_refused", c.Refused.Load())
		add("spliced_full", c.Full.Load())
		add("spliced_failed", c.Failed.Load())
		add("spliced_lost", c.Lost.Load())
		add("spliced_gave_way", c.Evicted.Load())
		add("spliced_panics", c.Panics.Load())
	}
	log.Debug("Counters at the end", fields...)
}

// printStats writes a row of counts to w each time delay has passed and something has happened,
// until ctx ends.
func printStats(ctx context.Context, w io.Writer, delay time.Duration, counts []count) {
	tick := time.NewTicker(delay)
	defer tick.Stop()
	last := make([]uint64, len(counts))
	for rows := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		line, changed := "", false
		for i, c := range counts {
			n := c.load()
			changed = changed || n != last[i] && !c.level
			last[i] = n
			line += fmt.Sprintf(" %6s", short(n))
		}
		if !changed {
			continue
		}
		line += "\n"
		if rows%headerEvery == 0 {
			head := ""
			for _, c := range counts {
				head += fmt.Sprintf(" %6s", c.name)
			}
			line = head + "\n" + line
		}
		rows++
		if _, err := io.WriteString(w, line); err != nil {
			return // nobody looks at it any more
		}
	}
}

// short writes n in at most six characters.
func short(n uint64) string {
	for _, unit := range []string{"", "k", "M", "G", "T", "P"} {
		if text := strconv.FormatUint(n, 10) + unit; len(text) <= 6 {
			return text
		}
		n /= 1000
	}
	return "many"
}
