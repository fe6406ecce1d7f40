package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_S390X

// foreignCalls would be the first number of system calls of another kind: programs of 31 bits have
// an architecture of their own.
const foreignCalls = 0

// lowHalf is where the low half of a register is in 8 bytes.
const lowHalf = 4

// Calls with another name and number on other machines.
const (
	nameMmap, sysMmap           = "mmap", unix.SYS_MMAP
	nameFcntl, sysFcntl         = "fcntl", unix.SYS_FCNTL
	nameFstat, sysFstat         = "fstat", unix.SYS_FSTAT
	nameFstatat, sysFstatat     = "newfstatat", unix.SYS_NEWFSTATAT
	nameLseek, sysLseek         = "lseek", unix.SYS_LSEEK
	nameFtruncate, sysFtruncate = "ftruncate", unix.SYS_FTRUNCATE
	nameGetuid, sysGetuid       = "getuid", unix.SYS_GETUID
	nameGeteuid, sysGeteuid     = "geteuid", unix.SYS_GETEUID
	nameGetgid, sysGetgid       = "getgid", unix.SYS_GETGID
	nameGetegid, sysGetegid     = "getegid", unix.SYS_GETEGID
	nameGetrlimit, sysGetrlimit = "getrlimit", unix.SYS_GETRLIMIT
)

// cloneFlags is the argument of clone(2) with the flags: here the stack comes first.
const cloneFlags = 1

// mmapInMemory says that mmap(2) takes an address of its arguments.
const mmapInMemory = true

func moreCalls() []call { return append(socketCalls(), pollCall()) }
