package flow

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e Ended
		k := key(1)
		if _, _, ok := e.Find(&k); ok {
			t.Error("found where nothing is")
		}
		for i := range 3 * endedKept / 2 {
			k := key(i)
			e.Add(&k, uint32(i), uint32(2*i))
		}
		for i := range 3 * endedKept / 2 {
			k := key(i)
			seq, ack, ok := e.Find(&k)
			if want := i >= endedKept/2; ok != want || ok && (seq != uint32(i) || ack != uint32(2*i)) {
				t.Fatalf("connection %d: %d, %d, %v", i, seq, ack, ok)
			}
		}
		k = key(endedKept) // again, with other numbers
		e.Add(&k, 7, 8)
		if seq, ack, ok := e.Find(&k); !ok || seq != 7 || ack != 8 {
			t.Errorf("%d, %d, %v: not the last", seq, ack, ok)
		}
		time.Sleep(59 * time.Second)
		if _, _, ok := e.Find(&k); !ok {
			t.Error("forgotten too early")
		}
		time.Sleep(2 * time.Second)
		if _, _, ok := e.Find(&k); ok {
			t.Error("found after a minute")
		}
	})
}
