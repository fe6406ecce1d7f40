package flow

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// mailboxSize is the number of runs a flow's mailbox holds. A run is up to 64 KiB of a flow's
// frames read in one go, so this is more than any window that is advertised to the guest.
const mailboxSize = 32

// States of a port: whether its actor runs, or sleeps and wants to be rung for.
const (
	running = iota
	waiting
)

// Notes left for an actor together with a ring.
const (
	noteStop     = 1 << iota // the engine ends
	noteAlarm                // the alarm went off
	noteWritten              // the socket takes data again, or has failed
	noteWatching             // a goroutine waits for writability
	noteEvict                // with noteStop: another flow needs the room
	noteTooBig               // see TooBig
)

// past is a deadline that has passed whenever it is set.
var past = time.Unix(1, 0)

// Port is how the world reaches a flow's actor: its mailbox, its doorbell and its host socket.
//
// Offer, Stop, Stopped, TooBig, Gone, Alone and Key may be called by anyone, everything else only
// by the actor.
type Port struct {
	entry

	in    chan Run
	state atomic.Uint32
	notes atomic.Uint32
	gone  atomic.Bool
	waits atomic.Bool // it is among Env.waiting

	tooBig atomic.Uint64 // see TooBig

	file  atomic.Pointer[os.File]
	raw   syscall.RawConn
	fd    int
	step  func(uintptr) bool
	dirty bool // the read deadline is or may soon be in the past

	moved uint64 // bytes, by the actor: see Env.Message

	handedOver Run       // see Leave
	lost       func(Run) // see OnLost

	opened func() // see OnOpened

	closer *Closer     // see CloseBy
	shared *Alias      // see Share
	alone  atomic.Bool // see Alone

	stage   uint8 // of the actor: what it has told the evictor
	kind    uint8 // see Evictor, which guards what follows
	evictor *Evictor
	queue   *queue
	before  *Port // in queue
	behind  *Port
	noted   Time // when used was last looked at

	used atomic.Int64 // see Used

	alarm   *time.Timer
	alarmAt Time // 0 when none is set
}

// Time is nanoseconds on the monotonic clock since the program started.
type Time int64

var epoch = time.Now()

// Now returns the time.
func Now() Time { return Time(time.Since(epoch)) }

// NewPort returns a port with an empty mailbox and no socket.
func NewPort(key Key) *Port {
	p := &Port{in: make(chan Run, mailboxSize), fd: -1}
	p.key, p.port = key, p
	return p
}

// Key returns the flow's key.
func (p *Port) Key() *Key { return &p.key }

// Offer hands r to the actor and reports whether there was room; if not, r stays with the caller.
// It never blocks.
func (p *Port) Offer(r Run) bool {
	select {
	case p.in <- r:
		if p.gone.Load() {
			p.drain() // nobody else will
		}
		p.ring()
		return true
	default:
		return false
	}
}

// Stop tells the actor to end. It may be called more than once.
func (p *Port) Stop() { p.note(noteStop) }

// TooBig tells the actor that a router behind the guest has refused the segment that begins at seq,
// since it cannot forward packets of more than mtu bytes; 0: it does not say. Anyone may call it.
// Of several calls that the actor has not seen yet the last one counts.
func (p *Port) TooBig(seq uint32, mtu int) {
	p.tooBig.Store(uint64(seq)<<32 | uint64(uint32(mtu)))
	p.note(noteTooBig)
}

// Refused returns what TooBig was called with since the last call, if it was.
func (p *Port) Refused() (seq uint32, mtu int, ok bool) {
	if !p.take(noteTooBig) {
		return 0, 0, false
	}
	v := p.tooBig.Load()
	return uint32(v >> 32), int(uint32(v)), true
}

func (p *Port) note(n uint32) {
	p.notes.Or(n)
	p.ring()
}

func (p *Port) ring() {
	if p.state.Load() == waiting && p.state.CompareAndSwap(waiting, running) {
		p.file.Load().SetReadDeadline(past)
	}
}

// Open gives the port its host socket, a non-blocking descriptor that belongs to the port from here
// on; one that it had before is closed. try is what Wait does whenever the socket may be readable;
// it returns true to end the wait, false to sleep until the next readiness. ErrNotWatched says that
// it cannot be waited for.
func (p *Port) Open(fd int, try func() bool) error {
	file := os.NewFile(uintptr(fd), "socket")
	// Who rings for the socket that was there before rings for an actor that does not sleep.
	if old := p.file.Swap(file); old != nil {
		old.Close()
		p.dirty = true
	}
	p.fd = fd
	p.step = func(uintptr) bool { return try() }
	if err := Watched(file); err != nil {
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	p.raw = raw
	return nil
}

// CloseBy has c close the socket. It is to be called before the actor starts.
func (p *Port) CloseBy(c *Closer) { p.closer = c }

// FD returns the socket, or -1.
func (p *Port) FD() int { return p.fd }

// Close closes the socket, stops the alarm and releases what lies in the mailbox. What is offered
// afterwards is lost. Close may be called more than once.
func (p *Port) Close() {
	if p.alarm != nil {
		p.alarm.Stop()
	}
	if p.fd >= 0 {
		p.closer.close(p.file.Load(), p.fd)
		p.fd = -1
	}
	p.gone.Store(true)
	p.drain()
}

// HandOver has r, which the actor gives up, be what a new flow with the same key begins with when
// this one has ended. It may be called once.
func (p *Port) HandOver(r Run) { p.handedOver = r }

// HandedOver returns the run that was left, if any, when the actor has ended. The caller holds it
// then.
func (p *Port) HandedOver() (Run, bool) {
	r := p.handedOver
	p.handedOver = Run{}
	return r, r.slab != nil
}

// Gone reports whether the actor has ended.
func (p *Port) Gone() bool { return p.gone.Load() }

func (p *Port) drain() {
	for {
		r, ok := p.Recv()
		if !ok {
			return
		}
		if p.lost != nil {
			p.lost(r)
		} else {
			r.Release()
		}
	}
}

// OnLost has f called with each run that was offered, but found no actor any more. f holds the run
// then. It is called by whoever offers or closes; OnLost is called before anybody else has the
// port.
func (p *Port) OnLost(f func(Run)) { p.lost = f }

// OnOpened has f called once, when the actor has its socket or has ended without one. It is called
// by the actor's goroutine; OnOpened is called before anybody else has the port.
func (p *Port) OnOpened(f func()) { p.opened = f }

// Opened says that the actor has its socket, or gets none.
func (p *Port) Opened() {
	if f := p.opened; f != nil {
		p.opened = nil
		f()
	}
}

// Recv takes the next run out of the mailbox, if there is one. The caller holds it then.
func (p *Port) Recv() (Run, bool) {
	select {
	case r := <-p.in:
		return r, true
	default:
		return Run{}, false
	}
}

// First waits for the first run. A port is made for a frame that the reader has in hand, and offers
// in a moment, so that this is sure to come.
func (p *Port) First() Run { return <-p.in }

// Inbox is the mailbox, for an actor that has no socket and waits for other things as well. What
// it takes out it holds.
func (p *Port) Inbox() <-chan Run { return p.in }

// Mail reports whether the mailbox has something.
func (p *Port) Mail() bool { return len(p.in) > 0 }

// Stopped reports whether the actor was told to end.
func (p *Port) Stopped() bool { return p.notes.Load()&noteStop != 0 }

// Alarmed reports whether the alarm went off since the last call.
func (p *Port) Alarmed() bool { return p.take(noteAlarm) }

// Written reports whether a wait asked for with AwaitWrite ended since the last call.
func (p *Port) Written() bool { return p.take(noteWritten) }

func (p *Port) take(n uint32) bool {
	return p.notes.Load()&n != 0 && p.notes.And(^n)&n != 0
}

// SetAlarm has Wait return at t or earlier: an alarm that is set for a time before t stays as it
// is, so that pushing a time-out further away costs nothing; who sees an early alarm sets the next
// one.
func (p *Port) SetAlarm(t Time) {
	if p.alarmAt != 0 && t >= p.alarmAt {
		return
	}
	p.alarmAt = t
	d := time.Duration(t - Now())
	if p.alarm == nil {
		p.alarm = time.AfterFunc(d, func() { p.note(noteAlarm) })
		return
	}
	p.alarm.Reset(d)
}

// AlarmDone forgets the alarm that went off, so that SetAlarm sets a new one.
func (p *Port) AlarmDone() { p.alarmAt = 0 }

// Spin looks for mail, a note or something from the socket for as long as r is hot and the host's
// answer is what this flow waits for. It returns true if Wait need not be called.
func (p *Port) Spin(r *Spinner[Port]) bool {
	for r.AwaitsHost(p) && r.ShouldSpin() {
		if len(p.in) > 0 || p.notes.Load()&^noteWatching != 0 || p.step(uintptr(p.fd)) {
			return true
		}
		r.Yield()
	}
	return false
}

// Wait sleeps until there is mail or a note, until try (see Open) returned true, or for at most
// limit if that is not 0. With socket false it leaves the socket alone. It may end for nothing,
// when the ring of an earlier note comes late.
func (p *Port) Wait(socket bool, limit time.Duration) {
	if p.dirty || limit > 0 {
		var t time.Time
		if limit > 0 {
			t = time.Now().Add(limit)
		}
		p.file.Load().SetReadDeadline(t)
		p.dirty = limit > 0
	}
	p.state.Store(waiting)
	if len(p.in) == 0 && p.notes.Load()&^noteWatching == 0 {
		var err error
		if socket {
			err = p.raw.Read(p.step)
		} else {
			err = p.raw.Read(never)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.dirty = true
		}
	}
	if p.state.Swap(running) == running {
		p.dirty = true // somebody has rung: the deadline is in the past, or will be in a moment
	}
}

func never(uintptr) bool { return false }

// AwaitWrite has the actor woken, and Written report true, when check, asked whenever the write
// side of the socket may have changed, returns true. It may be called again while a wait is under
// way: that one stays. check runs on another goroutine and gets nothing but the descriptor.
func (p *Port) AwaitWrite(check func(fd uintptr) bool) {
	if p.notes.Or(noteWatching)&noteWatching == 0 {
		go p.watch(check)
	}
}

// watch is the goroutine behind AwaitWrite. It ends when check is content or the socket is closed.
func (p *Port) watch(check func(fd uintptr) bool) {
	p.raw.Write(check)
	p.notes.And(^uint32(noteWatching))
	p.note(noteWritten)
}
