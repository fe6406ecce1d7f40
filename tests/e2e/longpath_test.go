package e2e

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// queueOf asks conn's socket for the length of a queue: unix.SIOCINQ or unix.SIOCOUTQ (tcp(7)).
func queueOf(t *testing.T, conn *net.TCPConn, which uint) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), which) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLongPathDoesNotHoldUpTheSender: what the target sends is acknowledged before the far peer has
// it, or over a long path the target's window would be the limit, and not the host's.
func TestLongPathDoesNotHoldUpTheSender(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, bed.Config{Link: &bed.LinkConfig{Delay: 300 * time.Millisecond}}))
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			target, peer := c.pair(t, f.far)
			sent := 0
			waitFor(t, "an acknowledgement ahead of the far peer's", func() bool {
				n, err := target.Write(make([]byte, 100<<10))
				if err != nil {
					t.Fatal(err)
				}
				sent += n
				waitFor(t, "an acknowledgement", func() bool { return queueOf(t, target, unix.SIOCOUTQ) == 0 })
				return queueOf(t, peer, unix.SIOCINQ) < sent
			})
		})
	}
}
