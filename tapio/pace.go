package tapio

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// paceNap is how long the reader of a busy stream lets frames gather before it sleeps until there
	// are some. A client writes them one by one: without this each would wake the reader, its flow and
	// the flow's peer. It is a fraction of the time in which a client fills its socket at any rate
	// at which frames come one by one.
	paceNap = 100 * time.Microsecond
	// paceStreak is the number of times in turn that a full segment and little more has come within
	// paceGap, after which the stream counts as busy.
	paceStreak = 24
	paceGap    = 500 * time.Microsecond
	paceLeast  = 1000     // bytes: less is no bulk transfer, and its sender may wait for an answer
	paceMost   = 48 << 10 // bytes: more is a good batch
)

// pace notices a stream on which frames of a bulk transfer come one by one. Its zero value is ready
// for use, by the reader.
type pace struct {
	last   time.Time
	streak int
}

// woken notes that n bytes were there when the reader looked.
func (p *pace) woken(n int) {
	now := time.Now()
	if n < paceLeast || n > paceMost || now.Sub(p.last) > paceGap {
		p.streak = 0
	} else {
		p.streak++
	}
	p.last = now
}

// wait lets frames gather, if the stream is busy. Other goroutines may have to wait as long.
func (p *pace) wait() {
	if p.streak < paceStreak {
		return
	}
	nap := unix.NsecToTimespec(int64(paceNap))
	unix.Nanosleep(&nap, nil) // a signal makes it shorter
}
