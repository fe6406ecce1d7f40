// Package leaktest has tests look at what they leave behind in the process: goroutines and
// descriptors.
package leaktest

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Descriptors returns the number of sockets and pipes that the process has open. What Go's runtime
// opens for itself when it first wants it is none of them.
func Descriptors(t testing.TB) int {
	t.Helper()
	const dir = "/proc/self/fd"
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range list {
		// One that is closed by now is not counted.
		if to, _ := os.Readlink(filepath.Join(dir, e.Name())); strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// NothingLeft checks at the end of the test, after everything that is registered later, that there
// are as many goroutines, sockets and pipes as now, or that there are within patience.
func NothingLeft(t testing.TB, patience time.Duration) {
	count := func() (goroutines, files int) { return runtime.NumGoroutine(), Descriptors(t) }
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
