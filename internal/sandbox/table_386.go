package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_I386

// foreignCalls would be the first number of system calls of another kind. A program that changes to
// 64 bits has another architecture.
const foreignCalls = 0

func moreCalls() []call {
	return append(append(socketCalls(), moreCalls32()...), pollCall(),
		call{name: "set_thread_area", nr: unix.SYS_SET_THREAD_AREA, modes: both, phases: always, why: "runtime: create threads"})
}
