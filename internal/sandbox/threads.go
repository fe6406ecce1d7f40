package sandbox

import (
	"errors"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// linkedWithC reports whether the program has threads that Go's runtime does not know, so that
// not all of them can be reached.
func linkedWithC() bool {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPPID, 0, 0, 0)
	return errors.Is(errno, unix.ENOTSUP)
}

// allThreads makes a system call on every thread. It must have the same result on each. In a
// program with threads of a C library it reaches only the calling one.
func allThreads(nr, a1, a2, a3 uintptr) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _, errno := syscall.AllThreadsSyscall(nr, a1, a2, a3)
	if errors.Is(errno, unix.ENOTSUP) {
		_, _, errno = syscall.RawSyscall(nr, a1, a2, a3)
	}
	if errno != 0 {
		return errno
	}
	return nil
}
