package vhost

import (
	"math"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxTable is the number of regions of one memory table: each has a descriptor.
	maxTable = maxFDs
	// maxSlots is the number of regions in all, which may be added one by one (GET_MAX_MEM_SLOTS).
	maxSlots = 64
	// regionLen is the length of a region in a message.
	regionLen = 32

	logPage = 4096 // bytes for each bit of the dirty log
)

// region is a part of the guest's memory. The guest knows it by guest, the front end by user.
type region struct {
	guest, user uint64
	offset      uint64 // in the file
	mapped      []byte // the file from its beginning; the region is its last size bytes
	mem         []byte
}

// parseRegion reads a region from a message.
func parseRegion(m *message, off int) region {
	return region{guest: m.u64(off), user: m.u64(off + 16), offset: m.u64(off + 24)}
}

// maxMapped bounds what is mapped at once: what a word can count, and no machine has more.
const maxMapped = min(1<<46, math.MaxInt)

// mapRegion maps the region at off of the message m from the file fd, and closes fd.
func mapRegion(m *message, off int, fd int) (region, error) {
	defer unix.Close(fd)
	r := parseRegion(m, off)
	size := m.u64(off + 8)
	end := r.offset + size
	if size == 0 || end < size || end > maxMapped || r.guest+size < size || r.user+size < size {
		return r, protocolErrorf("impossible memory region")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return r, os.NewSyscallError("fstat", err)
	}
	if st.Size < int64(end) {
		return r, protocolErrorf("memory region of %d bytes in a file of %d", end, st.Size)
	}
	b, err := unix.Mmap(fd, 0, int(end), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return r, os.NewSyscallError("mmap", err)
	}
	r.mapped, r.mem = b, b[r.offset:]
	return r, nil
}

func (r *region) unmap() {
	if r.mapped != nil {
		unix.Munmap(r.mapped)
		r.mapped, r.mem = nil, nil
	}
}

// memory is the guest's memory, and the log of what was written to it.
type memory struct {
	regions []region
	log     []byte // the mapping; nil: none
	logging bool   // the front end wants to know what is written
	logFD   int    // rung at changes; -1: none
}

// at returns the n bytes at the guest's address, or as many as the region has: the rest is in
// another one. nil: there is none.
func (m *memory) at(addr, n uint64) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.guest; addr >= r.guest && off < uint64(len(r.mem)) {
			return r.mem[off : off+min(n, uint64(len(r.mem))-off)]
		}
	}
	return nil
}

// atUser returns the n bytes at an address of the front end's, nil unless all are in one region.
func (m *memory) atUser(addr, n uint64) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.user; addr >= r.user && off <= uint64(len(r.mem)) && n <= uint64(len(r.mem))-off {
			return r.mem[off : off+n]
		}
	}
	return nil
}

// dirty marks the n bytes at the guest's address as written.
func (m *memory) dirty(addr, n uint64) {
	if !m.logging || m.log == nil || n == 0 {
		return
	}
	for page := addr / logPage; page <= (addr+n-1)/logPage; page++ {
		if page/8 >= uint64(len(m.log)) {
			return
		}
		word := (*uint32)(unsafe.Pointer(&m.log[page/8&^3]))
		bit := uint32(1) << (page % 8)
		if littleEndian {
			bit <<= 8 * (page / 8 % 4)
		} else {
			bit <<= 8 * (3 - page/8%4)
		}
		atomic.OrUint32(word, bit)
	}
}

var littleEndian = func() bool {
	v := uint16(1)
	return *(*byte)(unsafe.Pointer(&v)) == 1
}()

// setLog maps the log of size bytes at offset of the file fd, and closes fd.
func (m *memory) setLog(fd int, size, offset uint64) error {
	defer unix.Close(fd)
	if size == 0 || size > maxMapped || offset%uint64(os.Getpagesize()) != 0 || offset > 1<<46 {
		return protocolErrorf("impossible log of %d bytes at %d", size, offset)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Size < int64(offset+size) {
		return protocolErrorf("log of %d bytes in a file of %d", offset+size, st.Size)
	}
	// The words at its end are whole ones: a mapping is whole pages.
	b, err := unix.Mmap(fd, int64(offset), int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	m.dropLog()
	m.log = b
	return nil
}

func (m *memory) dropLog() {
	if m.log != nil {
		unix.Munmap(m.log)
		m.log = nil
	}
}

// tellLog rings for changes of the log.
func (m *memory) tellLog() {
	if m.logging && m.logFD >= 0 {
		ringFD(m.logFD)
	}
}

// ringFD adds one to the eventfd fd. An error has nobody to be told to: then it is no eventfd.
func ringFD(fd int) {
	one := [8]byte{}
	*(*uint64)(unsafe.Pointer(&one)) = 1
	unix.Write(fd, one[:])
}

func (m *memory) close() {
	for i := range m.regions {
		m.regions[i].unmap()
	}
	m.regions = nil
	m.dropLog()
	if m.logFD >= 0 {
		unix.Close(m.logFD)
		m.logFD = -1
	}
}
