// Package logging makes the program's zap loggers: one plain line a message on
// standard error, with the levels the command line knows.
//
// A line is the message and its fields, nothing else, because people and the programs
// that call us read it as it is. With debug output each line begins with the time
// since the start of the program. Writing never holds a caller up for long: lines go
// through a bounded queue, and what does not fit is dropped and counted. Limit keeps
// a message that traffic can cause from flooding the output.
package logging

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// TraceLevel is the level of the per-packet messages that --trace adds to debug.
const TraceLevel = zapcore.DebugLevel - 1

// Options say what a logger shows and how.
type Options struct {
	// Level is the least level shown: zapcore.InfoLevel by default, WarnLevel with
	// -q, DebugLevel with -d, TraceLevel with --trace. Stamps are shown from
	// DebugLevel down.
	Level zapcore.Level

	// Origin is the time stamps count from. Its monotonic reading is used.
	Origin time.Time
}

// Logger is a zap logger and the output it writes to. The output is the Logger's own:
// nobody else closes it.
type Logger struct {
	*zap.Logger
	out *queue
}

// New returns a logger that writes to w. w is not closed, and is used by one goroutine
// at a time, until Close returns true.
func New(w io.Writer, o Options) *Logger {
	q := newQueue(w)
	core := zapcore.NewCore(newEncoder(o), q, o.Level)
	return &Logger{Logger: zap.New(core), out: q}
}

// Mute makes every later line vanish. It is for a process whose standard error now
// belongs to somebody else.
func (l *Logger) Mute() { l.out.mute() }

// Close writes what is queued, and reports whether it all got out before the short time
// a program may take to end. The logger may be used afterwards, but shows nothing.
func (l *Logger) Close() bool { return l.out.close() }

// newEncoder lays a line out: a stamp if asked for, the message, the fields as JSON.
func newEncoder(o Options) zapcore.Encoder {
	c := zapcore.EncoderConfig{
		MessageKey:       "message",
		ConsoleSeparator: " ",
		EncodeDuration:   zapcore.StringDurationEncoder,
	}
	if o.Level <= zapcore.DebugLevel {
		c.TimeKey = "time"
		c.EncodeTime = func(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
			enc.AppendString(stamp(t.Sub(o.Origin)))
		}
	}
	return zapcore.NewConsoleEncoder(c)
}

// stamp formats the time since start as seconds and ten-thousandths, as in "12.0345:".
func stamp(d time.Duration) string {
	d = max(d, 0)
	return fmt.Sprintf("%d.%04d:", d/time.Second, d%time.Second/(100*time.Microsecond))
}
