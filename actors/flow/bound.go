package flow

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// boundPeriod is the time between two messages that the same bound was reached.
const boundPeriod = Time(time.Minute)

// Counter counts how often a limit was reached. Any goroutine may use it; the zero value is 0.
type Counter struct {
	atomic.Uint64
	told atomic.Int64 // when that was last logged, in Time; 0: never
}

// Hit counts once more, and warns of it with message if that was not done for a minute. It does
// not allocate unless it warns.
func (b *Counter) Hit(log *zap.Logger, message string) {
	if b.count() {
		log.Warn(message, zap.Uint64("times", b.Load()))
	}
}

// HitBy is Reached with the error that shows it.
func (b *Counter) HitBy(log *zap.Logger, message string, err error) {
	if b.count() {
		log.Warn(message, zap.Uint64("times", b.Load()), zap.Error(err))
	}
}

// count counts, and reports whether a message is due.
func (b *Counter) count() bool {
	b.Add(1)
	now, then := int64(Now())+1, b.told.Load()
	return (then == 0 || now-then >= int64(boundPeriod)) && b.told.CompareAndSwap(then, now)
}

// ErrNotWatched says that the kernel had no memory to watch one more socket (epoll_ctl(2), ENOMEM
// or ENOSPC).
var ErrNotWatched = errors.New("socket cannot be waited for")

// Watched returns ErrNotWatched if Go's poller does not watch file, which is non-blocking:
// os.NewFile does not say so, and who waits for it would not sleep.
func Watched(file *os.File) error {
	if file.SetReadDeadline(time.Time{}) != nil {
		return ErrNotWatched
	}
	return nil
}

// Exhausted reports whether err, of a call that makes a socket, says that there are no descriptors
// or no memory for one: nothing that is wrong with what was asked for.
func Exhausted(err error) bool {
	return errors.Is(err, ErrNotWatched) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS)
}

// NoSocket notes that the flow of p has none because of err, if that is for want of descriptors or
// memory: then the flow that has waited longest for an answer gives way, so that the next one finds
// room. It reports whether there was one.
func (e *Env) NoSocket(p *Port, message string, err error) bool {
	if !Exhausted(err) {
		return false
	}
	e.Counters.NoSocket.HitBy(e.Log, message, err)
	e.Closer.Scarce()
	p.Ending() // or it might give way to itself
	return e.EvictOne != nil && e.EvictOne()
}
