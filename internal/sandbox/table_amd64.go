package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// foreignCalls is the first number of system calls of another kind: those of the x32 ABI have the
// same architecture and other numbers.
const foreignCalls = 0x40000000

// Name and number of fstatat(2).
const (
	nameFstatat = "newfstatat"
	sysFstatat  = unix.SYS_NEWFSTATAT
)

func moreCalls() []call {
	return []call{
		{nameFstatat, sysFstatat, Pasta, carry, "watch: look whether a namespace's name is still there", []rule{
			{is(3, unix.AT_SYMLINK_NOFOLLOW)},
		}, "without following links"},
		{name: "poll", nr: unix.SYS_POLL, modes: both, phases: always, why: "look whether a descriptor is ready"},
	}
}
