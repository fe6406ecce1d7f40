package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_ARM

// foreignCalls is the first number of system calls of another kind: those that only ARM has, and
// those of the old convention (OABI). No architecture tells them from others.
const foreignCalls = 0x0f0000

func moreCalls() []call { return append(moreCalls32(), pollCall()) }
