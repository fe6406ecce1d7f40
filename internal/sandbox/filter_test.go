package sandbox

import (
	"fmt"
	"os"
	"runtime"
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

func newMachine(t *testing.T, mode Mode) *machine {
	t.Helper()
	var code []bpf.RawInstruction
	for _, i := range program(mode, deny, testPID) {
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
		b = word(word(b, uint32(v)), uint32(v>>32)) // as on a little-endian machine: low half first
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

func eachMode(t *testing.T, f func(*testing.T, Mode)) {
	for _, mode := range []Mode{Pasta, Passt} {
		t.Run(mode.String(), func(t *testing.T) { f(t, mode) })
	}
}

// TestFilterAllowsTheTableOnly asks the filter about every number.
func TestFilterAllowsTheTableOnly(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		m := newMachine(t, mode)
		free := make(map[uint32]bool)
		for i := range calls {
			if c := &calls[i]; c.modes&mode != 0 && len(c.rules) == 0 {
				free[c.nr] = true
			}
		}
		odd := []uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
		for nr := uint32(0); nr < 1024; nr++ {
			if got := m.allows(nr, odd...); got != free[nr] {
				t.Errorf("call %d with senseless arguments: allowed %v, want %v", nr, got, free[nr])
			}
		}
		for i := range calls {
			c := &calls[i]
			for _, r := range c.rules {
				if args := example(r); m.allows(c.nr, args...) != (c.modes&mode != 0) {
					t.Errorf("%s%#x: allowed %v", c.name, args, c.modes&mode == 0)
				}
			}
		}
	})
}

// example returns arguments that satisfy a rule, with all other bits set.
func example(r rule) []uint64 {
	args := []uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	for _, c := range r {
		v := uint32(testPID)
		if !c.self {
			v = c.values[len(c.values)-1]
		}
		args[c.arg] = uint64(0xdeadbeef)<<32 | uint64(v) | uint64(^c.mask)
	}
	return args
}

func TestFilterKillsForeignCalls(t *testing.T) {
	m := newMachine(t, Pasta)
	for _, alien := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM, 0} {
		if got := m.run(alien, unix.SYS_READ); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("architecture %#x: %#x", alien, got)
		}
	}
	if foreignCalls != 0 {
		if got := m.run(auditArch, foreignCalls|unix.SYS_READ); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("x32: %#x", got)
		}
	}
}

func TestFilterLooksAtArguments(t *testing.T) {
	tests := []struct {
		name string
		want bool
		nr   uint32
		args []uint64
	}{
		{"a thread", true, unix.SYS_CLONE, []uint64{threadFlags}},
		{"a thread with TLS", true, unix.SYS_CLONE, []uint64{threadFlags | unix.CLONE_SETTLS}},
		{"a process", false, unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}},
		{"a thread in a user namespace", false, unix.SYS_CLONE, []uint64{threadFlags | unix.CLONE_NEWUSER}},
		{"a traced thread", false, unix.SYS_CLONE, []uint64{threadFlags | unix.CLONE_PTRACE}},
		{"memory", true, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_ANON | unix.MAP_PRIVATE, ^uint64(0)}},
		{"reserved memory", true, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_NONE, unix.MAP_ANON | unix.MAP_PRIVATE | unix.MAP_FIXED}},
		{"executable memory", false, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_ANON | unix.MAP_PRIVATE}},
		{"a file", false, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ, unix.MAP_PRIVATE, 3}},
		{"shared memory", false, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ, unix.MAP_ANON | unix.MAP_SHARED}},
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
		{"a copy of a descriptor", true, unix.SYS_FCNTL, []uint64{3, unix.F_DUPFD_CLOEXEC, 3}},
		{"a copy for other programs", false, unix.SYS_FCNTL, []uint64{3, unix.F_DUPFD, 3}},
		{"close on exec", true, unix.SYS_FCNTL, []uint64{3, unix.F_SETFD, unix.FD_CLOEXEC}},
		{"no close on exec", false, unix.SYS_FCNTL, []uint64{3, unix.F_SETFD, 0}},
		{"signals for a descriptor", false, unix.SYS_FCNTL, []uint64{3, unix.F_SETOWN, 1}},
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
	m := newMachine(t, Pasta)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := m.allows(tt.nr, tt.args...); got != tt.want {
				t.Errorf("allowed = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestTable compares the names with the numbers, by an independent list of both.
func TestTable(t *testing.T) {
	known := map[string]*arch.Info{"amd64": arch.X86_64, "arm64": arch.AARCH64}[runtime.GOARCH]
	if known == nil {
		t.Skipf("no list for %s", runtime.GOARCH)
	}
	seen := make(map[string]bool)
	for i := range calls {
		c := &calls[i]
		if nr, ok := known.SyscallNames[c.name]; !ok || uint32(nr) != c.nr {
			t.Errorf("%s has number %d, want %d", c.name, c.nr, nr)
		}
		switch {
		case seen[c.name]:
			t.Errorf("%s is in the table twice", c.name)
		case c.why == "":
			t.Errorf("%s is there for no reason", c.name)
		case (c.only != "") != (len(c.rules) > 0):
			t.Errorf("%s: conditions and their description do not agree", c.name)
		}
		seen[c.name] = true
	}
	for _, name := range []string{"execve", "execveat", "open", "openat", "openat2", "ptrace", "mount", "setns", "unshare",
		"prctl", "mprotect", "clone3", "kill", "io_uring_setup", "memfd_create", "dup2", "dup3"} {
		if seen[name] {
			t.Errorf("%s is allowed", name)
		}
	}
	eachMode(t, func(t *testing.T, mode Mode) {
		if n := count(mode); n >= 60 {
			t.Errorf("%d system calls, want fewer than 60", n)
		}
	})
}

const docFile = "../../man/system-calls.md"

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
	fmt.Fprintf(&b, `# System calls of a translator

The process that carries packets may make these system calls once it is ready, and no others: any
other, and these with other arguments, end it. pasta's has %d, passt's %d. This is the list for
x86-64; on arm64 there is no poll. The file is written from the table in internal/sandbox/table.go.

| System call | Mode | What for | Arguments |
|---|---|---|---|
`, count(Pasta), count(Passt))
	for i := range calls {
		c := &calls[i]
		mode, only := "both", c.only
		if c.modes != both {
			mode = c.modes.String()
		}
		if only == "" {
			only = "any"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.name, mode, c.why, only)
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
