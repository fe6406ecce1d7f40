package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// machine runs a filter as the kernel does.
type machine struct {
	t  *testing.T
	vm *bpf.VM
}

const testPID = 4711

var testPIDs = pids{testPID, []int{4712, 4713}}

// program is the filter of a mode and phase.
func program(mode Mode, phase Phase, action Action, who pids) []unix.SockFilter {
	return assemble(list(mode, phase), auditArch, foreignCalls, action, who)
}

// count is how many calls that are.
func count(mode Mode, phase Phase) int { return len(list(mode, phase)) }

func newMachine(t *testing.T, mode Mode, phase Phase) *machine {
	t.Helper()
	return machineOf(t, program(mode, phase, deny, testPIDs))
}

func machineOf(t *testing.T, program []unix.SockFilter) *machine {
	t.Helper()
	var code []bpf.RawInstruction
	for _, i := range program {
		code = append(code, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	if len(code) > unix.BPF_MAXINSNS {
		t.Fatalf("%d instructions, the kernel takes %d", len(code), unix.BPF_MAXINSNS)
	}
	insns, ok := bpf.Disassemble(code)
	if !ok {
		t.Fatal("there are instructions that package bpf does not know")
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{t, vm}
}

// run returns what the filter says to a system call. Package bpf reads packets, which are in
// network byte order: words go in that way.
func (m *machine) run(arch, nr uint32, args ...uint64) uint32 {
	m.t.Helper()
	word := func(b []byte, v uint32) []byte {
		return append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	b := word(word(nil, nr), arch)
	b = append(b, make([]byte, 8)...) // instruction pointer
	for i := range 6 {
		var v uint64
		if i < len(args) {
			v = args[i]
		}
		halves := [2]uint32{uint32(v), uint32(v >> 32)}
		// lowHalf is 0 on a little-endian machine
		b = word(word(b, halves[lowHalf/4]), halves[1-lowHalf/4])
	}
	n, err := m.vm.Run(b)
	if err != nil {
		m.t.Fatal(err)
	}
	return uint32(n)
}

func (m *machine) allows(nr uint32, args ...uint64) bool {
	m.t.Helper()
	switch r := m.run(auditArch, nr, args...); r {
	case unix.SECCOMP_RET_ALLOW:
		return true
	case deny.ret():
		return false
	default:
		m.t.Fatalf("call %d: filter returns %#x", nr, r)
		return false
	}
}

func eachList(t *testing.T, f func(*testing.T, Mode, Phase)) {
	for _, mode := range []Mode{Pasta, Passt, Vhost} {
		for _, phase := range []Phase{Starting, Carrying, Waiting} {
			t.Run(mode.String()+", "+phase.String(), func(t *testing.T) { f(t, mode, phase) })
		}
	}
}

// TestFilterAllowsTheTableOnly asks the filter about every number.
func TestFilterAllowsTheTableOnly(t *testing.T) {
	eachList(t, func(t *testing.T, mode Mode, phase Phase) {
		m := newMachine(t, mode, phase)
		free := make(map[uint32]bool)
		for _, c := range list(mode, phase) {
			free[c.nr] = len(c.rules) == 0
			for _, r := range c.rules {
				if args := example(r); !m.allows(c.nr, args...) {
					t.Errorf("%s%#x is not allowed", c.name, args)
				}
			}
		}
		odd := []uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
		for nr := uint32(0); nr < 1024; nr++ {
			if got := m.allows(nr, odd...); got != free[nr] {
				t.Errorf("call %d with senseless arguments: allowed %v, want %v", nr, got, free[nr])
			}
		}
	})
}

// TestStartingAllowsWhatCarryingDoes: the first filter is still there when the second comes, and
// must not forbid more.
func TestStartingAllowsWhatCarryingDoes(t *testing.T) {
	for _, mode := range []Mode{Pasta, Passt, Vhost} {
		m := newMachine(t, mode, Starting)
		for _, c := range list(mode, Carrying) {
			args := [][]uint64{nil}
			for _, r := range c.rules {
				args = append(args, example(r))
			}
			for _, a := range args[min(len(c.rules), 1):] {
				if !m.allows(c.nr, a...) {
					t.Errorf("%s: %s%#x is forbidden before", mode, c.name, a)
				}
			}
		}
	}
}

// example returns arguments that satisfy a rule, with all other bits set.
func example(r rule) []uint64 {
	args := []uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	for _, c := range r {
		values := c.values
		if c.who != nobody {
			values = testPIDs.of(c.who)
		}
		v := values[len(values)-1]
		args[c.arg] = uint64(0xdeadbeef)<<32 | uint64(v) | uint64(^c.mask)
	}
	return args
}

func TestFilterKillsForeignCalls(t *testing.T) {
	m := newMachine(t, Pasta, Carrying)
	for _, alien := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_AARCH64,
		unix.AUDIT_ARCH_S390, unix.AUDIT_ARCH_S390X, unix.AUDIT_ARCH_PPC64LE, unix.AUDIT_ARCH_PPC64, unix.AUDIT_ARCH_PPC,
		unix.AUDIT_ARCH_RISCV64, unix.AUDIT_ARCH_RISCV32, auditArch ^ 1, 0} {
		if alien == auditArch {
			continue
		}
		if got := m.run(alien, unix.SYS_READ); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("architecture %#x: %#x", alien, got)
		}
	}
	if foreignCalls != 0 {
		if got := m.run(auditArch, foreignCalls|unix.SYS_READ); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("calls of another kind: %#x", got)
		}
	}
}

func TestFilterLooksAtArguments(t *testing.T) {
	flags := func(f uint64) []uint64 { // of clone(2)
		args := make([]uint64, 6)
		args[cloneFlags] = f
		return args
	}
	tests := []struct {
		name string
		want bool
		nr   uint32
		args []uint64
	}{
		{"a thread", true, unix.SYS_CLONE, flags(threadFlags)},
		{"a thread with TLS", true, unix.SYS_CLONE, flags(threadFlags | unix.CLONE_SETTLS)},
		{"a process", false, unix.SYS_CLONE, flags(uint64(unix.SIGCHLD))},
		{"a thread in a user namespace", false, unix.SYS_CLONE, flags(threadFlags | unix.CLONE_NEWUSER)},
		{"a traced thread", false, unix.SYS_CLONE, flags(threadFlags | unix.CLONE_PTRACE)},
		{"memory", true, sysMmap, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_ANON | unix.MAP_PRIVATE, ^uint64(0)}},
		{"reserved memory", true, sysMmap, []uint64{0, 4096, unix.PROT_NONE, unix.MAP_ANON | unix.MAP_PRIVATE | unix.MAP_FIXED}},
		{"executable memory", false, sysMmap, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_ANON | unix.MAP_PRIVATE}},
		{"a file", false, sysMmap, []uint64{0, 4096, unix.PROT_READ, unix.MAP_PRIVATE, 3}},
		{"shared memory", false, sysMmap, []uint64{0, 4096, unix.PROT_READ, unix.MAP_ANON | unix.MAP_SHARED}},
		{"a TCP socket", true, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC, 0}},
		{"a ping socket", true, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP}},
		{"a raw socket", false, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}},
		{"MPTCP", false, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}},
		{"UDP-Lite", false, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE}},
		{"a UNIX socket", false, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}},
		{"a netlink socket", false, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_DGRAM, 0}},
		{"a vsock", false, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
		{"a socket of the kernel's cryptography", false, unix.SYS_SOCKET, []uint64{unix.AF_ALG, unix.SOCK_STREAM, 0}},
		{"an option", true, unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_PEEK_OFF}},
		{"that option of another level", false, unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP, unix.SO_PEEK_OFF}},
		{"a socket filter", false, unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER}},
		{"an eBPF socket filter", false, unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_BPF}},
		{"TLS in the kernel", false, unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP, unix.TCP_ULP}},
		{"a netfilter table", false, unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_IP, 64}},
		{"a copy of a descriptor", true, sysFcntl, []uint64{3, unix.F_DUPFD_CLOEXEC, 3}},
		{"a copy for other programs", false, sysFcntl, []uint64{3, unix.F_DUPFD, 3}},
		{"close on exec", true, sysFcntl, []uint64{3, unix.F_SETFD, unix.FD_CLOEXEC}},
		{"no close on exec", false, sysFcntl, []uint64{3, unix.F_SETFD, 0}},
		{"signals for a descriptor", false, sysFcntl, []uint64{3, unix.F_SETOWN, 1}},
		{"unread bytes", true, unix.SYS_IOCTL, []uint64{3, unix.SIOCINQ}},
		{"typing on the terminal", false, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}},
		{"another tap", false, unix.SYS_IOCTL, []uint64{3, unix.TUNSETIFF}},
		{"an address of an interface", false, unix.SYS_IOCTL, []uint64{3, unix.SIOCSIFADDR}},
		{"a signal to a thread of ours", true, unix.SYS_TGKILL, []uint64{testPID, testPID + 1, uint64(unix.SIGURG)}},
		{"a signal to another process", false, unix.SYS_TGKILL, []uint64{1, 1, uint64(unix.SIGKILL)}},
		{"a pipe", true, unix.SYS_PIPE2, []uint64{0, unix.O_NONBLOCK | unix.O_CLOEXEC}},
		{"a notification pipe", false, unix.SYS_PIPE2, []uint64{0, unix.O_EXCL | unix.O_CLOEXEC}},
		{"a connection", true, unix.SYS_ACCEPT4, []uint64{3, 0, 0, unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC}},
	}
	m := newMachine(t, Pasta, Carrying)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.nr == sysMmap && mmapInMemory {
				t.Skip("no filter sees the arguments of mmap here")
			}
			if got := m.allows(tt.nr, tt.args...); got != tt.want {
				t.Errorf("allowed = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestTable compares the names with the numbers, where there is an independent list of both.
func TestTable(t *testing.T) {
	known := map[string]*arch.Info{"386": arch.I386, "amd64": arch.X86_64, "arm": arch.ARM, "arm64": arch.AARCH64}[runtime.GOARCH]
	type entry struct {
		name  string
		modes Mode
		phase Phase
	}
	twice := make(map[entry]bool)
	ready := make(map[string]bool)
	calls := calls()
	for i := range calls {
		c := &calls[i]
		if known != nil {
			if nr, ok := known.SyscallNames[c.name]; !ok || uint32(nr) != c.nr {
				t.Errorf("%s has number %d, want %d", c.name, c.nr, nr)
			}
		}
		switch {
		case twice[entry{c.name, c.modes, c.phases}]:
			t.Errorf("%s is in the table twice", c.name)
		case c.modes == 0 || c.phases == 0:
			t.Errorf("%s is for no mode or phase", c.name)
		case c.why == "":
			t.Errorf("%s is there for no reason", c.name)
		case (c.only != "") != (len(c.rules) > 0):
			t.Errorf("%s: conditions and their description do not agree", c.name)
		}
		twice[entry{c.name, c.modes, c.phases}] = true
		if c.phases&Carrying != 0 {
			ready[c.name] = true
		}
		if c.phases != Waiting && slices.Contains([]string{"execve", "execveat", "clone3", "fork", "vfork", "ptrace", "kill",
			"bpf", "unshare", "io_uring_setup", "memfd_create", "mprotect", "keyctl", "add_key"}, c.name) {
			t.Errorf("%s is allowed before it is ready", c.name)
		}
	}
	for _, name := range []string{"execve", "execveat", "open", "openat", "openat2", "ptrace", "mount", "setns", "unshare",
		"prctl", "mprotect", "clone3", "kill", "io_uring_setup", "memfd_create", "dup2"} {
		if ready[name] {
			t.Errorf("%s is allowed", name)
		}
	}
	eachList(t, func(t *testing.T, mode Mode, phase Phase) {
		if n := count(mode, phase); phase != Starting && n >= 64 {
			t.Errorf("%d system calls, want fewer than 64", n)
		}
	})
}

const docFile = "../../docs/SYSTEM-CALLS.md"

// TestDocumentation keeps the description of the filter in step with the table.
// FUSILLI_WRITE_DOC=1 writes it.
func TestDocumentation(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("written on amd64")
	}
	want := documentation()
	if os.Getenv("FUSILLI_WRITE_DOC") != "" {
		if err := os.WriteFile(docFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s does not describe the table: run FUSILLI_WRITE_DOC=1 go test -run TestDocumentation ./internal/sandbox", docFile)
	}
}

func documentation() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# System calls of our processes

Three phases have a list each: a translator's start, from its command line until it is ready; the time
when it carries packets; and the launcher's, which waits for the processes it has started. A process
may make the system calls of its phase, and no others: any other, and these with other arguments, end
it. A command that pasta runs has no filter.

| | starting | carrying | waiting |
|---|---|---|---|
`)
	for _, mode := range []Mode{Pasta, Passt, Vhost} {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", mode, count(mode, Starting), count(mode, Carrying), count(mode, Waiting))
	}
	b.WriteString(`
Where a call is there twice, a phase goes by the first that is for it. This is the list for x86-64. It
differs elsewhere:

- arm64, riscv64: there is no poll.
- arm, 386: calls that take offsets and identifiers have wider kinds (mmap2, fcntl64, fstat64,
  fstatat64, _llseek, ftruncate64, ugetrlimit, getuid32 and the like), and these come in addition:
  futex_time64, clock_gettime64 and, on 386, set_thread_area.
- 386, s390x: Go's library makes most calls of sockets by socketcall, and s390x's mmap has its arguments
  where socketcall's are: in memory, where no filter sees them. Of socketcall, the operation is checked.

Calls by another convention (those of 32 bits on a machine of 64, x32, those that only ARM has) end the
process. The file is written from the tables in internal/sandbox.

| System call | Mode | Phase | What for | Arguments |
|---|---|---|---|---|
`)
	calls := calls()
	for i := range calls {
		c := &calls[i]
		mode, only := "all", c.only
		if c.modes != both {
			mode = c.modes.String()
		}
		if only == "" {
			only = "any"
		}
		phase := c.phases.String()
		if c.phases == always {
			phase = "all"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", c.name, mode, phase, c.why, only)
	}
	return b.String()
}

func TestParseAction(t *testing.T) {
	for name, want := range map[string]Action{"": Kill, "kill": Kill, "trap": Trap, "log": Log, "off": Off} {
		if got, err := ParseAction(name); got != want || err != nil {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"deny", "Kill", "none"} {
		if got, err := ParseAction(name); err == nil {
			t.Errorf("%q: %q, want an error", name, got)
		}
	}
}
