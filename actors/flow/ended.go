package flow

import "sync"

const (
	endedKept = 512
	endedFor  = Time(60e9) // as long as Linux keeps TIME-WAIT
)

// Ended remembers the connections that have ended well of late, up to endedKept of them: what
// TIME-WAIT is for (RFC 9293, section 3.6.1), at the price of no goroutine and no socket. It may be
// used by anyone; the zero value is empty.
type Ended struct {
	mu   sync.Mutex
	ring [endedKept]ended
	next int
}

// ended is a connection; at is 0 in one that never was.
type ended struct {
	key      Key
	at       Time
	seq, ack uint32
}

// Add notes that the connection k has ended; our next sequence number is seq, the guest's ack.
func (e *Ended) Add(k *Key, seq, ack uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring[e.next] = ended{key: *k, at: Now(), seq: seq, ack: ack}
	e.next = (e.next + 1) % endedKept
}

// Find returns what Add was told last about k, if it was told within the last minute.
func (e *Ended) Find(k *Key) (seq, ack uint32, ok bool) {
	now := Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range endedKept {
		c := &e.ring[(e.next+endedKept-1-i)%endedKept]
		if c.at == 0 || now-c.at > endedFor {
			break // and all before it
		}
		if c.key == *k {
			return c.seq, c.ack, true
		}
	}
	return 0, 0, false
}
