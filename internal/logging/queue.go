package logging

import (
	"io"
	"sync"
	"time"
)

const (
	// queueSize bounds the bytes that wait for a slow output: some hundreds of lines.
	queueSize = 64 << 10
	// closeTimeout is how long ending waits for a slow output.
	closeTimeout = 500 * time.Millisecond
)

// queue is an output that does not block its callers. A goroutine that lives while
// there is something to write hands the bytes on, so an idle logger costs nothing.
type queue struct {
	w io.Writer

	// lostLine is the line that tells of n others that were dropped.
	lostLine func(n int) []byte

	mu      sync.Mutex
	pending []byte
	lost    int           // lines dropped since the last one that fitted
	off     bool          // drop everything from now on
	drained chan struct{} // closed when the writing goroutine ends; nil if there is none
}

func newQueue(w io.Writer) *queue {
	return &queue{w: w}
}

// on reports whether lines are still taken.
func (q *queue) on() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.off
}

// Write queues one line, or drops and counts it. It keeps no reference to line and
// never fails: a log that cannot be written is no reason to stop.
func (q *queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.off:
		return len(line), nil
	case len(q.pending)+len(line) > queueSize:
		q.lost++
		return len(line), nil
	}
	if q.lost > 0 {
		q.pending = append(q.pending, q.lostLine(q.lost)...)
		q.lost = 0
	}
	q.pending = append(q.pending, line...)
	if q.drained == nil {
		q.drained = make(chan struct{})
		go q.drain(q.drained)
	}
	return len(line), nil
}

// Sync waits, but not for long, until what is queued is written.
func (q *queue) Sync() error {
	q.flush()
	return nil
}

func (q *queue) mute() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.off, q.pending, q.lost = true, nil, 0
}

func (q *queue) close() bool {
	q.mu.Lock()
	q.off = true
	q.mu.Unlock()
	return q.flush()
}

// flush reports whether the writing goroutine ended in time.
func (q *queue) flush() bool {
	q.mu.Lock()
	drained := q.drained
	q.mu.Unlock()
	if drained == nil {
		return true
	}
	late := time.NewTimer(closeTimeout)
	defer late.Stop()
	select {
	case <-drained:
		return true
	case <-late.C:
		return false
	}
}

// drain writes until nothing is left. Only one runs at a time.
func (q *queue) drain(drained chan struct{}) {
	var batch []byte
	for {
		q.mu.Lock()
		batch, q.pending = q.pending, batch[:0]
		if len(batch) == 0 {
			q.drained = nil
			q.mu.Unlock()
			close(drained)
			return
		}
		q.mu.Unlock()
		q.w.Write(batch) // nowhere to report a failure to
	}
}
