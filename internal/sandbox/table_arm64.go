package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// foreignCalls would be the first number of system calls of another kind.
const foreignCalls = 0

// lowHalf is where the low half of a register is in 8 bytes.
const lowHalf = 0

// Name and number of fstatat(2).
const nameFstatat, sysFstatat = "fstatat", unix.SYS_FSTATAT

func moreCalls() []call { return nil }
