package logging

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxHeader bounds the first line of a log file: a path and some words.
const maxHeader = unix.PathMax + 256

// Names of what CreateFile and DialSyslog return, by which it is passed to other processes.
const (
	FileName   = "log"
	SyslogName = "syslog"
)

// CreateFile makes the log file at path, empties it if there is one, and writes the first
// line. Only the user may read it (mode 0600). The name of the result is
// FileName.
func CreateFile(path, header string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_TRUNC|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), FileName)
	if _, err := io.WriteString(f, header+"\n"); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// File is a log file of bounded size. Several processes may write to the same one side by
// side: a record lock (fcntl(2)) is held while one does. A File is used by one goroutine at
// a time.
//
// When a write would reach the limit, the oldest lines are cut off, three tenths of the
// limit. File systems that can take blocks out of a file (fallocate(2), ext4, xfs) do it
// without moving a byte; in others the rest is moved. The first line stays, and tells when
// lines were last cut off.
type File struct {
	f      *os.File
	limit  int64 // bytes; 0: it is no regular file, and has no limit
	origin time.Time
	header string // beginning of the first line, without what a rotation has added
	move   bool   // blocks cannot be taken out
	dirty  bool   // written to since the last Sync
}

// NewFile writes to f, made by CreateFile in this process or another, which stays the
// caller's. It keeps its size below limit bytes, at least 4096. origin is what stamps count
// from.
func NewFile(f *os.File, limit int64, origin time.Time) *File {
	l := &File{f: f, limit: limit, origin: origin}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		l.limit = 0
		return l
	}
	buf := make([]byte, maxHeader)
	n, _ := f.ReadAt(buf, 0) // io.EOF as a rule
	line, _, _ := bytes.Cut(buf[:n], []byte("\n"))
	// or a small file would have little else
	l.header = string(line[:min(len(line), int(l.limit/16))])
	return l
}

// Write appends lines. Those that are longer than a quarter of the limit are cut off.
func (l *File) Write(lines []byte) (int, error) {
	l.dirty = true
	if l.limit == 0 {
		return l.f.Write(lines)
	}
	if err := l.lock(unix.F_WRLCK); err != nil {
		return 0, err
	}
	defer l.lock(unix.F_UNLCK)
	n := len(lines)
	for len(lines) > 0 {
		piece := lines[:l.piece(lines)]
		lines = lines[len(piece):]
		if cut := int(l.limit / 4); len(piece) > cut {
			piece = append(piece[:cut-1:cut-1], '\n')
		}
		if err := l.append(piece); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// piece is the length of the whole lines that lines begins with and that go out in one
// write: few enough that the file stays well filled.
func (l *File) piece(lines []byte) int {
	most := int(l.limit / 16)
	if len(lines) <= most {
		return len(lines)
	}
	if end := bytes.LastIndexByte(lines[:most], '\n'); end >= 0 {
		return end + 1
	}
	if end := bytes.IndexByte(lines, '\n'); end >= 0 {
		return end + 1
	}
	return len(lines)
}

// append writes b at the end. The size is asked for each time: others write as well.
func (l *File) append(b []byte) error {
	size, err := l.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size+int64(len(b)) >= l.limit {
		if size, err = l.rotate(size); err != nil {
			return err
		}
	}
	_, err = l.f.WriteAt(b, size)
	return err
}

// Sync brings what was written to the disk.
func (l *File) Sync() error {
	if !l.dirty {
		return nil
	}
	l.dirty = false
	return l.f.Sync()
}

func (l *File) lock(kind int16) error {
	for {
		err := unix.FcntlFlock(l.f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: kind, Whence: io.SeekStart})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// rotate cuts the oldest lines off and returns the new size.
func (l *File) rotate(size int64) (int64, error) {
	page := int64(os.Getpagesize())
	cut := min((l.limit*3/10+page-1)/page*page, size)
	mark := fmt.Sprintf("%s - log truncated at %s", l.header, stamp(time.Since(l.origin)))
	mark = mark[:len(mark)-1] // the colon
	if !l.move {
		// Refused also when nothing would be left.
		if err := unix.Fallocate(int(l.f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, cut); err == nil {
			return size - cut, l.overwrite(mark)
		}
		l.move = true
	}
	return l.shift(mark, cut, size)
}

// overwrite makes mark the first line, and of all that is left of the line it reaches into
// blanks behind it.
func (l *File) overwrite(mark string) error {
	b := make([]byte, len(mark)+int(l.limit/4)+1) // the longest line
	n, err := l.f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	b = b[:n]
	end := n
	if n > len(mark) {
		if i := bytes.IndexByte(b[len(mark):], '\n'); i >= 0 {
			end = len(mark) + i
		}
	}
	copy(b, mark)
	for i := len(mark); i < end; i++ {
		b[i] = ' '
	}
	_, err = l.f.WriteAt(b[:end], 0)
	return err
}

// shift makes mark the first line and moves what is after the first whole line behind cut
// up to it. It returns the new size.
func (l *File) shift(mark string, cut, size int64) (int64, error) {
	rest := make([]byte, size-cut)
	n, err := l.f.ReadAt(rest, cut)
	if err != nil && err != io.EOF {
		return 0, err
	}
	_, rest, _ = bytes.Cut(rest[:n], []byte("\n"))
	b := append([]byte(mark+"\n"), rest...)
	if _, err := l.f.WriteAt(b, 0); err != nil {
		return 0, err
	}
	return int64(len(b)), l.f.Truncate(int64(len(b)))
}
