package logging

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzFile writes lines of any length, two bytes for each, to a file that begins with anything,
// which is taken for its first line. The file stays below its limit, and ends with what was written
// last, unless that was too long.
func FuzzFile(f *testing.F) {
	f.Add([]byte("header"), []byte{0, 10, 0, 20}, false)
	f.Add([]byte(""), []byte{15, 255, 1, 0, 15, 255, 3, 0, 7, 0}, true)
	f.Add(bytes.Repeat([]byte("x"), 5000), []byte{0, 0, 255, 255, 0, 1}, false)
	f.Add([]byte("a\n\nb"), bytes.Repeat([]byte{0, 200}, 60), true)
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "log")
	f.Cleanup(func() { file.Close() })
	const limit = 8192
	f.Fuzz(func(t *testing.T, have, lengths []byte, move bool) {
		if err := file.Truncate(0); err != nil {
			t.Fatal(err)
		}
		have = append(have[:min(len(have), maxHeader-1):min(len(have), maxHeader-1)], '\n')
		if _, err := file.WriteAt(have, 0); err != nil {
			t.Fatal(err)
		}
		// Whoever opens it has it appended to, as CreateFile does.
		if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
			t.Fatal(err)
		}
		l := NewFile(file, limit, time.Now())
		l.move = move
		for len(lengths) >= 2 {
			n := int(lengths[0])<<8 | int(lengths[1])
			lengths = lengths[2:]
			line := []byte(strings.Repeat(string(rune('a'+n%26)), n%5000) + "\n")
			if k, err := l.Write(bytes.Clone(line)); err != nil || k != len(line) {
				t.Fatalf("Write of %d bytes = %d, %v", len(line), k, err)
			}
			st, err := file.Stat()
			if err != nil || st.Size() >= limit {
				t.Fatalf("%d bytes, %v", st.Size(), err)
			}
			if len(line) > limit/4 {
				line = append(line[:limit/4-1:limit/4-1], '\n')
			}
			end := make([]byte, len(line))
			if _, err := file.ReadAt(end, st.Size()-int64(len(line))); err != nil || !bytes.Equal(end, line) {
				t.Fatalf("ends with %q, %v, want %q", end, err, line)
			}
		}
	})
}
