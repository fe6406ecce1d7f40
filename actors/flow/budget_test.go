package flow

import (
	"testing"
	"time"
)

const ms = Time(time.Millisecond)

// move has a flow that lasts move data at a rate, in bytes a millisecond, from one time to another,
// and asks each millisecond.
func move(l *BulkLoad, p *Port, from, to Time, rate int) (busy bool) {
	e := &Env{}
	for now := from; now < to; now += ms {
		e.Message(p, FromGuest, rate)
		l.moved.Add(e.Load.moved.Swap(0))
		busy = l.Busy(now)
	}
	return busy
}

func TestLoad(t *testing.T) {
	t.Run("bulk", func(t *testing.T) {
		var l BulkLoad
		p := NewPort(Key{})
		if !move(&l, p, ms, 200*ms, 100e3) {
			t.Error("not busy while 100 MB/s are moved")
		}
		if move(&l, p, 200*ms, 600*ms, 0) {
			t.Error("busy while nothing is moved")
		}
		if !move(&l, p, 600*ms, 700*ms, 100e3) {
			t.Error("not busy when it goes on")
		}
	})
	t.Run("short flows", func(t *testing.T) {
		var l BulkLoad
		for now := ms; now < 500*ms; now += 5 * ms {
			if move(&l, NewPort(Key{}), now, now+5*ms, 100e3) {
				t.Fatal("busy with flows of half a megabyte")
			}
		}
	})
	t.Run("a trickle", func(t *testing.T) {
		var l BulkLoad
		p := NewPort(Key{})
		move(&l, p, ms, 100*ms, 100e3)
		if move(&l, p, 100*ms, 600*ms, 1000) {
			t.Error("busy with 1 MB/s")
		}
	})
}

func TestAllowance(t *testing.T) {
	var l BulkLoad
	p := NewPort(Key{})
	a := Budget{Load: &l, Part: 8}
	const piece = 50 * Time(time.Microsecond)
	work := func(from, to Time, rate int) (done int) {
		for now := from; now < to; now += ms {
			move(&l, p, now, now+ms, rate)
			for used := Time(0); used < ms && a.Delay(now+used) == 0; done++ {
				used += piece
				a.Charge(1, now+used-piece, now+used)
			}
		}
		return done
	}
	if n := work(ms, 101*ms, 0); n != 2000 {
		t.Errorf("%d pieces of work in 100 ms when nobody else has any, want 2000", n)
	}
	work(101*ms, 301*ms, 100e3)
	n := work(301*ms, 1301*ms, 100e3)
	if share := Time(n) * piece; share < 110*ms || share > 130*ms {
		t.Errorf("%v of a second beside others, want an eighth", time.Duration(share))
	}
	work(1301*ms, 1601*ms, 0)
	if n := work(1601*ms, 1701*ms, 0); n != 2000 {
		t.Errorf("%d pieces in 100 ms when nobody else has any more, want 2000", n)
	}

	// What has rested may come at once, and what waits comes when it is said to.
	move(&l, p, 1701*ms, 2000*ms, 100e3)
	now, n := 2000*ms, 0
	for ; a.Delay(now) == 0; n++ {
		now += piece
		a.Charge(1, now-piece, now)
	}
	if n < 40 || n > 50 {
		t.Errorf("%d pieces at once, want a little more than 40", n)
	}
	rest := a.Delay(now)
	move(&l, p, now, now+rest, 100e3)
	if left := a.Delay(now + rest); left != 0 || rest <= 0 {
		t.Errorf("told to wait for %v, and for %v then", rest, left)
	}
}

// TestAllowanceOfWorkThatWasHeldUp: a piece that was begun, and had to wait for a CPU, does not use
// up what others have for long.
func TestAllowanceOfWorkThatWasHeldUp(t *testing.T) {
	var l BulkLoad
	move(&l, NewPort(Key{}), ms, 100*ms, 100e3)
	a := Budget{Load: &l, Part: 8}
	a.Delay(100 * ms)
	a.Charge(1, 100*ms, 150*ms)
	if rest := a.Delay(150 * ms); rest > 4*ms {
		t.Errorf("the next is to wait for %v", time.Duration(rest))
	}
}
