// Package nstest gives a test network namespaces of its own. The host's is never touched:
// a test without the right to make one is skipped.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// NS is a network namespace, which lasts as long as the test.
type NS struct{ file *os.File }

// Enter makes a network namespace and moves the calling test goroutine into it, with its
// thread, for the rest of the test; the thread ends with the goroutine. Called again, it
// makes and enters another one.
func Enter(t testing.TB) NS {
	t.Helper()
	// Never unlocked, so that the runtime throws the thread away.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("needs CAP_SYS_ADMIN to make network namespaces")
		}
		t.Fatal(err)
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return NS{f}
}

// Path is a name for ns in the file system, for ip(8), while the test runs.
func (ns NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd()) }

// Enter moves the calling goroutine, which has called the function Enter before, into ns.
func (ns NS) Enter(t testing.TB) {
	t.Helper()
	if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// IP runs ip(8) in the goroutine's namespace once with every line of batch.
func IP(t testing.TB, batch string) {
	t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v\n%s", err, out)
	}
}

// Show returns what ip(8) with these arguments prints in the goroutine's namespace.
func Show(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).Output()
	if err != nil {
		t.Fatalf("ip %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// Tap makes a tap of that name in the goroutine's namespace, down, which has a carrier
// and lasts until the end of the test. Nobody reads its frames.
func Tap(t testing.TB, name string) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("needs /dev/net/tun:", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
}
