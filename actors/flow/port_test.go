package flow

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns two connected stream sockets, both non-blocking. The second one is closed at the
// end of the test; the first one is the port's.
func pair(t testing.TB) (ours, theirs int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// open returns a port with one end of a socket pair, and the other end. try is nil for an actor
// that leaves the socket alone.
func open(t testing.TB, try func(fd int) bool) (*Port, int) {
	t.Helper()
	ours, theirs := pair(t)
	p := NewPort(key(1))
	if err := p.Open(ours, func() bool { return try != nil && try(ours) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, theirs
}

// spin passes some time that is too short to sleep for: up to n steps.
func spin(rnd *rand.Rand, n int) {
	if rnd.IntN(8) == 0 {
		runtime.Gosched()
	}
	for range rnd.IntN(n) {
		sink.Add(1)
	}
}

var sink atomic.Uint64

// await waits in p until cond holds.
func await(p *Port, cond func() bool) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !cond() {
			p.Wait(true, 0)
		}
	}()
	return done
}

// TestNoLostWakeUp: one thing after another is left for the actor, each as soon as the one before
// was seen, so that it comes while the actor falls asleep. Were a single wake-up lost, the actor
// would sleep for ever.
func TestNoLostWakeUp(t *testing.T) {
	rounds := 30000
	if raceEnabled {
		rounds = 5000
	}
	const mail, byteIn, both, alarm = 0, 1, 2, 3
	for _, tt := range []struct {
		name string
		what func(*rand.Rand) int
	}{
		{"mail", func(*rand.Rand) int { return mail }},
		{"socket", func(*rand.Rand) int { return byteIn }},
		{"anything", func(r *rand.Rand) int {
			if r.IntN(16) == 0 {
				return alarm
			}
			return r.IntN(alarm)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var gotMail, gotByte, gotAlarm atomic.Uint64
			var alarmAt atomic.Int64 // the actor sets an alarm for then
			seen := make(chan struct{}, 1)
			count := func(c *atomic.Uint64, n int) {
				c.Add(uint64(n))
				select {
				case seen <- struct{}{}:
				default:
				}
			}
			p, theirs := open(t, func(fd int) bool {
				var b [8]byte
				n, err := unix.Read(fd, b[:])
				if err == nil {
					count(&gotByte, n)
				}
				return false // more may have come, but then there is an edge
			})
			pool := NewPool(8)
			done := make(chan struct{})
			go func() {
				defer close(done)
				rnd := rand.New(rand.NewPCG(1, 1))
				for !p.Stopped() {
					for {
						r, ok := p.Recv()
						if !ok {
							break
						}
						r.Release()
						count(&gotMail, 1)
					}
					if at := alarmAt.Swap(0); at != 0 {
						p.SetAlarm(Time(at))
					}
					if p.Alarmed() {
						p.AlarmDone()
						count(&gotAlarm, 1)
					}
					spin(rnd, 200)
					p.Wait(true, 0)
				}
			}()
			watchdog := time.NewTimer(patience)
			defer watchdog.Stop()
			rnd := rand.New(rand.NewPCG(2, 2))
			var mails, bytes, alarms uint64
			for i := range rounds {
				what := tt.what(rnd)
				if what == alarm {
					// Set with the mail that follows, for about the time the actor falls asleep.
					alarmAt.Store(int64(Now()) + int64(rnd.IntN(20000)))
					alarms++
				}
				if what != byteIn {
					if r := runOf(t, pool, []byte{1}); !p.Offer(r) {
						t.Fatal("no room in an empty mailbox")
					}
					mails++
				}
				if what == byteIn || what == both {
					spin(rnd, 50)
					unix.Write(theirs, []byte{1})
					bytes++
				}
				for gotMail.Load() != mails || gotByte.Load() != bytes || gotAlarm.Load() < alarms {
					select {
					case <-seen:
						watchdog.Reset(patience)
					case <-watchdog.C:
						t.Fatalf("round %d: the actor was not woken: mail %d of %d, bytes %d of %d, alarms %d of %d",
							i, gotMail.Load(), mails, gotByte.Load(), bytes, gotAlarm.Load(), alarms)
					}
				}
				alarms = gotAlarm.Load()
				spin(rnd, 300)
			}
			p.Stop()
			within(t, done, "stop")
			p.Close()
			if pool.Out() != 0 {
				t.Errorf("%d slabs out", pool.Out())
			}
		})
	}
}

// TestManyOfferers: everything that was accepted arrives, in the order of each offerer.
func TestManyOfferers(t *testing.T) {
	const offerers, each = 4, 2000
	p, _ := open(t, nil)
	pool := NewPool(offerers * 20)
	var wg sync.WaitGroup
	for i := range offerers {
		wg.Go(func() {
			for n := range each {
				s := pool.Get()
				for ; s == nil; s = pool.Get() {
					runtime.Gosched()
				}
				put(s, []byte{byte(i), byte(n), byte(n >> 8)})
				r := s.Run(0)
				s.Release()
				for !p.Offer(r) {
					runtime.Gosched()
				}
			}
		})
	}
	var next [offerers]int
	total := 0
	within(t, await(p, func() bool {
		for {
			r, ok := p.Recv()
			if !ok {
				return total == offerers*each
			}
			var v View
			for r.Next(&v) {
				d := v.Data()
				if n := int(d[1]) | int(d[2])<<8; n != next[d[0]] {
					t.Errorf("offerer %d: run %d, want %d", d[0], n, next[d[0]])
				}
				next[d[0]]++
				total++
			}
			r.Release()
		}
	}), "all runs")
	wg.Wait()
	if pool.Out() != 0 {
		t.Errorf("%d slabs out", pool.Out())
	}
}

func TestMailboxBound(t *testing.T) {
	p := NewPort(key(1))
	pool := NewPool(mailboxSize + 1)
	for i := range mailboxSize {
		if !p.Offer(runOf(t, pool, nil)) {
			t.Fatalf("no room for run %d", i)
		}
	}
	r := runOf(t, pool, nil)
	if p.Offer(r) {
		t.Fatalf("more than %d runs", mailboxSize)
	}
	r.Release() // it stayed with us
	if pool.Out() != mailboxSize || !p.Mail() {
		t.Errorf("%d slabs out, want %d", pool.Out(), mailboxSize)
	}
	p.Close()
	if pool.Out() != 0 {
		t.Errorf("Close left %d slabs in the mailbox", pool.Out())
	}
}

func TestOfferAfterClose(t *testing.T) {
	p, _ := open(t, nil)
	pool := NewPool(4)
	p.Close()
	p.Close()
	if !p.Gone() || p.FD() != -1 {
		t.Error("a closed port is not gone")
	}
	for range 2 * mailboxSize {
		p.Offer(runOf(t, pool, nil))
	}
	p.Stop()
	if pool.Out() != 0 {
		t.Errorf("%d slabs lie in the mailbox of a closed port", pool.Out())
	}
}

// TestOfferDuringClose: whatever the order, nobody's slab stays behind.
func TestOfferDuringClose(t *testing.T) {
	for range 300 {
		p, _ := open(t, nil)
		pool := NewPool(64)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for range 10 {
					r := runOf(t, pool, nil)
					if !p.Offer(r) {
						r.Release()
					}
				}
				p.Stop()
			})
		}
		wg.Go(func() {
			p.Wait(true, 0)
			p.Close()
		})
		wg.Wait()
		if pool.Out() != 0 {
			t.Fatalf("%d slabs left behind", pool.Out())
		}
	}
}

func TestStop(t *testing.T) {
	p, _ := open(t, nil)
	done := await(p, p.Stopped)
	p.Stop()
	p.Stop()
	within(t, done, "stop")
	if !p.Stopped() {
		t.Error("Stopped is forgotten")
	}
}

func TestAlarm(t *testing.T) {
	p, _ := open(t, nil)
	start := Now()
	at := start + Time(30*time.Millisecond)
	p.SetAlarm(start + Time(time.Hour))
	p.SetAlarm(at)
	p.SetAlarm(start + Time(2*time.Hour)) // later: no effect
	within(t, await(p, p.Alarmed), "alarm")
	if now := Now(); now < at {
		t.Errorf("alarm %v early", time.Duration(at-now))
	}
	if p.Alarmed() {
		t.Error("one alarm is reported twice")
	}
	p.AlarmDone()
	p.SetAlarm(Now() - 1) // past: at once
	within(t, await(p, p.Alarmed), "alarm in the past")
}

func TestWaitLimit(t *testing.T) {
	p, theirs := open(t, func(fd int) bool {
		n, _ := unix.Read(fd, make([]byte, 1))
		return n == 1
	})
	for i := range 3 {
		start := time.Now()
		p.Wait(true, 20*time.Millisecond)
		if d := time.Since(start); d < 20*time.Millisecond && i > 0 {
			t.Errorf("wait %d ended after %v", i, d)
		}
	}
	// A limit that has ended a wait does not end the next one.
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Wait(true, 0) // may still end at once
		p.Wait(true, 0)
	}()
	for range 2 {
		unix.Write(theirs, []byte{1})
	}
	within(t, done, "socket")
}

// TestWaitTriesFirst: data that came before the wait, whose edge is gone, is found.
func TestWaitTriesFirst(t *testing.T) {
	got := 0
	p, theirs := open(t, func(fd int) bool {
		n, _ := unix.Read(fd, make([]byte, 1))
		got += max(n, 0)
		return n == 1
	})
	unix.Write(theirs, []byte{1, 2})
	within(t, await(p, func() bool { return got == 2 }), "data")
}

func TestWaitWithoutSocket(t *testing.T) {
	tried := atomic.Bool{}
	p, theirs := open(t, func(int) bool { tried.Store(true); return true })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !p.Stopped() {
			p.Wait(false, 0)
		}
	}()
	unix.Write(theirs, []byte{1})
	p.Stop()
	within(t, done, "stop")
	if tried.Load() {
		t.Error("the socket was tried")
	}
}

func TestAwaitWrite(t *testing.T) {
	p, theirs := open(t, nil)
	fd := p.FD()
	junk := make([]byte, 64<<10)
	for {
		if _, err := unix.Write(fd, junk); err == unix.EAGAIN {
			break
		}
	}
	var asked atomic.Int32
	check := func(fd uintptr) bool {
		asked.Add(1)
		pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, _ := unix.Poll(pfd, 0)
		return n == 1
	}
	p.AwaitWrite(check)
	p.AwaitWrite(func(uintptr) bool { t.Error("a second wait beside the first"); return true })
	for asked.Load() == 0 {
		runtime.Gosched()
	}
	if p.Written() {
		t.Fatal("Written while the buffer is full")
	}
	done := await(p, p.Written)
	for {
		if _, err := unix.Read(theirs, junk); err == unix.EAGAIN {
			break
		}
	}
	within(t, done, "room")
	if p.Written() {
		t.Error("one wait is reported twice")
	}
	p.AwaitWrite(check)
	within(t, await(p, p.Written), "room that is there already")
}

// TestAwaitWriteEndsWithClose: goleak finds a watcher that does not end.
func TestAwaitWriteEndsWithClose(t *testing.T) {
	p, theirs := open(t, nil)
	ended := make(chan struct{})
	var once sync.Once
	p.AwaitWrite(func(uintptr) bool { once.Do(func() { close(ended) }); return false })
	within(t, ended, "first look")
	p.Close()
	// The descriptor is closed in the end: the other side sees it.
	var b [1]byte
	until(t, "end of file", func() bool { n, err := unix.Read(theirs, b[:]); return n == 0 && err == nil })
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

func TestOfferRecvWaitAllocateNothing(t *testing.T) {
	p, _ := open(t, nil)
	pool := NewPool(2)
	s := pool.Get()
	defer s.Release()
	put(s, []byte("x"))
	if n := testing.AllocsPerRun(1000, func() {
		if !p.Offer(s.Run(0)) {
			t.Error("no room")
		}
		p.Wait(true, 0) // returns at once: there is mail
		r, ok := p.Recv()
		if !ok {
			t.Error("no mail")
		}
		r.Release()
	}); n != 0 {
		t.Errorf("%v allocations a run", n)
	}
}

// TestWakeUpAllocatesNothing: the same for an actor that sleeps and is rung for.
func TestWakeUpAllocatesNothing(t *testing.T) {
	p, _ := open(t, nil)
	pool := NewPool(2)
	s := pool.Get()
	defer s.Release()
	put(s, []byte("x"))
	var got atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !p.Stopped() {
			if r, ok := p.Recv(); ok {
				r.Release()
				p.SetAlarm(Now() + Time(time.Hour))
				got.Add(1)
				continue
			}
			p.Wait(true, 0)
		}
	}()
	sent := int64(0)
	if n := testing.AllocsPerRun(2000, func() {
		for p.state.Load() != waiting {
			runtime.Gosched()
		}
		if !p.Offer(s.Run(0)) {
			t.Error("no room")
		}
		sent++
		for got.Load() != sent {
			runtime.Gosched()
		}
	}); n != 0 {
		t.Errorf("%v allocations a wake-up", n)
	}
	p.Stop()
	within(t, done, "stop")
}
