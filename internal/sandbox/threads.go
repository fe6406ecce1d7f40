package sandbox

import (
	"errors"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// allThreads makes a system call on every thread. It must have the same result on each. In a
// program with threads of a C library it reaches only the calling one, and reports that.
func allThreads(nr, a1, a2, a3 uintptr) (partial bool, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _, errno := syscall.AllThreadsSyscall(nr, a1, a2, a3)
	if partial = errors.Is(errno, unix.ENOTSUP); partial {
		_, _, errno = syscall.RawSyscall(nr, a1, a2, a3)
	}
	if errno != 0 {
		return partial, errno
	}
	return partial, nil
}
