package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const unsafeSize = unsafe.Sizeof(unix.RawSockaddr{})

func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

func ptrOf(a *unix.RawSockaddr) unsafe.Pointer { return unsafe.Pointer(a) }
