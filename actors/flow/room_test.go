package flow

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gate is a tapio.Backpressure that says what it is told to.
type gate struct{ full atomic.Bool }

func (g *gate) Full() bool    { return g.full.Load() }
func (g *gate) OnRoom(func()) {}

func TestAwaitRoom(t *testing.T) {
	e := new(Env)
	p := NewPort(key(1))
	defer p.Close()
	if e.AwaitRoom(p) {
		t.Error("a link without gate is full")
	}
	g := new(gate)
	e.Backpressure = g
	if e.AwaitRoom(p) {
		t.Error("full before it is")
	}
	g.full.Store(true)
	for range 3 {
		if !e.AwaitRoom(p) {
			t.Error("not full")
		}
	}
	if len(e.waiting) != 1 {
		t.Errorf("%d wait", len(e.waiting))
	}
	if p.Alarmed() {
		t.Error("woken early")
	}
	g.full.Store(false)
	e.Room()
	if !p.Alarmed() {
		t.Error("not woken")
	}
	if e.Room(); p.Alarmed() {
		t.Error("woken again")
	}
}

// TestAwaitRoomNobodyIsForgotten has room come and go while actors wait for it.
func TestAwaitRoomNobodyIsForgotten(t *testing.T) {
	e, g := new(Env), new(gate)
	e.Backpressure = g
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fds[1])
			p := NewPort(key(i))
			defer p.Close()
			if err := p.Open(fds[0], func() bool { return false }); err != nil {
				t.Error(err)
				return
			}
			for range 2000 {
				g.full.Store(true)
				if e.AwaitRoom(p) {
					wg.Go(func() {
						g.full.Store(false)
						e.Room()
					})
					for end := time.Now().Add(patience); !p.Alarmed(); {
						if time.Now().After(end) {
							t.Error("waited in vain")
							return
						}
						// ends for nothing now and then, when a ring comes late
						p.Wait(false, patience)
					}
				}
			}
		})
	}
	wg.Wait()
}
