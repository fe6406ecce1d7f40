package tapio

import (
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// paceBatch is the number of bytes that the reader of a busy stream lets gather before it looks
	// for them. A client writes frame by frame: without this each would wake the reader, its flow
	// and the flow's peer. It is half of what a client's socket holds.
	paceBatch = 96 << 10
	// paceLong and paceShort bound the time in which they gather. It is worth nothing if it is not
	// long against what going to sleep takes, and in longer ones other traffic would have to wait.
	// Of long frames two are to come.
	paceLong  = 300 * time.Microsecond
	paceTwo   = 420 * time.Microsecond
	paceShort = 150 * time.Microsecond
	// paceHold is the time after which flows get their turn, whatever comes: what they have by then
	// goes to their sockets in one call.
	paceHold = time.Millisecond
	// paceSlow is the time in which less than a bulk transfer brings as much: acknowledgements, for
	// one.
	paceSlow = 10 * time.Millisecond
	// paceStreak is the number of times in turn that a full segment or more has come within
	// paceGap, after which the stream counts as busy. What is shorter than that is no bulk
	// transfer, and its sender may wait for an answer; but bulk transfers have short segments now
	// and then, where the sender's buffer begins again. Each takes paceBreak long ones to make up
	// for. So they have lapses, where the guest had no processor, say: each paceGap takes
	// paceLapse, and a long silence all.
	paceStreak = 24
	paceBreak  = 2
	paceLapse  = 6
	paceGap    = 2 * time.Millisecond
	paceLeast  = 1000 // bytes
)

// coalescer notices a stream on which frames of a bulk transfer come one by one. Its zero value is
// ready for use, by the reader.
type coalescer struct {
	sum    int       // bytes since
	last   time.Time // when the reader had nothing to do
	run    int
	long   bool      // the last bytes were of a long frame
	turn   time.Time // when other goroutines had theirs
	n, gap int64     // means of such sums, and of the nanoseconds that they have taken
}

// took notes that n bytes have come, of a frame that is long enough to be received in place, or
// not.
func (p *coalescer) took(n int, long bool) {
	p.sum += n
	p.long = long
}

// wait is called when the reader is about to sleep, and lets frames gather first if the stream is
// busy. Other goroutines have to wait, for paceHold and paceTwo at most: the runtime does not know,
// and so starts no thread for them.
func (p *coalescer) wait() {
	now := time.Now()
	if nap := p.nap(now); nap > 0 {
		if now.Sub(p.turn) > paceHold {
			runtime.Gosched()
			p.turn = time.Now()
		}
		ts := unix.NsecToTimespec(int64(nap))
		// a signal makes it shorter
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
	}
}

// nap returns for how long frames are to gather from now on.
func (p *coalescer) nap(now time.Time) time.Duration {
	n, gap := p.sum, now.Sub(p.last)
	p.sum, p.last = 0, now
	if gap > paceGap {
		p.run = max(p.run-paceLapse*int(gap/paceGap), 0)
		return 0
	}
	p.n += (int64(n) - p.n) / 8
	p.gap += (int64(gap) - p.gap) / 8
	if n < paceLeast {
		p.run = max(p.run-paceBreak, 0)
		return 0
	}
	p.run = min(p.run+1, 2*paceStreak)
	if p.run < paceStreak {
		return 0
	}
	batch := time.Duration(p.gap * paceBatch / p.n) // the time in which as much comes
	if batch < paceShort || batch > paceSlow {
		return 0
	}
	if p.long {
		return min(batch, paceTwo)
	}
	return min(batch, paceLong)
}
