//go:build 386 || arm

package restart

// header is a program header, Elf32_Phdr of elf(5).
type header struct {
	typ      uint32
	offset   uint32
	addr     uint32
	physical uint32
	fileSize uint32
	memSize  uint32
	flags    uint32
	align    uint32
}
