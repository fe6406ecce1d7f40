// Package logging makes the program's zap loggers: one line a message, on standard error, in
// the system's log or in a file, each in the form that people and the programs that call us
// know, and with the levels the command line knows.
//
// A line on standard error is the message and its fields, nothing else; with debug output it begins
// with the time since the start of the program. Fields are for people ("MESSAGE: REASON", "MESSAGE
// port=80"); those of debug and trace messages are for programs, as JSON. Writing never holds a
// caller up: lines go through a bounded queue for each destination, and what does not fit is
// dropped and counted. Limit keeps a message that traffic can cause from flooding the output. Log
// files have a bounded size (File).
package logging

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// TraceLevel is the level of the per-packet messages that --trace adds to debug.
const TraceLevel = zapcore.DebugLevel - 1

// Options say what a logger shows and where.
type Options struct {
	// Level is the least level shown: zapcore.InfoLevel by default, WarnLevel with
	// -q, DebugLevel with -d, TraceLevel with --trace. Stamps are shown on standard
	// error from DebugLevel down.
	Level zapcore.Level

	// Origin is the time stamps count from. Its monotonic reading is used.
	Origin time.Time

	// Syslog is the system's log (DialSyslog), and Ident the name it is told; nil: none.
	Syslog *os.File
	Ident  string

	// File is the log file, or nil.
	File *File
}

// Logger is a zap logger and the outputs it writes to. The outputs are the Logger's own
// until Close: nobody else writes to or closes them.
type Logger struct {
	*zap.Logger
	stderr *queue
	queues []*queue // all of them
	file   *File
	filed  *queue // that of file, or nil
}

// New returns a logger that writes to stderr, and where o says. stderr is not closed, and
// is used by one goroutine at a time, until Close returns true.
func New(stderr io.Writer, o Options) *Logger {
	l := &Logger{file: o.File}
	var cores []zapcore.Core
	add := func(w io.Writer, form layout, oneRow bool) *queue {
		q := newQueue(w)
		l.queues = append(l.queues, q)
		cores = append(cores, newOutput(q, o.Level, form, oneRow))
		return q
	}
	form := plain
	if o.Level <= zapcore.DebugLevel {
		form = stamped(o.Origin)
	}
	l.stderr = add(stderr, form, false)
	if o.Syslog != nil {
		add(datagrams{o.Syslog}, prioritised(o.Ident), true)
	}
	if o.File != nil {
		l.filed = add(o.File, filed(o.Origin), true)
	}
	l.Logger = zap.New(zapcore.NewTee(cores...))
	return l
}

// Mute makes every later line vanish from standard error. It is for a process whose
// standard error now belongs to somebody else.
func (l *Logger) Mute() { l.stderr.mute() }

// Close writes what is queued, and a file to the disk. It reports whether all got out before
// the short time a program may take to end. The logger may be used afterwards, but shows
// nothing.
func (l *Logger) Close() bool {
	var all sync.WaitGroup
	out := make([]bool, len(l.queues))
	for i, q := range l.queues {
		all.Go(func() {
			out[i] = q.close()
			if out[i] && q == l.filed {
				l.file.Sync() // nowhere to report a failure to
			}
		})
	}
	all.Wait()
	for _, ok := range out {
		if !ok {
			return false
		}
	}
	return true
}

// stamp formats the time since start as seconds and ten-thousandths, as in "12.0345:".
func stamp(d time.Duration) string {
	d = max(d, 0)
	return fmt.Sprintf("%d.%04d:", d/time.Second, d%time.Second/(100*time.Microsecond))
}
