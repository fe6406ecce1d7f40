package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// foreignCalls would be the first number of system calls of another kind.
const foreignCalls = 0

// Name and number of fstatat(2).
const (
	nameFstatat = "fstatat"
	sysFstatat  = unix.SYS_FSTATAT
)

func moreCalls() []call {
	return []call{
		{nameFstatat, sysFstatat, Pasta, carry, "watch: look whether a namespace's name is still there", []rule{
			{is(3, unix.AT_SYMLINK_NOFOLLOW)},
		}, "without following links"},
	}
}
