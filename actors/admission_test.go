package actors

import (
	"net"
	"testing"
	"time"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// TestSYNRepeatedAtTheDoor: the copy does not wait, too, to be let in when its connection is over.
func TestSYNRepeatedAtTheDoor(t *testing.T) {
	s := newBed(t, options{})
	port := taking(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)) })
	waiting := func() int {
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		return len(s.admission.queue)
	}
	s.admission.mu.Lock()
	s.admission.opening++ // somebody begins
	s.admission.mu.Unlock()
	for range 3 {
		s.link.Write(raw(1024, port, frame.SYN, 1, 0, 4096))
	}
	s.link.Write(raw(1025, port, frame.SYN, 1, 0, 4096))
	until(t, "the other flow's to wait", func() bool { return waiting() >= 2 })
	if n := waiting(); n != 2 {
		t.Errorf("%d wait, want 2", n)
	}
	s.admission.opened()
	until(t, "flows", func() bool { return s.Flows() == 2 })
	until(t, "the door to be closed", func() bool {
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		return s.admission.opening == 0 && s.admission.asked == nil
	})
	if n := s.Counters().TCP.Load(); n != 2 {
		t.Errorf("%d flows were made, want 2", n)
	}
}

// TestFirstDatagramsAtTheDoor: those of one flow all wait.
func TestFirstDatagramsAtTheDoor(t *testing.T) {
	s := newBed(t, options{})
	s.admission.mu.Lock()
	s.admission.opening++
	s.admission.mu.Unlock()
	c := s.dialUDP(t, families[0], mute(t))
	for range 3 {
		c.Write([]byte("data"))
	}
	waiting := func() (list []flow.Key) {
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		for _, c := range s.admission.queue {
			list = append(list, c.key)
		}
		return list
	}
	until(t, "three to wait", func() bool { return len(waiting()) == 3 })
	s.admission.opened()
	until(t, "one flow", func() bool { return s.Flows() == 1 && len(waiting()) == 0 })
}

// TestNewFlowsWaitWhileOthersHaveWork: not for longer than they are told, and not when the engine
// ends.
func TestNewFlowsWaitWhileOthersHaveWork(t *testing.T) {
	waiting := func(s *siege) int {
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		return len(s.admission.queue) - s.admission.next
	}
	begin := func(t *testing.T, debt flow.Time) *siege {
		s := besiege(t, options{})
		port := taking(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)) })
		until(t, "a busy transfer", func() bool { return s.env.Load.Busy(flow.Now()) })
		now := flow.Now()
		s.admission.budget.Charge(int(debt), now-debt, now)
		s.link.Write(raw(1024, port, frame.SYN, 1, 0, 4096))
		s.link.Write(raw(1025, port, frame.SYN, 1, 0, 4096))
		until(t, "two to wait", func() bool { return waiting(s) == 2 })
		return s
	}
	t.Run("until it is their turn", func(t *testing.T) {
		s := begin(t, flow.Time(50*time.Millisecond))
		until(t, "both flows", func() bool { return s.Flows() == 3 && waiting(s) == 0 })
		s.letsIn()
	})
	t.Run("until the end", func(t *testing.T) {
		begin(t, flow.Time(time.Hour))
	})
}
