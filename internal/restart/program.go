package restart

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

// Types of entries in the auxiliary vector (linux/auxvec.h).
const (
	atNull         = 0
	atPHDR         = 3 // address of the program headers
	atPHNum        = 5
	atEntry        = 9
	atPlatform     = 15 // a string
	atBasePlatform = 24 // a string
	atRandom       = 25 // 16 bytes
	atExecFn       = 31 // the name that the program was executed by
)

// Types and flags of program headers (elf(5)).
const (
	ptLoad    = 1
	ptDynamic = 2
	ptInterp  = 3

	pfW = 2
)

// program is what a restart has to know of the running program.
type program struct {
	entry uintptr
	drop  []span // its variables, in whole pages
	clear []span // what is to be cleared when they are dropped
	unmap []span // what is mapped beside the program
}

// readProgram finds the program in memory. What is in keep is not to be unmapped.
func readProgram(auxv [][2]uintptr, keep span) (*program, error) {
	var p program
	aux := make(map[uintptr]uintptr, len(auxv))
	for _, a := range auxv {
		aux[a[0]] = a[1]
	}
	p.entry = aux[atEntry]
	if aux[atPHDR] == 0 || p.entry == 0 {
		return nil, errors.New("no program headers")
	}
	page := uintptr(os.Getpagesize())
	kept, err := p.segments(unsafe.Slice((*header)(pointer(aux[atPHDR])), aux[atPHNum]), page)
	if err != nil {
		return nil, err
	}
	kept = append(kept, keep)
	slices.SortFunc(kept, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	maps, err := parseMaps(text)
	if err != nil {
		return nil, err
	}
	// What the kernel left on the first stack, from below: what auxv points to, the arguments, the
	// environment, the program's name.
	strings, environ := aux[atExecFn], span{to: aux[atExecFn]}
	for _, at := range []uintptr{aux[atPlatform], aux[atBasePlatform], aux[atRandom]} {
		if at != 0 {
			strings = min(strings, at)
		}
	}
	for _, s := range os.Args {
		at := uintptr(unsafe.Pointer(unsafe.StringData(s)))
		strings, environ.from = min(strings, at), max(environ.from, at+uintptr(len(s))+1)
	}
	for _, m := range maps {
		switch {
		case m.name == "[stack]":
			if m.from <= environ.from && environ.to <= m.to && environ.from < environ.to {
				p.clear = append(p.clear, environ)
			}
			if m.from <= strings && strings < m.to {
				m.to = strings &^ (page - 1)
				p.add(m.span)
			}
		case !m.kernels():
			p.add(m.span, kept...)
		}
	}
	return &p, nil
}

// segments notes the variables in a program's segments, and returns where it is.
func (p *program) segments(headers []header, page uintptr) (all []span, err error) {
	up := func(a uintptr) uintptr { return (a + page - 1) &^ (page - 1) }
	for _, h := range headers {
		switch h.typ {
		case ptDynamic, ptInterp:
			return nil, ErrPIE
		case ptLoad:
		default:
			continue
		}
		from, file, to := uintptr(h.addr), uintptr(h.addr+h.fileSize), uintptr(h.addr+h.memSize)
		s := span{from &^ (page - 1), up(to)}
		all = append(all, s)
		if h.flags&pfW == 0 {
			continue
		}
		p.drop = append(p.drop, s)
		if file < to && file != up(file) {
			// The file goes on where variables without a value begin.
			p.clear = append(p.clear, span{file, up(file)})
		}
	}
	if len(all) == 0 || p.entry < all[0].from || p.entry >= all[0].to {
		return nil, ErrPIE // it is not where it was linked to be
	}
	return all, nil
}

// add notes to unmap s, but for what is in any of kept, which are in order.
func (p *program) add(s span, kept ...span) {
	for _, k := range kept {
		if k.to <= s.from || k.from >= s.to {
			continue
		}
		if s.from < k.from {
			p.unmap = append(p.unmap, span{s.from, k.from})
		}
		s.from = k.to
	}
	if s.from < s.to {
		p.unmap = append(p.unmap, s)
	}
}

// mapping is a line of /proc/PID/maps.
type mapping struct {
	span
	mode string
	name string
}

// kernels reports whether the kernel has made a mapping by itself: vDSO, its variables, vectors. Go
// maps no code beside the program.
func (m mapping) kernels() bool {
	return strings.Contains(m.mode, "x") ||
		strings.HasPrefix(m.name, "[") && m.name != "[heap]" && !strings.HasPrefix(m.name, "[anon")
}

// parseMaps reads /proc/PID/maps (proc_pid_maps(5)).
func parseMaps(text []byte) ([]mapping, error) {
	var maps []mapping
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) < 5 {
			return nil, fmt.Errorf("/proc/self/maps: line %q", line)
		}
		from, to, _ := strings.Cut(fields[0], "-")
		a, err := strconv.ParseUint(from, 16, int(word*8))
		if err != nil {
			return nil, fmt.Errorf("/proc/self/maps: line %q", line)
		}
		b, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("/proc/self/maps: line %q", line)
		}
		m := mapping{span: span{uintptr(a), uintptr(b)}, mode: fields[1]}
		if len(fields) > 5 {
			m.name = fields[5]
		}
		maps = append(maps, m)
	}
	return maps, nil
}

// pointer makes a pointer of an address outside of Go's heap.
//
//go:nosplit
//go:norace
//go:nocheckptr
func pointer(a uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&a)) }
