package process

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// CloseStray closes the descriptors above standard error that the caller leaked to this
// process, so that nobody waits for us to close a pipe we do not know of. Descriptors
// opened by this process are close-on-exec and thereby told from inherited ones, which
// is why this is not one close_range(2): Go's runtime may have opened its own already.
// It is to be called before anything is opened on purpose without close-on-exec.
func CloseStray() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		// No /proc: at least nobody we start inherits them (Linux 5.11).
		return unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd < 3 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
	return nil
}

// detachStreams points the given standard streams at /dev/null.
func detachStreams(fds ...int) error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	for _, fd := range fds {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return err
		}
	}
	return nil
}
