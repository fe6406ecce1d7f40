package restart

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// variable has this process tell what it finds: the secret of its predecessor, each byte inverted.
const variable = "FUSILLI_RESTARTED"

func TestMain(m *testing.M) {
	if secret, ok := os.LookupEnv(variable); ok {
		os.Exit(again(secret))
	}
	os.Exit(m.Run())
}

// Variables with a value, without one, and with one that init makes.
var (
	initialised = 42
	zeroed      [1 << 16]byte
	made        = strings.Repeat("x", 3)
)

// finding is what a restarted process finds.
type finding struct {
	Args, Env   []string
	Files       []string
	Initialised int
	Zeroed      bool
	Made        string
	Parent      int
	Ignored     bool   // SIGHUP
	Environ     string // as the kernel shows it, without zeros
	Cmdline     string
	Secrets     []string // mappings that the predecessor's secret is in
	Sum         int      // what many goroutines have worked out
	Handled     bool     // a signal
}

// again is the restarted process: it tells what it finds on descriptor 3.
func again(inverted string) int {
	out := os.NewFile(3, "out")
	f := finding{
		Args: os.Args, Env: os.Environ(), Parent: os.Getppid(),
		Initialised: initialised, Zeroed: zeroed == [len(zeroed)]byte{}, Made: made,
		Ignored: signal.Ignored(unix.SIGHUP),
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, e := range entries {
		// Go's runtime opens files of the control group and some without a name; the directory is
		// closed again.
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
			f.Files = append(f.Files, e.Name())
		}
	}
	read := func(name string) string {
		b, _ := os.ReadFile("/proc/self/" + name)
		return strings.Trim(string(b), "\x00")
	}
	f.Environ, f.Cmdline = read("environ"), read("cmdline")
	f.Secrets = search(inverted)

	// The runtime works: threads, the collector, timers, signals, system calls that block.
	var wg sync.WaitGroup
	sums := make(chan int, 100)
	for range 100 {
		wg.Go(func() {
			var all [][]byte
			for i := range 100 {
				all = append(all, make([]byte, 1<<12))
				time.Sleep(time.Duration(i%3) * time.Microsecond)
			}
			sums <- len(all)
		})
	}
	runtime.GC()
	wg.Wait()
	close(sums)
	for n := range sums {
		f.Sum += n
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	unix.Kill(os.Getpid(), unix.SIGUSR1)
	f.Handled = <-signals == unix.SIGUSR1

	if err := json.NewEncoder(out).Encode(f); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// search looks for a secret in all memory of this process.
func search(inverted string) (found []string) {
	secret, err := hex.DecodeString(inverted)
	if err != nil {
		return []string{err.Error()}
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return []string{err.Error()}
	}
	defer mem.Close()
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return []string{err.Error()}
	}
	maps, err := parseMaps(text)
	if err != nil {
		return []string{err.Error()}
	}
	// The secret itself is nowhere in the memory of this process, whose search would find it.
	matches := func(b []byte) bool {
		for i := range secret {
			if b[i] != ^secret[i] {
				return false
			}
		}
		return true
	}
	first := ^secret[0]
	const chunk = 1 << 20
	buf := make([]byte, chunk)
	for _, m := range maps {
		if !strings.HasPrefix(m.mode, "rw") {
			continue
		}
		for at := m.from; at < m.to; at += chunk - uintptr(len(secret)) {
			n, _ := mem.ReadAt(buf[:min(chunk, m.to-at)], int64(at))
			for i := 0; i+len(secret) <= n; i++ {
				j := bytes.IndexByte(buf[i:n-len(secret)+1], first)
				if j < 0 {
					break
				}
				i += j
				if matches(buf[i:]) {
					found = append(found, fmt.Sprintf("%x-%x %s", m.from, m.to, m.name))
				}
			}
		}
	}
	return slices.Compact(found)
}

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// fork is a fork that begins i with out as descriptor 3.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(i *Image, out uintptr) (pid uintptr, errno syscall.Errno) {
	beforeFork()
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, forkArg(0), forkArg(1), 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()
	syscall.RawSyscall6(unix.SYS_DUP3, out, 3, 0, 0, 0, 0)
	errno = i.Begin()
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0, 0, 0, 0)
	}
}

// forkArg is an argument of clone(2): on s390x the stack is the first one, the flags are the
// second.
//
//go:nosplit
func forkArg(n int) uintptr {
	if (n == 1) == (runtime.GOARCH == "s390x") {
		return uintptr(unix.SIGCHLD)
	}
	return 0
}

func TestRestart(t *testing.T) {
	secret := make([]byte, 32)
	if _, err := unix.Getrandom(secret, 0); err != nil {
		t.Fatal(err)
	}
	inverted := make([]byte, len(secret))
	for i, b := range secret {
		inverted[i] = ^b
	}
	// All kinds of memory have the secret, and there are many threads.
	initialised, made = 43, string(secret)
	copy(zeroed[100:], secret)
	heap := bytes.Repeat(secret, 1<<16)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 8 {
		busy.Go(func() {
			runtime.LockOSThread()
			var stack [4 << 10]byte
			copy(stack[:], secret)
			<-stop
			runtime.KeepAlive(&stack)
		})
	}
	defer busy.Wait()
	defer close(stop)
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	out, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 20)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}

	args, env := []string{"name", "", "an argument"}, []string{variable + "=" + hex.EncodeToString(inverted), "TZ=UTC"}
	i, err := Prepare(args, env, 4)
	if errors.Is(err, ErrCgo) && iscgo {
		t.Skip("this test is linked with a C library, as with the race detector")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	syscall.ForkLock.Lock()
	pid, errno := fork(i, uintptr(out))
	syscall.ForkLock.Unlock()
	unix.Close(out)
	if errno != 0 {
		t.Fatal(errno)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil || status != 0 {
		t.Fatalf("status %#x, %v; said %q", status, err, text)
	}
	var got finding
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	cmdline, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	want := finding{
		Args: args, Env: env, Files: []string{"0", "1", "2", "3"},
		Initialised: 42, Zeroed: true, Made: "xxx", Parent: os.Getpid(), Ignored: true,
		Cmdline: strings.Trim(string(cmdline), "\x00"), Sum: 100 * 100, Handled: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("restarted process (-want +got):\n%s", diff)
	}
	runtime.KeepAlive(heap)
}

// TestPrepareLeavesNothing: an image that is not needed is unmapped.
func TestPrepareLeavesNothing(t *testing.T) {
	i, err := Prepare([]string{"x"}, nil, 3)
	if errors.Is(err, ErrCgo) && iscgo {
		t.Skip("this test is linked with a C library, as with the race detector")
	}
	if err != nil {
		t.Fatal(err)
	}
	at := i.span()
	i.Close()
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := parseMaps(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.from < at.to && at.from < m.to {
			t.Errorf("%x-%x is mapped still", m.from, m.to)
		}
	}
}

// TestSegments reads headers as linkers write them.
func TestSegments(t *testing.T) {
	const page = 0x1000
	text := header{typ: ptLoad, addr: 0x400000, fileSize: 0x1800, memSize: 0x1800}
	data := header{typ: ptLoad, flags: pfW, addr: 0x403000, fileSize: 0x1234, memSize: 0x5000}
	for _, tt := range []struct {
		name    string
		headers []header
		entry   uintptr
		want    program
		err     error
	}{
		{"variables", []header{text, data}, 0x400100,
			program{drop: []span{{0x403000, 0x408000}}, clear: []span{{0x404234, 0x405000}}}, nil},
		{"only variables with a value", []header{text, {typ: ptLoad, flags: pfW, addr: 0x403000, fileSize: 0x1234, memSize: 0x1234}}, 0x400100,
			program{drop: []span{{0x403000, 0x405000}}}, nil},
		{"a value up to the end of a page", []header{text, {typ: ptLoad, flags: pfW, addr: 0x403000, fileSize: 0x2000, memSize: 0x3000}}, 0x400100,
			program{drop: []span{{0x403000, 0x406000}}}, nil},
		{"a loader", []header{{typ: ptInterp}, text, data}, 0x400100, program{}, ErrPIE},
		{"relocations", []header{text, data, {typ: ptDynamic}}, 0x400100, program{}, ErrPIE},
		{"loaded elsewhere", []header{text, data}, 0x75400100, program{}, ErrPIE},
		{"nothing", nil, 0x400100, program{}, ErrPIE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := program{entry: tt.entry}
			_, err := got.segments(tt.headers, page)
			tt.want.entry = tt.entry
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(program{}, span{})); err == nil && diff != "" {
				t.Errorf("program (-want +got):\n%s", diff)
			}
		})
	}
}

// TestUnmap leaves what is to be kept out of a mapping.
func TestUnmap(t *testing.T) {
	kept := []span{{10, 20}, {30, 40}}
	for _, tt := range []struct {
		name string
		m    span
		want []span
	}{
		{"beside", span{20, 30}, []span{{20, 30}}},
		{"all of it", span{10, 20}, nil},
		{"inside", span{12, 18}, nil},
		{"around one", span{5, 25}, []span{{5, 10}, {20, 25}}},
		{"around all", span{0, 50}, []span{{0, 10}, {20, 30}, {40, 50}}},
		{"from inside", span{15, 35}, []span{{20, 30}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p program
			p.add(tt.m, kept...)
			if diff := cmp.Diff(tt.want, p.unmap, cmp.AllowUnexported(span{})); diff != "" {
				t.Errorf("unmap (-want +got):\n%s", diff)
			}
		})
	}
}
