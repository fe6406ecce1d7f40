package tapio

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

const (
	// scatterFrames is the number of frames that leave with one sendmsg(2): each needs two of its
	// 1024 pieces, and 64 KiB at an MTU of 1500 are 45 frames.
	scatterFrames = 256
	// headerSlot has room for headers, and for the shortest frame.
	headerSlot = (maxHeader + 7) &^ 7
)

// frameWriter lays out what one Write sends for a stream: for each frame its length and headers,
// made here, and its payload, which stays where it is.
type frameWriter struct {
	seg    segmenter
	frames int
	n      int // pieces
	len    int // bytes of all pieces
	msg    unix.Msghdr
	iov    [2 * scatterFrames]unix.Iovec
	hdr    [scatterFrames][headerSlot]byte
}

var frameWriters = sync.Pool{New: func() any { return new(frameWriter) }}

// fill lays out the next frames of the row that seg was set to and reports whether there are any.
func (s *frameWriter) fill() (bool, error) {
	s.frames, s.n, s.len = 0, 0, 0
	for s.frames < scatterFrames {
		slot := &s.hdr[s.frames]
		n, data := s.seg.split(slot[:])
		if n == 0 {
			break
		}
		if n+len(data) < frame.MinFrame {
			n += copy(slot[n:], data)
			n = frame.Pad(slot[:], n)
			data = nil
		}
		length := n - frame.VnetLen + len(data)
		if length > maxStream {
			return false, ErrRefused
		}
		const at = frame.VnetLen - prefixLen
		binary.BigEndian.PutUint32(slot[at:], uint32(length))
		s.add(slot[at:n])
		if len(data) > 0 {
			s.add(data)
		}
		s.frames++
	}
	return s.frames > 0, nil
}

func (s *frameWriter) add(b []byte) {
	s.iov[s.n].Base = &b[0]
	s.iov[s.n].SetLen(len(b))
	s.n++
	s.len += len(b)
}

// send writes to the socket fd without waiting and returns how many bytes it took.
func (s *frameWriter) send(fd uintptr) (int, unix.Errno) {
	s.msg.Iov = &s.iov[0]
	s.msg.SetIovlen(s.n)
	return sendmsg(fd, &s.msg)
}

// rest appends all pieces but for their first skip bytes to b.
func (s *frameWriter) rest(b []byte, skip int) []byte {
	for i := range s.n {
		p := unsafe.Slice(s.iov[i].Base, int(s.iov[i].Len))
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		b = append(b, p[skip:]...)
		skip = 0
	}
	return b
}

// done lets go of the frame that seg was set to, and of its payload.
func (s *frameWriter) done() {
	s.seg.in = nil
	clear(s.iov[:s.n])
	s.n = 0
	frameWriters.Put(s)
}

// sendmsg does not block, and a socket's buffer is filled in some 50 µs, so the scheduler need not
// know of it.
func sendmsg(fd uintptr, m *unix.Msghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// recvmsg does not block either.
func recvmsg(fd uintptr, m *unix.Msghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}
