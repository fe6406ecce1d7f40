// Package leaktest has tests look at what they leave behind in the process: goroutines and descriptors.
package leaktest

import (
	"os"
	"runtime"
	"testing"
	"time"
)

// NothingLeft checks at the end of the test, after everything that is registered later, that there are as
// many goroutines and descriptors as now, or that there are within patience.
func NothingLeft(t testing.TB, patience time.Duration) {
	count := func() (goroutines, files int) {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(d)
	}
	goroutines, files := count()
	t.Cleanup(func() {
		for end := time.Now().Add(patience); ; time.Sleep(100 * time.Microsecond) {
			g, f := count()
			if g <= goroutines && f <= files {
				return
			}
			if time.Now().After(end) {
				stacks := make([]byte, 1<<16)
				t.Fatalf("%d goroutines, before %d; %d descriptors, before %d\n%s", g, goroutines, f, files,
					stacks[:runtime.Stack(stacks, true)])
			}
		}
	})
}
