//go:build amd64 || arm64 || riscv64 || ppc64le || s390x

package restart

// header is a program header, Elf64_Phdr of elf(5).
type header struct {
	typ      uint32
	flags    uint32
	offset   uint64
	addr     uint64
	physical uint64
	fileSize uint64
	memSize  uint64
	align    uint64
}
