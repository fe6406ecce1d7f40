package logging

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	limitBurst  = 5           // messages a window
	limitWindow = time.Second // a new one starts when more than this has passed
	limitSites  = 512         // messages remembered; constant texts stay far below it
)

// Limit returns a logger that shows five of the same message a second. The sixth is
// replaced by a note that more follow, and the number left out is told when the message
// is next shown. Messages are the same if level and text are: what differs from one to
// the next belongs into fields. It is for everything that traffic can cause. Debug and trace
// messages, which nobody asks for who does not want all of them, are not limited.
func Limit(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return &limitCore{Core: c, sites: &sites{m: make(map[site]*window)}}
	}))
}

type site struct {
	level   zapcore.Level
	message string
}

// window counts one site's messages since start.
type window struct {
	start time.Time
	count int
}

type sites struct {
	mu sync.Mutex
	m  map[site]*window
}

// limitCore decides in Check, so that a message left out costs neither its fields nor
// its encoding.
type limitCore struct {
	zapcore.Core
	sites *sites
}

func (c *limitCore) With(fields []zapcore.Field) zapcore.Core {
	return &limitCore{Core: c.Core.With(fields), sites: c.sites}
}

func (c *limitCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level < zapcore.InfoLevel || !c.Enabled(e.Level) {
		return c.Core.Check(e, ce)
	}
	count, suppressed := c.sites.count(e)
	if suppressed > 0 {
		c.note(e, fmt.Sprintf("(suppressed %d similar messages)", suppressed))
	}
	switch {
	case count <= limitBurst:
		return c.Core.Check(e, ce)
	case count == limitBurst+1:
		c.note(e, "(suppressing further similar messages)")
	}
	return ce
}

// note writes a line of the limiter's own, beside e.
func (c *limitCore) note(e zapcore.Entry, text string) {
	c.Core.Write(zapcore.Entry{Level: e.Level, Time: e.Time, Message: text}, nil)
}

// count adds e to its window. It returns e's number in it, from 1, and, when e opens a
// new one, how many messages the last one left out.
func (s *sites) count(e zapcore.Entry) (n, suppressed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := site{e.Level, e.Message}
	w := s.m[key]
	if w == nil {
		if len(s.m) >= limitSites {
			clear(s.m)
		}
		w = &window{start: e.Time}
		s.m[key] = w
	}
	if e.Time.Sub(w.start) > limitWindow {
		suppressed = max(w.count-limitBurst, 0)
		w.start, w.count = e.Time, 0
	}
	w.count++
	return w.count, suppressed
}
