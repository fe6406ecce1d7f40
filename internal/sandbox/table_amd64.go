package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// foreignCalls is the first number of system calls of another kind: those of the x32 ABI have the
// same architecture and other numbers.
const foreignCalls = 0x40000000

// lowHalf is where the low half of a register is in 8 bytes.
const lowHalf = 0

// Name and number of fstatat(2).
const nameFstatat, sysFstatat = "newfstatat", unix.SYS_NEWFSTATAT

func moreCalls() []call { return []call{pollCall()} }
