package sandbox

import (
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Mode says which table of system calls a translator gets. Modes are bits: an entry of the table
// can be for several.
type Mode uint8

// The modes.
const (
	Pasta Mode = 1 << iota // a network namespace
	Passt                  // a virtual machine
	Vhost                  // a virtual machine whose memory is shared

	both = Pasta | Passt | Vhost
)

// Phase is a part of the life of a process, with a list of its own. Phases are bits, too.
type Phase uint8

// The phases.
const (
	Starting Phase = 1 << iota // a translator, from the command line until it is ready
	Carrying                   // a translator, from then on
	Waiting                    // a launcher, once the processes it waits for run

	// What a translator does when it is ready it has to be allowed before: filters add up.
	carry  = Starting | Carrying
	always = carry | Waiting
)

func (p Phase) String() string {
	var names []string
	for i, name := range []string{"starting", "carrying", "waiting"} {
		if p&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

func (m Mode) String() string {
	switch m {
	case Pasta:
		return "pasta"
	case Passt:
		return "passt"
	case Vhost:
		return "vhost-user"
	}
	return "unknown"
}

// call is a system call that is allowed.
type call struct {
	name   string // of section 2 of the manual
	nr     uint32
	modes  Mode
	phases Phase
	why    string
	rules  []rule // one of them must hold; none: any arguments
	only   string // the rules in words
}

// rule is a set of conditions on the arguments, which must all hold.
type rule []cond

// cond is a condition on one argument: what is left of its low 32 bits under mask must be one of
// the values. The upper half of a register does not count: all arguments looked at are 32 bits
// wide, or mean nothing there.
type cond struct {
	arg    uint32
	mask   uint32
	values []uint32
	who    who // if not nobody, the values are PIDs
}

// who are processes whose PIDs are known only when the filter is made.
type who uint8

const (
	nobody who = iota
	self
	children // those a launcher waits for
)

func is(arg uint32, values ...uint32) cond { return cond{arg: arg, mask: ^uint32(0), values: values} }

// within allows no bit that is not in bits.
func within(arg, bits uint32) cond { return cond{arg: arg, mask: ^bits, values: []uint32{0}} }

// under is is, ignoring some bits.
func under(arg, ignored uint32, values ...uint32) cond {
	return cond{arg: arg, mask: ^ignored, values: values}
}

func isPID(arg uint32, w who) cond { return cond{arg: arg, mask: ^uint32(0), who: w} }

// threadFlags are the flags Go's runtime creates a thread with, on some architectures with
// CLONE_SETTLS, which sets a register. Not one of them makes a process or
// a namespace.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
	unix.CLONE_SYSVSEM | unix.CLONE_THREAD

// calls is the one table. What is not here, or has other arguments, ends the process. A call can
// be there twice: a phase goes by the first entry that is for it.
//
// Calls with conditions come first: the kernel remembers which calls are allowed in any case and
// does not run the filter for them (Linux 5.11), so that the order matters to the others alone.
//
// It is made when it is first needed: a launcher has other things to do before.
var calls = sync.OnceValue(func() []call {
	return slices.Concat(startCalls(), []call{
		// Sockets.
		{"setsockopt", unix.SYS_SETSOCKOPT, both, carry, "buffers, timing and error reports of a flow's socket", []rule{
			{is(1, unix.SOL_SOCKET), is(2, unix.SO_PEEK_OFF, unix.SO_RCVLOWAT, unix.SO_LINGER, unix.SO_KEEPALIVE,
				unix.SO_REUSEADDR, unix.SO_REUSEPORT, unix.SO_SNDBUF, unix.SO_RCVBUF, unix.SO_BINDTODEVICE,
				unix.SO_OOBINLINE, unix.SO_TIMESTAMP, unix.SO_RXQ_OVFL, unix.SO_BUSY_POLL)},
			{is(1, unix.SOL_TCP), is(2, unix.TCP_NODELAY, unix.TCP_QUICKACK, unix.TCP_MAXSEG, unix.TCP_KEEPIDLE,
				unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT, unix.TCP_USER_TIMEOUT, unix.TCP_WINDOW_CLAMP,
				unix.TCP_SYNCNT, unix.TCP_NOTSENT_LOWAT, unix.TCP_CORK, unix.TCP_LINGER2, unix.TCP_DEFER_ACCEPT)},
			{is(1, unix.SOL_UDP), is(2, unix.UDP_GRO, unix.UDP_SEGMENT)},
			{is(1, unix.SOL_IP), is(2, unix.IP_TOS, unix.IP_TTL, unix.IP_RECVERR, unix.IP_FREEBIND, unix.IP_PKTINFO,
				unix.IP_MTU_DISCOVER, unix.IP_RECVTTL, unix.IP_RECVTOS, unix.IP_MULTICAST_TTL, unix.IP_MULTICAST_LOOP,
				unix.IP_MULTICAST_ALL, unix.IP_BIND_ADDRESS_NO_PORT, unix.IP_UNICAST_IF, unix.IP_MULTICAST_IF)},
			{is(1, unix.SOL_IPV6), is(2, unix.IPV6_V6ONLY, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR, unix.IPV6_FREEBIND,
				unix.IPV6_RECVPKTINFO, unix.IPV6_PKTINFO, unix.IPV6_TCLASS, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVHOPLIMIT,
				unix.IPV6_RECVTCLASS, unix.IPV6_MULTICAST_HOPS, unix.IPV6_MULTICAST_LOOP, unix.IPV6_MULTICAST_ALL,
				unix.IPV6_UNICAST_IF, unix.IPV6_MULTICAST_IF, unix.IPV6_DONTFRAG)},
		}, "named options of sockets, TCP, UDP, IP and IPv6; no socket filters, no netfilter, no upper layer protocols"},
		{"socket", unix.SYS_SOCKET, both, carry, "a flow's socket", []rule{
			{is(0, unix.AF_INET, unix.AF_INET6), under(1, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.SOCK_STREAM, unix.SOCK_DGRAM),
				is(2, 0, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6)},
		}, "IPv4 and IPv6 streams and datagrams, for TCP, UDP and ping"},
		{nameFcntl, sysFcntl, both, always, "copies of descriptors, non-blocking mode, size of a pipe, lock of the log file", []rule{
			{is(1, unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_DUPFD_CLOEXEC, unix.F_SETPIPE_SZ, unix.F_GETPIPE_SZ,
				unix.F_SETLK, unix.F_SETLKW)},
			{is(1, unix.F_SETFD), is(2, unix.FD_CLOEXEC)},
		}, "these; close-on-exec can be set, not unset"},
		{"accept4", unix.SYS_ACCEPT4, both, carry, "connections to listening sockets", []rule{
			{within(3, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)},
		}, "no flags but SOCK_NONBLOCK and SOCK_CLOEXEC"},

		mmapCall(Vhost, carry, "the guest's memory; runtime: memory", []rule{
			{within(2, unix.PROT_READ|unix.PROT_WRITE), is(3, unix.MAP_SHARED|unix.MAP_NORESERVE)},
			{within(2, unix.PROT_READ|unix.PROT_WRITE), under(3, unix.MAP_FIXED, unix.MAP_ANON|unix.MAP_PRIVATE)},
		}, "memory that is not executable: private and anonymous, or shared with a descriptor"),

		// Go's runtime.
		mmapCall(both, always, "runtime: memory", []rule{
			{within(2, unix.PROT_READ|unix.PROT_WRITE), under(3, unix.MAP_FIXED, unix.MAP_ANON|unix.MAP_PRIVATE)},
		}, "private anonymous memory that is not executable"),
		{"clone", unix.SYS_CLONE, both, always, "runtime: threads", []rule{
			{under(cloneFlags, unix.CLONE_SETTLS, threadFlags)},
		}, "exactly the flags of a thread: no process, no namespace"},
		{"tgkill", unix.SYS_TGKILL, both, always, "runtime: preempt a goroutine, die of a signal", []rule{
			{isPID(0, self)},
		}, "threads of the process itself"},
	},
		moreCalls(), // those of the architecture
		[]call{
			{nameFstatat, sysFstatat, Pasta, carry, "watch: look whether a namespace's name is still there", []rule{
				{is(3, unix.AT_SYMLINK_NOFOLLOW)},
			}, "without following links"},
			{"pipe2", unix.SYS_PIPE2, Pasta, carry, "splice: a pipe for each direction of a connection", []rule{
				{is(1, unix.O_NONBLOCK|unix.O_CLOEXEC)},
			}, "non-blocking and close-on-exec"},
			{"ioctl", unix.SYS_IOCTL, both, carry, "unread and unsent bytes of a socket; leave a tap behind for its namespace to remove", []rule{
				{is(1, unix.SIOCINQ, unix.SIOCOUTQ, siocOutQNSD, unix.TUNSETPERSIST)},
			}, "SIOCINQ, SIOCOUTQ, SIOCOUTQNSD, TUNSETPERSIST"},

			{name: "connect", nr: unix.SYS_CONNECT, modes: both, phases: carry, why: "a flow's socket"},
			{name: "bind", nr: unix.SYS_BIND, modes: both, phases: carry, why: "addresses of flows, ports that appear while we run"},
			{name: "listen", nr: unix.SYS_LISTEN, modes: both, phases: carry, why: "ports that appear while we run"},
			{name: "shutdown", nr: unix.SYS_SHUTDOWN, modes: both, phases: carry, why: "pass the end of one direction on"},
			{name: "getsockname", nr: unix.SYS_GETSOCKNAME, modes: both, phases: carry, why: "address and port the kernel chose"},
			{name: "getpeername", nr: unix.SYS_GETPEERNAME, modes: both, phases: carry, why: "who has connected"},
			{name: "getsockopt", nr: unix.SYS_GETSOCKOPT, modes: both, phases: always, why: "errors, state of a TCP connection, free buffer, credentials of a peer"},
			{name: "sendto", nr: unix.SYS_SENDTO, modes: both, phases: always, why: "data of flows, system log, requests over netlink, answer to the launcher"},
			{name: "recvfrom", nr: unix.SYS_RECVFROM, modes: both, phases: carry, why: "data of flows"},
			{name: "sendmsg", nr: unix.SYS_SENDMSG, modes: both, phases: always, why: "data of flows in several pieces, answer to the launcher"},
			{name: "recvmsg", nr: unix.SYS_RECVMSG, modes: both, phases: always, why: "data of flows into several pieces, ICMP errors, netlink"},
			{name: "sendmmsg", nr: unix.SYS_SENDMMSG, modes: both, phases: carry, why: "many datagrams at once"},
			{name: "recvmmsg", nr: unix.SYS_RECVMMSG, modes: both, phases: carry, why: "many datagrams at once"},
			{name: "splice", nr: unix.SYS_SPLICE, modes: Pasta, phases: carry, why: "splice: data from socket to socket through a pipe"},

			{name: "read", nr: unix.SYS_READ, modes: both, phases: always, why: "tap, links, watches, runtime's wake-ups"},
			{name: "write", nr: unix.SYS_WRITE, modes: both, phases: always, why: "tap, log, capture, runtime's wake-ups"},
			{name: "readv", nr: unix.SYS_READV, modes: both, phases: carry, why: "frames into several pieces"},
			{name: "writev", nr: unix.SYS_WRITEV, modes: both, phases: always, why: "frames and capture in several pieces"},
			{name: "dup3", nr: unix.SYS_DUP3, modes: both, phases: carry, why: "close sockets of flows past Go's scheduler"},
			{name: "close", nr: unix.SYS_CLOSE, modes: both, phases: always, why: "every descriptor"},
			{name: nameLseek, nr: sysLseek, modes: both, phases: always, why: "length of the log, tables of bound ports"},
			{name: "pread64", nr: unix.SYS_PREAD64, modes: both, phases: always, why: "log file: find where to cut"},
			{name: "pwrite64", nr: unix.SYS_PWRITE64, modes: both, phases: always, why: "log file: add a line, cut"},
			{name: "fallocate", nr: unix.SYS_FALLOCATE, modes: both, phases: always, why: "log file: cut the oldest part out"},
			{name: nameFtruncate, nr: sysFtruncate, modes: both, phases: always, why: "log file: cut"},
			{name: nameFstat, nr: sysFstat, modes: both, phases: always, why: "log and capture file: size and block size; control socket: mode"},
			{name: "fsync", nr: unix.SYS_FSYNC, modes: both, phases: always, why: "log and capture file at the end"},

			{name: "ppoll", nr: unix.SYS_PPOLL, modes: both, phases: always, why: "look whether a socket is ready"},
			{name: "epoll_pwait", nr: unix.SYS_EPOLL_PWAIT, modes: both, phases: always, why: "runtime: wait for descriptors"},
			{name: "epoll_ctl", nr: unix.SYS_EPOLL_CTL, modes: both, phases: always, why: "runtime: descriptors to wait for"},
			{name: "epoll_create1", nr: unix.SYS_EPOLL_CREATE1, modes: both, phases: always, why: "splice: one set of descriptors for many connections"},
			{name: "munmap", nr: unix.SYS_MUNMAP, modes: both, phases: always, why: "runtime: memory"},
			{name: "madvise", nr: unix.SYS_MADVISE, modes: both, phases: always, why: "runtime: give memory back"},
			{name: "futex", nr: unix.SYS_FUTEX, modes: both, phases: always, why: "runtime: locks, sleeping threads"},
			{name: "nanosleep", nr: unix.SYS_NANOSLEEP, modes: both, phases: always, why: "runtime: short waits"},
			{name: "sched_yield", nr: unix.SYS_SCHED_YIELD, modes: both, phases: always, why: "runtime, and bounded spins: let others go first"},
			{name: "rt_sigaction", nr: unix.SYS_RT_SIGACTION, modes: both, phases: always, why: "runtime: handlers at the end, and when it dies of a signal"},
			{name: "rt_sigprocmask", nr: unix.SYS_RT_SIGPROCMASK, modes: both, phases: always, why: "runtime: create threads"},
			{name: "rt_sigreturn", nr: unix.SYS_RT_SIGRETURN, modes: both, phases: always, why: "runtime: end of a signal handler"},
			{name: "sigaltstack", nr: unix.SYS_SIGALTSTACK, modes: both, phases: always, why: "runtime: stacks of signal handlers"},
			{name: "restart_syscall", nr: unix.SYS_RESTART_SYSCALL, modes: both, phases: always, why: "kernel: go on after a stop"},
			{name: "getpid", nr: unix.SYS_GETPID, modes: both, phases: always, why: "runtime: whom to preempt"},
			{name: "gettid", nr: unix.SYS_GETTID, modes: both, phases: always, why: "runtime: create threads"},
			{name: "clock_gettime", nr: unix.SYS_CLOCK_GETTIME, modes: both, phases: always, why: "time, on machines where it takes a system call"},
			{name: "getrandom", nr: unix.SYS_GETRANDOM, modes: both, phases: always, why: "sequence numbers, identifiers, runtime's hashes"},
			{name: "exit", nr: unix.SYS_EXIT, modes: both, phases: always, why: "runtime: end of a thread"},
			{name: "exit_group", nr: unix.SYS_EXIT_GROUP, modes: both, phases: always, why: "the end"},
		})
})

// mmapCall is an entry for mmap(2), whose arguments no filter sees on some machines.
func mmapCall(modes Mode, phases Phase, why string, rules []rule, only string) call {
	if mmapInMemory {
		rules, only = nil, ""
	}
	return call{nameMmap, sysMmap, modes, phases, why, rules, only}
}

// siocOutQNSD is SIOCOUTQNSD of linux/sockios.h: bytes of a TCP socket that were not sent yet.
const siocOutQNSD = 0x894b

// list returns what a mode is allowed in a phase, a call once.
func list(mode Mode, phase Phase) []*call {
	var l []*call
	seen := make(map[uint32]bool, 128)
	calls := calls()
	for i := range calls {
		if c := &calls[i]; c.modes&mode != 0 && c.phases&phase != 0 && !seen[c.nr] {
			seen[c.nr] = true
			l = append(l, c)
		}
	}
	return l
}
