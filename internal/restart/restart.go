// Package restart begins this program anew in a process that is a fork of it: what execve(2) of the
// same file does, without execve.
//
// # Why
//
// The kernel notes for each address space in which user namespace its program was executed
// (mm->user_ns). A process with CAP_SYS_PTRACE there may trace the one that lives in it, and read
// and write its memory, dumpable or not. So a process that enters a user namespace and then
// executes a program hands its memory to the root of that namespace. To be safe from that root it
// must execute first and enter afterwards. But a namespace lets in only processes of one thread,
// and a Go program has several before its first line runs.
//
// A fork has one thread, and its address space belongs to the user namespace in which the program
// was executed before. It can enter another one; but Go's runtime, which has lost its other
// threads, cannot go on in it. So the fork puts the program's variables back to what the file says,
// unmaps all other memory, and jumps to the entry point with a fresh stack. The runtime starts as
// after execve(2).
//
// # What is new, and what stays
//
//	variables      as the file has them (MADV_DONTNEED on a private mapping, madvise(2))
//	heap, stacks   unmapped, with all that was mapped when Prepare was called. What stays is the
//	               program, the vDSO, and the arguments, which the kernel shows in
//	               /proc/PID/cmdline
//	environment    the new one is on the new stack; the old one, in /proc/PID/environ, is cleared
//	descriptors    those from Files on are closed, the others stay open
//	signals        nothing is changed: in a fork, package syscall has put handlers back already
//
// What else execve(2) would change stays: the process's name, its capabilities, and whether it is
// dumpable.
//
// # Where it does not work
//
// A program with a C library has state that we know nothing of, and a position-independent one was
// changed in memory by its loader. Prepare refuses both.
package restart

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors of Prepare: no fork of this program can be restarted.
var (
	ErrCgo = errors.New("linked with a C library")
	ErrPIE = errors.New("position-independent")
)

// Image is a new beginning of this program. It is used in forks of the process that prepared it, by
// their one thread.
type Image struct {
	region []byte // stack, what is on it first, strings, plan; no part of Go's heap
	stack  uintptr
	plan   *plan // in region
}

// span is a range of addresses.
type span struct{ from, to uintptr }

// plan is what Begin does. Nothing in it points to Go's heap.
type plan struct {
	entry uintptr
	files uintptr
	drop  []span // memory to go back to what the file has, in whole pages
	clear []span // bytes to be zero, then
	unmap []span
}

const (
	// stackSize is what the first thread gets. Go's runtime uses 64 KiB of it for itself.
	stackSize = 256 << 10

	// maxSpans is how many spans a plan may have. A launcher has some 20 mappings.
	maxSpans = 1 << 10

	word = unsafe.Sizeof(uintptr(0))
)

// Prepare makes ready to restart with these arguments and this environment, and with no descriptors
// from files on. The fork should be soon: what is mapped in between stays mapped in it, unused.
func Prepare(argv, env []string, files uintptr) (*Image, error) {
	if iscgo {
		return nil, ErrCgo
	}
	auxv, err := unix.Auxv()
	if err != nil {
		return nil, fmt.Errorf("auxiliary vector: %w", err)
	}
	marks, unmarked = [2]uintptr{2, 2}, [2]uintptr{2, 2}
	text := 0
	for _, s := range argv {
		text += len(s) + 1
	}
	for _, s := range env {
		text += len(s) + 1
	}
	words := 1 + len(argv) + 1 + len(env) + 1 + 2*len(auxv) + 2
	size := stackSize + words*int(word) + text + seedSize + 2*align + int(unsafe.Sizeof(plan{})+maxSpans*unsafe.Sizeof(span{}))
	region, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	i := &Image{region: region}
	p, err := readProgram(auxv, i.span())
	if err == nil {
		err = i.fill(argv, env, auxv, p, files)
	}
	if err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// Close frees the image where it is not needed any more. A nil Image has nothing to free.
func (i *Image) Close() {
	if i != nil {
		unix.Munmap(i.region)
	}
}

// span is where the image is.
func (i *Image) span() span {
	from := uintptr(unsafe.Pointer(&i.region[0]))
	return span{from, from + uintptr(len(i.region))}
}

const (
	align    = 16
	seedSize = 16 // of AT_RANDOM
)

// fill lays the region out: room for a stack; the number of arguments, the arguments, the
// environment and the auxiliary vector, as the kernel leaves them on a first stack; strings; the
// plan.
func (i *Image) fill(argv, env []string, auxv [][2]uintptr, p *program, files uintptr) error {
	base, free := i.span().from, stackSize
	vector := unsafe.Slice((*uintptr)(unsafe.Pointer(&i.region[free])), 1+len(argv)+1+len(env)+1+2*len(auxv)+2)
	free += len(vector) * int(word)
	i.stack = base + stackSize
	push := func(w uintptr) { vector[0], vector = w, vector[1:] }
	text := func(s string) uintptr {
		at := base + uintptr(free)
		free += copy(i.region[free:], s) + 1
		return at
	}
	push(uintptr(len(argv)))
	for _, s := range argv {
		push(text(s))
	}
	push(0)
	for _, s := range env {
		push(text(s))
	}
	push(0)
	seed := i.region[free : free+seedSize]
	free += seedSize
	if _, err := unix.Getrandom(seed, 0); err != nil {
		return fmt.Errorf("random bytes: %w", err)
	}
	for _, a := range auxv {
		if a[0] == atRandom {
			a[1] = uintptr(unsafe.Pointer(&seed[0]))
		}
		push(a[0])
		push(a[1])
	}
	push(atNull)
	push(0)

	aligned := func() unsafe.Pointer {
		free += int(-(base + uintptr(free)) % align)
		return unsafe.Pointer(&i.region[free])
	}
	i.plan = (*plan)(aligned())
	free += int(unsafe.Sizeof(plan{}))
	spans := unsafe.Slice((*span)(aligned()), maxSpans)
	if n := len(p.drop) + len(p.clear) + len(p.unmap); n > maxSpans {
		return fmt.Errorf("%d mappings are too many", n)
	}
	place := func(list []span) (placed []span) {
		placed, spans = spans[:len(list):len(list)], spans[len(list):]
		copy(placed, list)
		return placed
	}
	*i.plan = plan{p.entry, files, place(p.drop), place(p.clear), place(p.unmap)}
	return nil
}

// Begin restarts the program. It returns only if it cannot, and then nothing is lost yet.
//
// It is for a fork that has one thread and may do nothing but raw system calls (as package
// syscall's forks are before they execute a program).
//
//go:nosplit
//go:norace
//go:nocheckptr
func (i *Image) Begin() syscall.Errno {
	var off struct { // struct stack_t: no stack for signal handlers
		sp    uintptr
		flags int32
		size  uintptr
	}
	p := i.plan
	for k := range p.drop {
		s := &p.drop[k]
		if _, _, errno := syscall.RawSyscall6(unix.SYS_MADVISE, s.from, s.to-s.from, unix.MADV_DONTNEED, 0, 0, 0); errno != 0 {
			return errno // the first of them, or none
		}
	}
	for k := range p.clear {
		for a := p.clear[k].from; a < p.clear[k].to; a++ {
			*(*byte)(pointer(a)) = 0
		}
	}
	if marks != [2]uintptr{1, 0} || unmarked != [2]uintptr{} {
		return unix.ENOTSUP
	}
	off.flags = ssDisable
	syscall.RawSyscall6(unix.SYS_SIGALTSTACK, uintptr(unsafe.Pointer(&off)), 0, 0, 0, 0, 0)
	jump(i.stack, p, p.entry)
	return 0
}

const ssDisable = 2 // SS_DISABLE

// What Prepare changes, in order to see whether it is back in Begin: a variable with a value, and
// one without.
var (
	marks    = [2]uintptr{1, 0}
	unmarked [2]uintptr
)

// jump switches to the stack, calls discard with p, and jumps to entry with nothing of ours left on
// the stack. It does not return.
func jump(stack uintptr, p *plan, entry uintptr)

// discard lets go of memory and descriptors. It runs on the new stack. What cannot be unmapped
// stays unused.
//
//go:nosplit
//go:norace
//go:nocheckptr
//lint:ignore U1000 jump calls it
func discard(p *plan) {
	for k := range p.unmap {
		s := &p.unmap[k]
		syscall.RawSyscall6(unix.SYS_MUNMAP, s.from, s.to-s.from, 0, 0, 0, 0)
	}
	// before Linux 5.9
	if _, _, errno := syscall.RawSyscall6(unix.SYS_CLOSE_RANGE, p.files, 1<<32-1, 0, 0, 0, 0); errno != 0 {
		for fd := p.files; fd < 1024; fd++ {
			syscall.RawSyscall6(unix.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
		}
	}
}

// iscgo reports whether the program is linked with a C library.
//
//go:linkname iscgo runtime.iscgo
var iscgo bool
