package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxCap is the highest capability a kernel may come to know.
const maxCap = 63

// Renounce takes from a process that only waits for others all capabilities but
// CAP_NET_BIND_SERVICE, on every thread and for good: what it may execute gets none either. It
// keeps its root directory. In a program linked with a C library only the calling thread is
// changed.
func Renounce() error {
	for bit := range uintptr(maxCap + 1) {
		if bit == unix.CAP_NET_BIND_SERVICE {
			continue
		}
		// One without CAP_SETPCAP has nothing that a program could get back.
		if _, err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0); err != nil &&
			!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("drop capability %d: %w", bit, err)
		}
	}
	if _, err := promise(); err != nil {
		return err
	}
	_, _, err := keepCaps(1 << unix.CAP_NET_BIND_SERVICE)
	return err
}
