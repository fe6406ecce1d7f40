//go:build amd64 || arm64 || ppc64le || riscv64

package sandbox

import "golang.org/x/sys/unix"

// Calls with another name and number where a word has 32 bits.
const (
	nameMmap, sysMmap           = "mmap", unix.SYS_MMAP
	nameFcntl, sysFcntl         = "fcntl", unix.SYS_FCNTL
	nameFstat, sysFstat         = "fstat", unix.SYS_FSTAT
	nameLseek, sysLseek         = "lseek", unix.SYS_LSEEK
	nameFtruncate, sysFtruncate = "ftruncate", unix.SYS_FTRUNCATE
	nameGetuid, sysGetuid       = "getuid", unix.SYS_GETUID
	nameGeteuid, sysGeteuid     = "geteuid", unix.SYS_GETEUID
	nameGetgid, sysGetgid       = "getgid", unix.SYS_GETGID
	nameGetegid, sysGetegid     = "getegid", unix.SYS_GETEGID
	nameGetrlimit, sysGetrlimit = "getrlimit", unix.SYS_GETRLIMIT
)

// cloneFlags is the argument of clone(2) with the flags.
const cloneFlags = 0

// mmapInMemory says that mmap(2) takes an address of its arguments.
const mmapInMemory = false
