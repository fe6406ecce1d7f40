package flow

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"fusilli/tapio/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen: long enough for a machine that is busy
// with other things, and under the race detector. Only a test that fails takes that long.
const patience = 2 * time.Minute

// key returns the i-th of keys that differ in all their fields.
func key(i int) Key {
	return Key{
		Guest:      frame.Addr4([4]byte{10, 0, byte(i >> 8), byte(i)}),
		Remote:     frame.Addr4([4]byte{192, 0, byte(i), byte(i >> 8)}),
		GuestPort:  uint16(i),
		RemotePort: uint16(^i),
		Proto:      uint16(6 + i%2*11),
	}
}

// within waits until done is closed.
func within(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		t.Fatalf("%s: nothing after %v", what, patience)
	}
}
