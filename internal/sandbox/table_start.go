package sandbox

import "golang.org/x/sys/unix"

// startCalls are the entries that a translator has no use for any more once it is ready, and those
// of the launcher's own. A translator opens what it will need, and takes rights from itself; not
// even then does it start a process or execute a program.
func startCalls() []call {
	return []call{
		{"prctl", unix.SYS_PRCTL, both, Starting, "confine: not dumpable, no new rights", []rule{
			{is(0, unix.PR_SET_DUMPABLE), is(1, 0)},
			{is(0, unix.PR_SET_NO_NEW_PRIVS, unix.PR_GET_NO_NEW_PRIVS)},
		}, "PR_SET_DUMPABLE to 0, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS"},
		{"socket", unix.SYS_SOCKET, both, Starting, "flows, netlink, system log, names of interfaces", []rule{
			{is(0, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_UNIX),
				under(1, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.SOCK_STREAM, unix.SOCK_DGRAM)},
			{is(0, unix.AF_NETLINK), under(1, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.SOCK_RAW)},
		}, "IPv4, IPv6, UNIX, netlink; none raw but netlink's"},
		{"seccomp", unix.SYS_SECCOMP, both, Starting, "confine: the filter of the next phase", []rule{
			{is(0, unix.SECCOMP_SET_MODE_FILTER)},
		}, "another filter"},
		{"setns", unix.SYS_SETNS, Pasta, Starting, "enter the guest's network namespace", []rule{
			{is(1, unix.CLONE_NEWNET)},
		}, "network namespaces"},
		{"prlimit64", unix.SYS_PRLIMIT64, both, Starting, "as many descriptors as the system lets us have, no core file", []rule{
			{isPID(0, self)},
			{is(0, 0)},
		}, "of the process itself"},
		{"waitid", unix.SYS_WAITID, both, Waiting, "the end of a process", nil, ""},
		{"wait4", unix.SYS_WAIT4, both, Waiting, "the end of a process, before Linux 5.4", nil, ""},
		{"kill", unix.SYS_KILL, both, Waiting, "end a process, before Linux 5.4", []rule{
			{isPID(0, children)},
		}, "processes of the launcher's own"},
		{"pidfd_send_signal", unix.SYS_PIDFD_SEND_SIGNAL, both, Waiting, "end a process", nil, ""},
		{"eventfd2", unix.SYS_EVENTFD2, both, Starting | Waiting, "runtime: wake-ups", nil, ""},

		{nameGetrlimit, sysGetrlimit, both, Starting, "how many descriptors there may be", nil, ""},
		{"openat", unix.SYS_OPENAT, both, Starting, "files of /proc, tap, capture, resolv.conf, time zone", nil, ""},
		{nameFstatat, sysFstatat, both, Starting, "files by name", nil, ""},
		{"getdents64", unix.SYS_GETDENTS64, both, Starting, "directories", nil, ""},
		{"readlinkat", unix.SYS_READLINKAT, both, Starting, "names of files", nil, ""},
		{"faccessat", unix.SYS_FACCESSAT, both, Starting, "whether there is a file", nil, ""},
		{"uname", unix.SYS_UNAME, both, Starting, "the kernel's version", nil, ""},
		{"setsockopt", unix.SYS_SETSOCKOPT, both, Starting, "what the kernel knows, netlink", nil, ""},
		{nameFcntl, sysFcntl, both, Starting, "descriptors that were passed on", nil, ""},
		{"dup3", unix.SYS_DUP3, both, Starting, "let go of the standard streams", nil, ""},
		{"pipe2", unix.SYS_PIPE2, both, Starting, "how large a pipe may be", nil, ""},
		{"ioctl", unix.SYS_IOCTL, both, Starting, "open and set up a tap, configure interfaces", nil, ""},
		{"setsid", unix.SYS_SETSID, both, Starting, "let go of the session", nil, ""},
		{nameGetuid, sysGetuid, both, Starting, "who we are", nil, ""},
		{nameGeteuid, sysGeteuid, both, Starting, "who we are", nil, ""},
		{nameGetgid, sysGetgid, both, Starting, "who we are", nil, ""},
		{nameGetegid, sysGetegid, both, Starting, "who we are", nil, ""},
		{"sched_getaffinity", unix.SYS_SCHED_GETAFFINITY, both, Starting, "runtime: number of processors", nil, ""},
		{"mount", unix.SYS_MOUNT, both, Starting, "confine: empty root", nil, ""},
		{"umount2", unix.SYS_UMOUNT2, both, Starting, "confine: empty root", nil, ""},
		{"pivot_root", unix.SYS_PIVOT_ROOT, both, Starting, "confine: empty root", nil, ""},
		{"chroot", unix.SYS_CHROOT, both, Starting, "confine: empty root", nil, ""},
		{"chdir", unix.SYS_CHDIR, both, Starting, "confine: empty root", nil, ""},
		{"capget", unix.SYS_CAPGET, both, Starting, "confine: capabilities", nil, ""},
		{"capset", unix.SYS_CAPSET, both, Starting, "confine: capabilities", nil, ""},
		{"landlock_create_ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, both, Starting, "confine: Landlock", nil, ""},
		{"landlock_add_rule", unix.SYS_LANDLOCK_ADD_RULE, both, Starting, "confine: Landlock", nil, ""},
		{"landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, both, Starting, "confine: Landlock", nil, ""},
	}
}
