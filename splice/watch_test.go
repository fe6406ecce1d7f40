package splice

import (
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
)

// TestWatchOfAFlowThatExpired: who gets the watch next sleeps until something happens, and hears of
// it.
func TestWatchOfAFlowThatExpired(t *testing.T) {
	w, err := newWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if w.waitUntil(flow.Now()+1000, func() bool { return false }) {
		t.Fatal("the time is not over")
	}
	w.idle()

	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if err := w.add(0, fds[0]); err != nil {
		t.Fatal(err)
	}
	calls := 0
	w.each(func() bool { calls++; return true })
	if calls != 1 || len(w.take()) == 0 {
		t.Errorf("called %d times, or nothing seen", calls)
	}
}
