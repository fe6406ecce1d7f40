package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// takeoverVariable has the test binary be an attacker: it reads PIDs from standard input, tries
// what a process can do to another one, and writes what it was not refused, as JSON, to the file
// that the variable names.
const takeoverVariable = "FUSILLI_E2E_TAKEOVER"

// attempt is a way into another process, or a way to disturb it.
type attempt struct {
	name string
	do   func(pid int) error
}

// memory are the ways to read, change or hold what a process has. None is ever to succeed.
var memory = []attempt{
	{"ptrace seize", func(pid int) error {
		err := unix.PtraceSeize(pid)
		if err == nil {
			release(pid, unix.PtraceInterrupt(pid))
		}
		return err
	}},
	{"ptrace attach", func(pid int) error {
		err := unix.PtraceAttach(pid)
		if err == nil {
			release(pid, nil)
		}
		return err
	}},
	{"process_vm_readv", func(pid int) error { return vm(unix.ProcessVMReadv, pid) }},
	{"process_vm_writev", func(pid int) error { return vm(unix.ProcessVMWritev, pid) }},
	{"open mem", open("mem", unix.O_RDWR)},
	{"open mem of a thread", open("task/PID/mem", unix.O_RDONLY)},
	{"read maps", read("maps")},
	{"read smaps", read("smaps")},
	{"read environ", read("environ")},
	{"read auxv", read("auxv")},
	{"read syscall", read("syscall")},
	{"read personality", read("personality")},
	{"read io", read("io")},
	{"open pagemap", open("pagemap", unix.O_RDONLY)},
	{"list fd", list("fd")},
	{"list fd of a thread", list("task/PID/fd")},
	{"list fdinfo", list("fdinfo")},
	{"list map_files", list("map_files")},
	{"list root", list("root/")},
	{"list cwd", list("cwd/")},
	{"follow exe", open("exe", unix.O_RDONLY)},
	{"open fd 0", open("fd/0", unix.O_RDONLY)},
	{"open ns/net", open("ns/net", unix.O_RDONLY)},
	{"open ns/user", open("ns/user", unix.O_RDONLY)},
	{"open ns/mnt", open("ns/mnt", unix.O_RDONLY)},
	{"write comm", open("comm", unix.O_WRONLY)},
	{"write oom_score_adj", open("oom_score_adj", unix.O_WRONLY)},
	{"write coredump_filter", open("coredump_filter", unix.O_WRONLY)},
	{"write clear_refs", open("clear_refs", unix.O_WRONLY)},
	{"pidfd_getfd", func(pid int) error {
		return withPIDFD(pid, func(fd int) error {
			got, err := unix.PidfdGetfd(fd, 0, 0)
			if err == nil {
				unix.Close(got)
			}
			return err
		})
	}},
	{"setns", func(pid int) error {
		return withPIDFD(pid, func(fd int) error {
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // the thread ends with the goroutine
				done <- unix.Setns(fd, unix.CLONE_NEWNET|unix.CLONE_NEWUTS)
			}()
			return <-done
		})
	}},
	{"process_madvise", func(pid int) error {
		return withPIDFD(pid, func(fd int) error {
			iov := [2]uintptr{0x1000, 0x1000} // struct iovec, of the other process's addresses
			_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_COLD, 0, 0)
			return result(errno)
		})
	}},
	{"kcmp", func(pid int) error {
		const vm = 1 // KCMP_VM
		_, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), vm, 0, 0, 0)
		return result(errno)
	}},
}

// control are ways to end a process or to slow it down, tried without effect. The kernel lets
// processes of a user do that to each other where they see each other's PIDs.
var control = []attempt{
	{"kill", func(pid int) error { return unix.Kill(pid, 0) }},
	{"tgkill", func(pid int) error { return unix.Tgkill(pid, pid, 0) }},
	{"pidfd_send_signal", func(pid int) error {
		return withPIDFD(pid, func(fd int) error { return unix.PidfdSendSignal(fd, 0, nil, 0) })
	}},
	{"pidfd_send_signal to a directory of /proc", func(pid int) error {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d", pid), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.PidfdSendSignal(fd, 0, nil, 0)
	}},
	{"prlimit", func(pid int) error { return unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) }},
	{"sched_setaffinity", func(pid int) error {
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &set); err != nil {
			return err
		}
		return unix.SchedSetaffinity(pid, &set)
	}},
}

// release lets a process go that stops because it is traced.
func release(pid int, err error) {
	if err == nil {
		_, err = unix.Wait4(pid, nil, unix.WALL, nil)
	}
	if err == nil {
		err = unix.PtraceDetach(pid)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ptrace:", err)
	}
}

func result(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// vm reads or writes where nothing is mapped: who may would be told so.
func vm(call func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error), pid int) error {
	var b [8]byte
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	_, err := call(pid, local, []unix.RemoteIovec{{Base: 0x1000, Len: len(b)}}, 0)
	return err
}

func withPIDFD(pid int, f func(fd int) error) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

// of is a file of a process.
func of(pid int, name string) string {
	id := strconv.Itoa(pid)
	return "/proc/" + id + "/" + strings.ReplaceAll(name, "PID", id)
}

func open(name string, flags int) func(int) error {
	return func(pid int) error {
		fd, err := unix.Open(of(pid, name), flags|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

func read(name string) func(int) error {
	return func(pid int) error {
		_, err := os.ReadFile(of(pid, name))
		return err
	}
}

func list(name string) func(int) error {
	return func(pid int) error {
		_, err := os.ReadDir(of(pid, name))
		return err
	}
}

// refusals are the errors by which the kernel refuses an attempt, or cannot see the process.
var refusals = []error{unix.EPERM, unix.EACCES, unix.ESRCH, unix.EINVAL}

// breakIn tries all attempts on a process, and returns the names of those that were not refused.
func breakIn(all []attempt, pid int) (in []string) {
	for _, a := range all {
		err := a.do(pid)
		if !slices.ContainsFunc(refusals, func(no error) bool { return errors.Is(err, no) }) {
			in = append(in, a.name)
		}
	}
	return in
}

// loot is what an attacker has achieved, by the PIDs it was given.
type loot struct {
	Caps    string // of the attacker
	Memory  map[int][]string
	Control map[int][]string
	Visible map[int]bool // the process is in the attacker's /proc
}

// attack is the attacker.
func attack(path string) int {
	runtime.LockOSThread() // what traces a process is a thread
	l := loot{Memory: map[int][]string{}, Control: map[int][]string{}, Visible: map[int]bool{}}
	status, err := os.ReadFile("/proc/self/status")
	if err == nil {
		for line := range strings.Lines(string(status)) {
			if caps, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
				l.Caps = strings.TrimSpace(caps)
			}
		}
	}
	text, err := io.ReadAll(os.Stdin)
	for _, word := range strings.Fields(string(text)) {
		pid, _ := strconv.Atoi(word)
		l.Memory[pid], l.Control[pid] = breakIn(memory, pid), breakIn(control, pid)
		_, gone := os.Stat(of(pid, "status"))
		l.Visible[pid] = gone == nil
	}
	if err == nil {
		text, err = json.Marshal(l)
	}
	if err == nil {
		err = os.WriteFile(path, text, 0o666)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		return 1
	}
	return 0
}

// fortress is a running program that is attacked.
type fortress struct {
	t        *testing.T
	b        *bed.Bed
	attacker string
	dir      string
	pids     []int // launcher, if it stays, and translator
}

func newFortress(t *testing.T) *fortress {
	t.Helper()
	attacker, err := bed.Provide("/proc/self/exe", "attacker")
	if err != nil {
		t.Fatal(err)
	}
	return &fortress{t: t, b: newBed(t, defaultBed), attacker: attacker, dir: scratch(t)}
}

// stdin is what an attacker reads.
func (f *fortress) stdin() string { return strings.Trim(fmt.Sprint(f.pids), "[]") + "\n" }

// by has cmd, which runs the attacker, attack, and returns what it says.
func (f *fortress) by(cmd *exec.Cmd) loot {
	f.t.Helper()
	path := filepath.Join(f.dir, "loot")
	os.Remove(path)
	cmd.Env = append(os.Environ(), takeoverVariable+"="+path)
	cmd.Stdin = strings.NewReader(f.stdin())
	p, err := f.b.Host.Spawn(bed.Nobody, cmd)
	if err != nil {
		f.t.Fatal(err)
	}
	if status := p.Status(); status != 0 {
		f.t.Fatalf("the attacker ended with status %d: %s", status, p.Stderr())
	}
	return f.loot(path)
}

func (f *fortress) loot(path string) (l loot) {
	f.t.Helper()
	if err := json.Unmarshal([]byte(text(f.t, path)), &l); err != nil {
		f.t.Fatal(err)
	}
	return l
}

// holds checks that an attacker has got nowhere. One that is inside PID and user namespaces that we
// made may not even send signals.
func (f *fortress) holds(l loot, inside bool) {
	f.t.Helper()
	if len(f.pids) == 0 {
		f.t.Fatal("nothing was attacked")
	}
	for _, pid := range f.pids {
		if !l.Visible[pid] {
			f.t.Errorf("the attacker did not see %d", pid)
		}
		if in := l.Memory[pid]; len(in) > 0 {
			f.t.Errorf("%s (%d) is open to: %q", strings.TrimSpace(text(f.t, of(pid, "comm"))), pid, in)
		}
		if in := l.Control[pid]; inside && len(in) > 0 {
			f.t.Errorf("%s (%d) is controlled by: %q", strings.TrimSpace(text(f.t, of(pid, "comm"))), pid, in)
		}
	}
}

// outside attacks from outside, as the user who started the program.
func (f *fortress) outside() {
	f.t.Helper()
	f.holds(f.by(exec.Command(f.attacker)), false)
}

// joined attacks as root of the target's user namespace, in its network namespace, with all
// capabilities, where processes see each other's PIDs.
func (f *fortress) joined(target *bed.Target) {
	f.t.Helper()
	l := f.by(target.Enter(f.attacker))
	if strings.HasPrefix(l.Caps, "0000000000000000") {
		f.t.Error("the attacker has no capabilities")
	}
	f.holds(l, false)
}

// settle waits until a program that stays has started its translator, and notes both.
func (f *fortress) settle(p *bed.Process) {
	f.t.Helper()
	f.pids = []int{p.PID(), childOf(f.t, p.PID())}
}

// background waits for a PID file, and notes the translator.
func (f *fortress) background(p *bed.Process, pidFile string) {
	f.t.Helper()
	if status := p.Status(); status != 0 {
		f.t.Fatalf("status %d: %s", status, p.Stderr())
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text(f.t, pidFile)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.pids = []int{pid}
	f.t.Cleanup(func() { unix.Kill(pid, unix.SIGTERM) })
}

// spawn starts the program, or the name of it that is given.
func (f *fortress) spawn(user bed.User, name string, files []*os.File, args ...string) *bed.Process {
	f.t.Helper()
	path, err := bed.Provide(program, name)
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.ExtraFiles = files
	p, err := f.b.Host.Spawn(user, cmd)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { p.Stop(limit) })
	return p
}

func (f *fortress) target() *bed.Target {
	f.t.Helper()
	target, err := f.b.Target(patience(f.t, limit))
	if err != nil {
		f.t.Fatal(err)
	}
	return target
}

// closed are options by which a command reaches nothing.
var closed = []string{"--config-net", "--no-map-gw", "-q", "-t", "none", "-u", "none", "-T", "none", "-U", "none"}

// owned are the files in /proc that belong to a user who started the program as root of a user
// namespace: they are the root's where the program was executed. The numbers of descriptors can be
// seen, not what they are; there is no core file to filter; nothing else can be done to the
// process.
var owned = []string{"list fd", "list fd of a thread", "write comm", "write oom_score_adj", "write coredump_filter", "write clear_refs"}

// command runs the attacker as the command, as root of the namespaces that were made for it, after
// it has uncovered the host's /proc. wrap is what the program is started by.
func (f *fortress) command(user bed.User, wrap []string, args ...string) {
	f.t.Helper()
	path := filepath.Join(f.dir, "inside")
	argv := append(slices.Clone(wrap), append(append([]string{program}, extra()...), args...)...)
	argv = append(argv, "--", "sh", "-c", `umount /proc && exec "$0"`, f.attacker)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), takeoverVariable+"="+path)
	pids, tell, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	defer tell.Close()
	cmd.Stdin = pids
	p, err := f.b.Host.Spawn(user, cmd)
	pids.Close()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { p.Stop(limit) })
	f.settle(p)
	if wrap == nil { // to the owner of the user namespace, who is outside, all in there is open
		f.outside()
	}
	io.WriteString(tell, f.stdin())
	tell.Close()
	if status := p.Status(); status != 0 {
		f.t.Fatalf("status %d: %s", status, p.Stderr())
	}
	l := f.loot(path)
	if l.Caps != allCaps(f.t) {
		f.t.Errorf("the attacker has capabilities %s, want all: %s", l.Caps, allCaps(f.t))
	}
	// The processes have ended; what they were called does not matter.
	for _, pid := range f.pids {
		in := append(l.Memory[pid], l.Control[pid]...)
		if wrap != nil {
			in = slices.DeleteFunc(in, func(name string) bool { return slices.Contains(owned, name) })
		}
		if len(in) > 0 || !l.Visible[pid] {
			f.t.Errorf("from inside, %d of %v is open to: %q, seen: %v", pid, f.pids, in, l.Visible[pid])
		}
	}
}

// allCaps are all capabilities there are, as in /proc/PID/status.
func allCaps(t *testing.T) string {
	t.Helper()
	last, err := strconv.Atoi(strings.TrimSpace(text(t, "/proc/sys/kernel/cap_last_cap")))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%016x", uint64(1)<<(last+1)-1)
}

// TestAttackerCan: the attempts succeed on a process that nothing protects.
func TestAttackerCan(t *testing.T) {
	f := newFortress(t)
	p, err := f.b.Host.Spawn(bed.Nobody, exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(limit)
	waitFor(t, "sleep to run", func() bool { return strings.HasPrefix(text(t, of(p.PID(), "comm")), "sleep") })
	f.pids = []int{p.PID()}
	l := f.by(exec.Command(f.attacker))
	var all []string
	for _, a := range memory {
		if a.name != "setns" && a.name != "process_madvise" { // these take capabilities
			all = append(all, a.name)
		}
	}
	if diff := cmp.Diff(all, l.Memory[p.PID()]); diff != "" {
		t.Errorf("ways into a process that nothing protects (-want +got):\n%s", diff)
	}
	if got := len(l.Control[p.PID()]); got != len(control) {
		t.Errorf("%d of %d ways to disturb it", got, len(control))
	}
}

// TestNobodyTakesOver attacks launcher and translator in each mode, from outside, as another
// process of the user, and from inside, as the namespace's root.
func TestNobodyTakesOver(t *testing.T) {
	if raceEnabled {
		t.Skip("a program with the race detector is linked with a C library, and not protected")
	}
	asRoot(t)
	t.Run("command", func(t *testing.T) {
		newFortress(t).command(bed.Nobody, nil, closed...)
	})
	t.Run("command, as root", func(t *testing.T) {
		newFortress(t).command(bed.Root, nil, closed...)
	})
	t.Run("command, as root of a user namespace", func(t *testing.T) {
		newFortress(t).command(bed.Nobody, []string{"unshare", "-Ur", "--"}, closed...)
	})
	t.Run("process, foreground", func(t *testing.T) {
		f := newFortress(t)
		target := f.target()
		f.settle(f.spawn(bed.Nobody, "pasta", nil, append(closed, "-f", strconv.Itoa(target.PID))...))
		f.outside()
		f.joined(target)
	})
	for _, tc := range []struct {
		name string
		user bed.User
		args func(*bed.Target) []string
	}{
		{"process", bed.Nobody, func(g *bed.Target) []string { return []string{strconv.Itoa(g.PID)} }},
		{"process, as root", bed.Root, func(g *bed.Target) []string { return []string{strconv.Itoa(g.PID)} }},
		{"path", bed.Root, func(g *bed.Target) []string { return []string{"--netns", g.Path()} }},
		{"path, as another user", bed.Root, func(g *bed.Target) []string { return []string{"--runas", "65534", "--netns", g.Path()} }},
		{"path, with a user namespace", bed.Nobody, func(g *bed.Target) []string {
			return []string{"--userns", fmt.Sprintf("/proc/%d/ns/user", g.PID), "--netns", fmt.Sprintf("/proc/%d/ns/net", g.PID)}
		}},
		{"path, with a user namespace, as root", bed.Root, func(g *bed.Target) []string {
			return []string{"--userns", fmt.Sprintf("/proc/%d/ns/user", g.PID), "--netns", fmt.Sprintf("/proc/%d/ns/net", g.PID)}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFortress(t)
			target := f.target()
			pidFile := filepath.Join(f.dir, "pid")
			args := append(slices.Clone(closed), "-P", pidFile)
			f.background(f.spawn(tc.user, "pasta", nil, append(args, tc.args(target)...)...), pidFile)
			f.outside()
			f.joined(target)
		})
	}
	t.Run("virtual machine", func(t *testing.T) {
		f := newFortress(t)
		pidFile := filepath.Join(f.dir, "pid")
		f.background(f.spawn(bed.Nobody, "passt", nil, "-q", "-P", pidFile, "-s", filepath.Join(f.dir, "socket")), pidFile)
		f.outside()
	})
	t.Run("virtual machine, as root", func(t *testing.T) {
		f := newFortress(t)
		pidFile := filepath.Join(f.dir, "pid")
		f.background(f.spawn(bed.Root, "passt", nil, "-q", "-P", pidFile, "-s", filepath.Join(f.dir, "socket")), pidFile)
		f.outside()
	})
	t.Run("virtual machine by descriptor", func(t *testing.T) {
		f := newFortress(t)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		defer ours.Close()
		p := f.spawn(bed.Nobody, "passt", []*os.File{theirs}, "-f", "-q", "--fd", "3")
		theirs.Close()
		f.settle(p)
		f.outside()
	})
	for name, args := range map[string][]string{"slirp4netns": nil, "slirp4netns with its sandbox": {"--enable-sandbox"}} {
		t.Run(name, func(t *testing.T) {
			f := newFortress(t)
			target := f.target()
			f.settle(f.spawn(bed.Nobody, "slirp4netns", nil, append(slices.Clone(args), "-c", strconv.Itoa(target.PID), "tap0")...))
			if args == nil { // with it, the launcher is executed in the target's user namespace
				f.outside()
				f.joined(target)
			}
		})
	}
}
