package reach

import (
	"bufio"
	"fmt"
	"go/build"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// leafCall is a function that makes a system call: of a number or, if that is 0, of that which its
// first argument is.
type leafCall struct{ nr uint32 }

// byNumber make the call whose number is their first argument.
var byNumber = map[string][]string{
	"syscall": {"Syscall", "Syscall6", "RawSyscall", "RawSyscall6", "rawSyscallNoError", "rawVforkSyscall",
		"AllThreadsSyscall", "AllThreadsSyscall6"},
	"golang.org/x/sys/unix":          {"Syscall", "Syscall6", "RawSyscall", "RawSyscall6", "SyscallNoError", "RawSyscallNoError"},
	"internal/runtime/syscall/linux": {"Syscall6"},
}

// Numbers of calls that functions in assembly make on machines of 32 bits and s390x.
const (
	sysSocketcall = 102
	sysLlseek     = 140
)

// fcntls are numbers of fcntl, which the runtime makes for others.
var fcntls = map[string]uint32{"386": 55, "amd64": 72, "arm": 55, "arm64": 25, "ppc64le": 55, "riscv64": 25, "s390x": 55}

// leaf tells which system call f makes by itself.
func (p *Program) leaf(f *ssa.Function) (leafCall, bool) {
	if f == nil || f.Signature.Recv() != nil || f.Pkg == nil {
		return leafCall{}, false
	}
	pkg := f.Pkg.Pkg.Path()
	switch {
	case slices.Contains(byNumber[pkg], f.Name()):
		return leafCall{}, true
	case pkg == "internal/syscall/unix" && f.Name() == "fcntl":
		return leafCall{fcntls[p.GOARCH]}, true
	case pkg != "syscall" && pkg != "golang.org/x/sys/unix" || len(f.Blocks) > 0:
	case f.Name() == "socketcall", f.Name() == "rawsocketcall":
		return leafCall{sysSocketcall}, true
	case f.Name() == "seek":
		return leafCall{sysLlseek}, true
	}
	return leafCall{}, false
}

// starters are functions that have one of their arguments called later.
var starters = []string{"time.AfterFunc", "context.AfterFunc", "(*sync.WaitGroup).Go", "runtime.SetFinalizer", "runtime.AddCleanup"}

// harmless are functions without a body that make no system call.
var harmless = []string{
	"fusilli/internal/restart.jump", // switches stacks, and is for a fork that has no filter yet
}

// isRuntime tells the packages that Runtime is about.
func isRuntime(pkg string) bool {
	return pkg == "runtime" || strings.HasPrefix(pkg, "internal/runtime/")
}

// Runtime returns the system calls that Go's runtime can make on an architecture, by number, with
// their names: those that the sources of Go's library mention. Which of them it makes when is not
// told.
func (p *Program) Runtime() (map[uint32]string, error) {
	calls := make(map[uint32]string)
	root := filepath.Join(build.Default.GOROOT, "src")
	suffix := map[string]string{"ppc64le": "ppc64x"}[p.GOARCH]
	if suffix == "" {
		suffix = p.GOARCH
	}
	if err := assembly(filepath.Join(root, "runtime", "sys_linux_"+suffix+".s"), calls); err != nil {
		return nil, err
	}
	// Those that it makes in Go.
	w := &walk{p: p, why: make(map[*ssa.Function]*ssa.Function)}
	for f, n := range p.graph.Nodes {
		if f == nil || f.String() != "internal/runtime/syscall/linux.Syscall6" {
			continue
		}
		for _, e := range n.In {
			if !isRuntime(pkgOf(e.Caller.Func)) || e.Site == nil {
				continue
			}
			r := resolver{p: p, chain: []site{{e.Caller.Func, e.Site}}}
			numbers := r.value(e.Site.Common().Args[0], 0)
			// those that it makes for package syscall
			if numbers == nil && !slices.Contains(forOthers, e.Caller.Func.Name()) {
				return nil, fmt.Errorf("which system call does %s make?", strings.Join(w.path(e.Caller.Func), " < "))
			}
			for _, nr := range numbers {
				calls[nr] = e.Caller.Func.Name()
			}
		}
	}
	return calls, nil
}

// forOthers are functions of the runtime that make calls for package syscall.
var forOthers = []string{"syscall_RawSyscall6", "syscall_rawSyscallNoError", "syscall_runtime_doAllThreadsSyscall", "runPerThreadSyscall"}

var (
	define = regexp.MustCompile(`^#define\s+SYS_(\w+)\s+\(?(?:SYS_BASE \+ )?(\d+|0x[0-9a-f]+)\)?\s*$`)
	use    = regexp.MustCompile(`SYS_(\w+)`)
)

// assembly adds the calls that a source of Go's runtime makes.
func assembly(path string, calls map[uint32]string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	numbers := make(map[string]uint32)
	for s := bufio.NewScanner(f); s.Scan(); {
		if m := define.FindStringSubmatch(s.Text()); m != nil {
			n, err := strconv.ParseUint(m[2], 0, 32)
			if err != nil {
				return err
			}
			numbers[m[1]] = uint32(n)
			continue
		}
		if strings.HasPrefix(s.Text(), "#define") {
			continue
		}
		for _, m := range use.FindAllStringSubmatch(s.Text(), -1) {
			nr, ok := numbers[m[1]]
			if !ok {
				return fmt.Errorf("%s: which number has %s?", path, m[1])
			}
			calls[nr] = m[1]
		}
	}
	return nil
}

// Names returns the names of system calls by their numbers.
func (p *Program) Names() map[uint32]string {
	names := make(map[uint32]string)
	for _, pkg := range p.prog.AllPackages() {
		if pkg.Pkg.Path() != "golang.org/x/sys/unix" {
			continue
		}
		for name, m := range pkg.Members {
			c, ok := m.(*ssa.NamedConst)
			if rest, is := strings.CutPrefix(name, "SYS_"); ok && is {
				names[uint32(c.Value.Int64())] = strings.ToLower(rest)
			}
		}
	}
	return names
}
