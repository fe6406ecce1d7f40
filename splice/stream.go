package splice

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/actors/sock"
)

const (
	// bufferSize is the size in bytes of a copied read at most.
	bufferSize = 64 << 10
	// bulkRead is the size in bytes of a read from which on a transfer counts as bulk.
	bulkRead = 32 << 10
	// leanReads reads in a row of less than leanRead bytes end it.
	leanReads = 4
	leanRead  = 8 << 10
	// turn is about how many bytes a stream moves before others have theirs.
	turn = 2 << 20
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// end is one of the two sockets of a connection.
type end struct {
	fd int

	// What the watch has said and no call has disproved yet.
	readable, writable bool
	hup                bool // the peer has ended its direction, or everything
	failed             bool // there is an error
	urgent             bool // the peer has sent urgent data (tcp(7)), as telnet does

	eof  bool // the peer's direction has ended and all of it was read
	shut bool // our direction has ended
}

// stream is one direction of a connection.
type stream struct {
	buf      *[bufferSize]byte // what was copied; nil if nothing is
	off, end int               // the part of it that is to be written

	pipe *pipe // nil in between
	held int   // bytes in it

	bulk   bool // the next read goes through a pipe
	corked bool // what was written last may not have been sent

	lean int // reads through a pipe in a row that were hardly worth it
}

// empty reports whether all that was read has been written.
func (s *stream) empty() bool { return s.off == s.end && s.held == 0 }

// flush has everything sent that was written to dst.
func (s *stream) flush(dst *end) {
	if s.corked {
		s.corked = false
		sock.NoDelay(dst.fd) // once more: it sends what waits (tcp(7))
	}
}

// rest gives back what an idle stream does not need.
func (s *stream) rest(p *pipes) {
	if s.buf != nil && s.off == s.end {
		buffers.Put(s.buf)
		s.buf = nil
	}
	if s.pipe != nil && s.held == 0 {
		p.put(s.pipe)
		s.pipe = nil
	}
}

// drop gives everything back. What was not written is lost.
func (s *stream) drop(p *pipes) {
	if s.held > 0 {
		p.lose(s.pipe)
		s.pipe, s.held = nil, 0
	}
	s.off, s.end = 0, 0
	s.rest(p)
}

// run moves data from src to dst until one of them has no more to give or take, or the turn is
// over; then more is true. It returns how many bytes it has read, and the error that ends the
// connection.
func (s *stream) run(src, dst *end, p *pipes) (n int, more bool, e unix.Errno) {
	for {
		if !s.empty() {
			if !dst.writable {
				return n, false, 0
			}
			if e := s.write(dst); e != 0 {
				return n, false, e
			}
			continue
		}
		if src.eof {
			if dst.shut {
				return n, false, 0
			}
			dst.shut = true
			return n, false, shutdownWrite(dst.fd)
		}
		if !src.readable || !dst.writable {
			return n, false, 0
		}
		if n >= turn {
			return n, true, 0
		}
		got, e := s.read(src, p)
		if e != 0 {
			return n, false, e
		}
		n += got
	}
}

// read reads from src, once.
func (s *stream) read(src *end, p *pipes) (n int, e unix.Errno) {
	if src.urgent {
		s.bulk = false // splice(2) does not get past it
	}
	if s.bulk && s.pipe == nil {
		if s.pipe = p.get(); s.pipe == nil {
			s.bulk = false
		}
	}
	piped := s.bulk
	if piped {
		n, e = move(src.fd, s.pipe.w, p.size, 0)
		if e == 0 {
			s.held = n
		}
		s.weigh(n)
		if sock.NoMemory(e) {
			piped, s.bulk = false, false // to copy takes none
			s.rest(p)
		}
		if e == 0 && n == 0 {
			// The end; or an urgent byte, which the watch may not have told of yet, and the end
			// behind it.
			piped, s.bulk = false, false
			s.rest(p)
		}
	}
	if !piped {
		if s.buf == nil {
			s.buf = buffers.Get().(*[bufferSize]byte)
		}
		n, e = recv(src.fd, s.buf[:])
		if e == 0 {
			s.off, s.end = 0, n
			if n < len(s.buf) && !src.hup && !src.urgent {
				// The watch will say when there is more. But a read ends before an urgent byte, and
				// behind it there may be more already.
				src.readable = false
			}
			s.bulk = n >= bulkRead
		}
	}
	switch {
	case e == unix.EAGAIN:
		src.readable = false
		return 0, 0
	case e == 0 && n == 0:
		src.eof = true
	}
	return n, e
}

// weigh ends the bulk transfer when n bytes, or none at the moment, is what the pipe has carried
// too often.
func (s *stream) weigh(n int) {
	switch {
	case n >= leanRead:
		s.lean = 0
	case n > 0:
		if s.lean++; s.lean == leanReads {
			s.bulk, s.lean = false, 0
		}
	}
}

// unpipe takes as much out of the pipe as the buffer has room for, which is empty: that is written
// first.
func (s *stream) unpipe() unix.Errno {
	if s.buf == nil {
		s.buf = buffers.Get().(*[bufferSize]byte)
	}
	n, e := ignoringEINTR(unix.SYS_READ, uintptr(s.pipe.r), uintptr(unsafe.Pointer(&s.buf[0])), uintptr(min(s.held, bufferSize)), 0, 0, 0)
	if e == 0 {
		s.off, s.end, s.held = 0, n, s.held-n
	}
	return e
}

// write writes what was read to dst, once.
func (s *stream) write(dst *end) unix.Errno {
	var n int
	var e unix.Errno
	if s.off == s.end {
		// Segments are filled up while there is more to come. flush sends the last one.
		if n, e = move(s.pipe.r, dst.fd, s.held, unix.SPLICE_F_MORE); e == 0 {
			s.held -= n
			s.corked = true
		} else if sock.NoMemory(e) {
			e = s.unpipe()
		}
	} else {
		if n, e = send(dst.fd, s.buf[s.off:s.end]); e == 0 {
			s.off += n
		}
	}
	if e == unix.EAGAIN {
		dst.writable = false
		return 0
	}
	return e
}
