package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock's versions, and the first kernel with each.
const (
	landlockFiles    = 1 // 5.13
	landlockRefer    = 2 // 5.19
	landlockTruncate = 3 // 6.2
	landlockTCP      = 4 // 6.7
	landlockDevices  = 5 // 6.10
	landlockScopes   = 6 // 6.12
)

// landlockErrata asks landlock_create_ruleset(2) which faults of the kernel are mended, one bit
// each (Linux 6.15).
const landlockErrata = unix.LANDLOCK_CREATE_RULESET_ERRATA

// signalsErratum is the bit of the fault that threads could not signal each other if each had
// entered its domain by itself, as ours do.
const signalsErratum = 1 << (2 - 1)

// landlockNetPort is LANDLOCK_RULE_NET_PORT of linux/landlock.h.
const landlockNetPort = 2

// landlock denies all threads every path, signals and abstract UNIX sockets to the outside, and,
// unless ports may have to be opened later, all TCP ports to bind but those the kernel chooses:
// as much of it as the kernel knows. It returns what that is, "" without Landlock.
func landlock(latePorts bool) (string, error) {
	abi, err := landlockRuleset(nil, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		return "", nil // not built, not enabled, or not permitted in this container
	}
	if err != nil {
		return "", err
	}
	attr, what := landlockRules(abi, latePorts)
	fd, err := landlockRuleset(&attr, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if attr.Handled_access_net&unix.LANDLOCK_ACCESS_NET_BIND_TCP != 0 {
		// struct landlock_net_port_attr: port 0 stands for one the kernel chooses.
		rule := struct{ access, port uint64 }{access: unix.LANDLOCK_ACCESS_NET_BIND_TCP}
		_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(fd), landlockNetPort,
			uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
		if errno != 0 {
			return "", fmt.Errorf("landlock_add_rule: %w", errno)
		}
	}
	if _, err := allThreads(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(fd), 0, 0); err != nil {
		return "", fmt.Errorf("landlock_restrict_self: %w", err)
	}
	return fmt.Sprintf("version %d: %s", abi, strings.Join(what, ", ")), nil
}

// landlockRules is what a kernel with this version can deny us.
func landlockRules(abi int, latePorts bool) (unix.LandlockRulesetAttr, []string) {
	what := []string{"files"}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1}
	if abi >= landlockRefer {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= landlockTruncate {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= landlockTCP && !latePorts {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP
		what = append(what, "TCP ports")
	}
	if abi >= landlockDevices {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= landlockScopes {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
		what = append(what, "abstract sockets")
		mended, err := landlockRuleset(nil, landlockErrata)
		if err == nil && mended&signalsErratum != 0 {
			attr.Scoped |= unix.LANDLOCK_SCOPE_SIGNAL
			what = append(what, "signals")
		}
	}
	return attr, what
}

// landlockRuleset is landlock_create_ruleset(2): a descriptor or, with flags, a number.
func landlockRuleset(attr *unix.LandlockRulesetAttr, flags uintptr) (int, error) {
	var size uintptr
	if attr != nil {
		size = unsafe.Sizeof(*attr)
	}
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), size, flags)
	runtime.KeepAlive(attr)
	if errno != 0 {
		return -1, fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	return int(n), nil
}
