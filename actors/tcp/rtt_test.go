package tcp

import (
	"testing"
	"time"

	"fusilli/actors/flow"
)

// TestSlowGuestIsNotSentEverythingTwice: the time-out follows a guest that takes seconds to answer,
// and comes back when it does not any more.
func TestSlowGuestIsNotSentEverythingTwice(t *testing.T) {
	var r rtt
	r.sample(flow.Time(50 * time.Microsecond))
	if r.base != rtoMin {
		t.Errorf("time-out is %v on a short link, want %v", time.Duration(r.base), time.Duration(rtoMin))
	}
	for range 20 {
		r.sample(flow.Time(2 * time.Second))
	}
	if d := time.Duration(r.base); d < 2*time.Second || d > 4*time.Second {
		t.Errorf("time-out is %v where answers take 2 s", d)
	}
	for range 100 {
		r.sample(flow.Time(time.Millisecond))
	}
	if r.base != rtoMin {
		t.Errorf("time-out is %v afterwards", time.Duration(r.base))
	}
	for range 100 {
		r.sample(flow.Time(time.Hour))
	}
	if r.base != rtoMax {
		t.Errorf("time-out is %v, want %v at most", time.Duration(r.base), time.Duration(rtoMax))
	}
}

// TestTimeIsMeasuredOnceSentOnly: Karn's rule.
func TestTimeIsMeasuredOnceSentOnly(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.host.Write(data(0, 100))
	b.wantData(data(0, 100))
	smooth := b.c.rtt.smooth
	if smooth == 0 || b.c.rtt.at == 0 {
		t.Fatalf("%+v after the handshake and a segment", b.c.rtt)
	}
	b.c.rtt.at -= flow.Time(time.Second)
	b.rcv += 100
	b.send(seg{})
	b.turn()
	if b.c.rtt.smooth <= smooth || b.c.rtt.at != 0 || b.c.rtt.base <= rtoMin {
		t.Errorf("%+v after an answer that took a second", b.c.rtt)
	}
	was := b.c.rtt
	b.host.Write(data(100, 100))
	b.wantData(data(100, 100))
	if wait := b.c.rtoAt - flow.Now(); wait < rtoMin {
		t.Errorf("time-out in %v, with %+v", time.Duration(wait), b.c.rtt)
	}
	b.c.onTime(b.c.rtoAt)
	b.wantData(data(100, 100))
	b.rcv += 100
	b.send(seg{})
	b.turn()
	if b.c.rtt.smooth != was.smooth || b.c.rtt.base != was.base || b.c.rtt.at != 0 {
		t.Errorf("%+v after the answer to a segment that was sent twice, %+v before", b.c.rtt, was)
	}
}

// TestHandshakeThatTookARepetition: RFC 6298, section 5.7.
func TestHandshakeThatTookARepetition(t *testing.T) {
	b := newAccepted(t, families[0])
	b.playAccepted()
	b.c.retries = 1
	b.c.handshake()
	if b.c.rto != rtoAfterSYN || b.c.retries != 0 {
		t.Errorf("time-out %v", time.Duration(b.c.rto))
	}
}
