//go:build 386 || arm

package sandbox

import "golang.org/x/sys/unix"

// Calls with another name and number where a word has 64 bits: these take offsets and identifiers
// that are wider than the first ones of their kind.
const (
	nameMmap, sysMmap           = "mmap2", unix.SYS_MMAP2
	nameFcntl, sysFcntl         = "fcntl64", unix.SYS_FCNTL64
	nameFstat, sysFstat         = "fstat64", unix.SYS_FSTAT64
	nameFstatat, sysFstatat     = "fstatat64", unix.SYS_FSTATAT64
	nameLseek, sysLseek         = "_llseek", unix.SYS__LLSEEK
	nameFtruncate, sysFtruncate = "ftruncate64", unix.SYS_FTRUNCATE64
	nameGetuid, sysGetuid       = "getuid32", unix.SYS_GETUID32
	nameGeteuid, sysGeteuid     = "geteuid32", unix.SYS_GETEUID32
	nameGetgid, sysGetgid       = "getgid32", unix.SYS_GETGID32
	nameGetegid, sysGetegid     = "getegid32", unix.SYS_GETEGID32
	nameGetrlimit, sysGetrlimit = "ugetrlimit", unix.SYS_UGETRLIMIT
)

// lowHalf is where the low half of an argument is in 8 bytes.
const lowHalf = 0

// cloneFlags is the argument of clone(2) with the flags.
const cloneFlags = 0

// mmapInMemory says that mmap2(2) takes an address of its arguments.
const mmapInMemory = false

// moreCalls32 are those that Go's runtime makes beside the wider ones, or prefers to narrower ones.
func moreCalls32() []call {
	return []call{
		{"fcntl", unix.SYS_FCNTL, both, always, "runtime: non-blocking mode, copies of descriptors", []rule{
			{is(1, unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_DUPFD_CLOEXEC)},
		}, "these"},
		{name: "futex_time64", nr: unix.SYS_FUTEX_TIME64, modes: both, phases: always, why: "runtime: locks, sleeping threads"},
		{name: "clock_gettime64", nr: unix.SYS_CLOCK_GETTIME64, modes: both, phases: always, why: "time, on machines where it takes a system call"},
	}
}
