package sandbox

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Caps is a set of capabilities, as in /proc/PID/status.
type Caps uint64

func (c Caps) String() string {
	switch c {
	case 0:
		return "none"
	case 1 << unix.CAP_NET_BIND_SERVICE:
		return "CAP_NET_BIND_SERVICE"
	}
	return fmt.Sprintf("%016x", uint64(c))
}

// keepCaps gives up, on every thread, all permitted and effective capabilities but keep, and all
// inheritable and ambient ones. Those of keep that the process does not have it does not get. It
// returns what is left. The bounding set stays as it is. In a program linked with a C library only
// the calling thread is changed, and partial set.
func keepCaps(keep Caps) (left Caps, partial bool, err error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return 0, false, fmt.Errorf("read capabilities: %w", err)
	}
	left = keep & (Caps(sets[1].Permitted)<<32 | Caps(sets[0].Permitted))
	for i := range sets {
		word := uint32(left >> (32 * i))
		sets[i] = unix.CapUserData{Effective: word, Permitted: word}
	}
	head.Pid = 0
	// What is not inheritable cannot be ambient: that set empties with the other.
	partial, err = allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&sets)), 0)
	runtime.KeepAlive(&head)
	runtime.KeepAlive(&sets)
	if err != nil {
		return 0, partial, fmt.Errorf("drop capabilities: %w", err)
	}
	return left, partial, nil
}

// shared are the capabilities that a launcher may need for what it does itself, or passes on: to
// enter, create and configure namespaces, to become another user, to open files for one, to bind
// low ports, and to leave none of them to what it starts.
const shared = 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_SYS_CHROOT |
	1<<unix.CAP_SYS_PTRACE

// Shed gives up, on every thread, the permitted and effective capabilities that no launcher needs.
// It is for the beginning of a program that may run as root. To map that user into a namespace
// takes one more (user_namespaces(7)). In a program linked with a C library only the calling thread
// is changed.
func Shed() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	keep := Caps(shared)
	if unix.Geteuid() == 0 {
		keep |= 1 << unix.CAP_SETFCAP
	}
	if has := Caps(sets[1].Permitted)<<32 | Caps(sets[0].Permitted); has&^keep == 0 {
		return nil
	}
	for i := range sets {
		word := uint32(keep >> (32 * i))
		sets[i].Effective &= word
		sets[i].Permitted &= word
	}
	head.Pid = 0
	_, err := allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&sets)), 0)
	runtime.KeepAlive(&head)
	runtime.KeepAlive(&sets)
	if err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
