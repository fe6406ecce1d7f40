package sandbox

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRefusedRoot: a process without a mount namespace of its own, or without the right to mount,
// is told so, and is not confined by less.
func TestRefusedRoot(t *testing.T) {
	out, ws := run(t, unix.CLONE_NEWUSER, Kill)
	if want := "Failed to remount /: Operation not permitted\n"; out != want || ws.ExitStatus() != 1 {
		t.Errorf("status %#x, output %q; want 1 and %q", ws, out, want)
	}
}

func TestStepErrorNamesTheStep(t *testing.T) {
	err := error(&stepError{"Failed to pivot_root() into empty tmpfs", unix.EINVAL})
	if got, want := err.Error(), "Failed to pivot_root() into empty tmpfs: Invalid argument"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Error("more than a line")
	}
}
