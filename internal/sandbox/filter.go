package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Action is what happens at a system call that is not allowed.
type Action string

// The actions. All but Kill are for developers.
const (
	Kill Action = "kill" // end the process with SIGSYS
	Trap Action = "trap" // SIGSYS, which Go answers with the stacks of all goroutines
	Log  Action = "log"  // let it happen and note it in the system's audit log
	Off  Action = "off"  // no filter
	deny Action = "deny" // fail with EPERM: for tests that go on
)

// ParseAction reads the name of an action; "" is Kill.
func ParseAction(name string) (Action, error) {
	switch a := Action(name); a {
	case "":
		return Kill, nil
	case Kill, Trap, Log, Off:
		return a, nil
	}
	return "", fmt.Errorf("no action of a system call filter: %q", name)
}

func (a Action) ret() uint32 {
	switch a {
	case Trap:
		return unix.SECCOMP_RET_TRAP
	case Log:
		return unix.SECCOMP_RET_LOG
	case deny:
		return unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	}
	return unix.SECCOMP_RET_KILL_PROCESS
}

// Offsets in struct seccomp_data (seccomp(2)).
const (
	offNr   = 0
	offArch = 4
	offArgs = 16 // the first of six arguments of 64 bits, also where a register has 32
)

// pids are the processes that conditions name.
type pids struct {
	self     int
	children []int
}

func (p *pids) of(w who) []uint32 {
	if w == self {
		return []uint32{uint32(p.self)}
	}
	var values []uint32
	for _, pid := range p.children {
		values = append(values, uint32(pid))
	}
	return values
}

// assemble makes the filter that allows calls on an architecture. Numbers from foreign on are calls
// of another kind; 0: there are none. Its size is the number of instructions, of which the
// kernel takes 4096.
func assemble(calls []*call, arch, foreign uint32, action Action, who pids) []unix.SockFilter {
	other := action.ret()
	// An alien architecture has other numbers: it is not even logged only.
	p := append(make([]unix.SockFilter, 0, 512),
		load(offArch),
		jumpIf(unix.BPF_JEQ, arch, 1, 0),
		ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(offNr),
	)
	if foreign != 0 {
		p = append(p, jumpIf(unix.BPF_JGE, foreign, 0, 1), ret(unix.SECCOMP_RET_KILL_PROCESS))
	}
	for _, c := range calls {
		p = c.compile(p, other, &who)
	}
	return append(p, ret(other))
}

// compile appends the code for one call to p. It begins and, if it is another call, ends with the
// number of the call in the accumulator.
func (c *call) compile(p []unix.SockFilter, other uint32, who *pids) []unix.SockFilter {
	head := len(p)
	p = append(p, jumpIf(unix.BPF_JEQ, c.nr, 0, 0))
	for _, r := range c.rules {
		p = r.compile(p, who)
	}
	if len(c.rules) == 0 {
		p = append(p, ret(unix.SECCOMP_RET_ALLOW))
	} else {
		p = append(p, ret(other))
	}
	p[head].Jf = distance(len(p) - head - 1)
	return p
}

// compile appends code that allows the call if all conditions hold, else goes on behind itself.
func (r rule) compile(p []unix.SockFilter, who *pids) []unix.SockFilter {
	ends := make([]int, 0, 6) // there are no more arguments to look at
	for _, c := range r {
		p = c.compile(p, who)
		ends = append(ends, len(p))
	}
	p = append(p, ret(unix.SECCOMP_RET_ALLOW))
	for _, end := range ends {
		p[end-1].Jf = distance(len(p) - end)
	}
	return p
}

// compile appends code that goes on behind itself if the condition holds. Where its last
// instruction, a jump, goes if not is yet to be said.
func (c cond) compile(p []unix.SockFilter, who *pids) []unix.SockFilter {
	p = append(p, load(offArgs+8*c.arg+lowHalf))
	if c.mask != ^uint32(0) {
		p = append(p, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.mask})
	}
	values := c.values
	if c.who != nobody {
		values = who.of(c.who)
	}
	for i, v := range values {
		p = append(p, jumpIf(unix.BPF_JEQ, v, distance(len(values)-1-i), 0))
	}
	return p
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jumpIf(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func ret(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}

// distance is n as a jump has it. The table is fixed, and a test compiles it.
func distance(n int) uint8 {
	if n > 255 {
		panic("sandbox: an entry of the table is too long for one jump")
	}
	return uint8(n)
}

// filter puts the filter in force on every thread, and returns how many calls it allows.
// no_new_privs must be set.
func filter(mode Mode, phase Phase, action Action, children ...int) (int, error) {
	calls := list(mode, phase)
	code := assemble(calls, auditArch, foreignCalls, action, pids{os.Getpid(), children})
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(code)
	switch {
	case errno != 0:
		return 0, &stepError{"Failed to set the system call filter", errno}
	case tid != 0:
		return 0, fmt.Errorf("thread %d does not take the system call filter", tid)
	}
	return len(calls), nil
}
