package logging

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"
)

// layout puts in front of a message what one destination wants there.
type layout func(zapcore.Entry) string

// plain is the layout of standard error: nothing.
func plain(zapcore.Entry) string { return "" }

// stamped is the layout of standard error with debug messages: "12.0345: ".
func stamped(origin time.Time) layout {
	return func(e zapcore.Entry) string { return stamp(e.Time.Sub(origin)) + " " }
}

// filed is the layout of a log file: "12.0345: WARNING: ".
func filed(origin time.Time) layout {
	return func(e zapcore.Entry) string { return stamp(e.Time.Sub(origin)) + " " + word(e.Level) }
}

// word names a level in nine characters, as readers of log files know them.
func word(l zapcore.Level) string {
	switch {
	case l >= zapcore.ErrorLevel:
		return "ERROR:   "
	case l == zapcore.WarnLevel:
		return "WARNING: "
	case l == zapcore.InfoLevel:
		return "info:    "
	}
	return "         "
}

// prioritised is the layout of a datagram for the system's log: "<4> pasta: ".
func prioritised(ident string) layout {
	return func(e zapcore.Entry) string { return "<" + strconv.Itoa(severity(e.Level)) + "> " + ident + ": " }
}

// severity is a level's number in syslog(3), RFC 5424 section 6.2.1.
func severity(l zapcore.Level) int {
	switch {
	case l >= zapcore.ErrorLevel:
		return 3
	case l == zapcore.WarnLevel:
		return 4
	case l == zapcore.InfoLevel:
		return 6
	}
	return 7
}

// output is a zapcore.Core: one destination, with its layout, and a queue in front of it.
// Lines enter the queue in the order of their stamps.
type output struct {
	zapcore.LevelEnabler
	enc    zapcore.Encoder
	fields []zapcore.Field // those of With, which enc has, too
	*writer
}

// writer is what an output shares with those that With made of it.
type writer struct {
	layout layout
	oneRow bool // a message is one line, whatever is in it
	queue  *queue

	mu   sync.Mutex
	last time.Time
	lost zapcore.Encoder // without fields
}

func newOutput(q *queue, level zapcore.Level, l layout, oneRow bool) *output {
	enc := zapcore.NewConsoleEncoder(zapcore.EncoderConfig{
		MessageKey:       "message",
		ConsoleSeparator: " ",
		EncodeDuration:   zapcore.StringDurationEncoder,
	})
	w := &writer{layout: l, oneRow: oneRow, queue: q, lost: enc}
	q.lostLine = func(n int) []byte {
		buf, err := w.encode(enc, zapcore.Entry{
			Level: zapcore.WarnLevel, Time: w.last,
			Message: "(" + strconv.Itoa(n) + " messages lost)",
		}, nil)
		if err != nil {
			return nil
		}
		return buf
	}
	return &output{LevelEnabler: level, enc: enc, writer: w}
}

// With implements zapcore.Core.
func (o *output) With(fields []zapcore.Field) zapcore.Core {
	enc := o.enc.Clone()
	for _, f := range fields {
		f.AddTo(enc)
	}
	return &output{LevelEnabler: o.LevelEnabler, enc: enc, fields: slices.Concat(o.fields, fields), writer: o.writer}
}

// Check implements zapcore.Core.
func (o *output) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if o.Enabled(e.Level) && o.queue.on() {
		return ce.AddCore(e, o)
	}
	return ce
}

// Write implements zapcore.Core. A line that was stamped before another one and comes after
// it is given the other's stamp.
func (o *output) Write(e zapcore.Entry, fields []zapcore.Field) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e.Time.Before(o.last) {
		e.Time = o.last
	}
	o.last = e.Time
	enc := o.enc
	if e.Level >= zapcore.InfoLevel {
		e.Message += words(o.fields) + words(fields)
		enc, fields = o.lost, nil
	}
	line, err := o.encode(enc, e, fields)
	if err != nil {
		return err
	}
	_, err = o.queue.Write(line)
	return err
}

// Sync implements zapcore.Core. It waits, but not for long, until what is queued is written.
func (o *output) Sync() error { return o.queue.Sync() }

func (w *writer) encode(enc zapcore.Encoder, e zapcore.Entry, fields []zapcore.Field) ([]byte, error) {
	if w.oneRow {
		e.Message = strings.ReplaceAll(strings.TrimRight(e.Message, "\n"), "\n", " ")
	}
	e.Message = w.layout(e) + e.Message
	buf, err := enc.EncodeEntry(e, fields)
	if err != nil {
		return nil, err
	}
	defer buf.Free()
	return append([]byte(nil), buf.Bytes()...), nil
}
