package ports

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzReadFile reads any table in pieces, and compares with its lines read one by one.
func FuzzReadFile(f *testing.F) {
	f.Add([]byte(tcpTable))
	f.Add([]byte(tcp6Table))
	f.Add(bytes.Repeat([]byte("x"), 300))
	f.Add([]byte("\n\n 0: 0100007F:1F90 00000000:0000 0A"))
	fd, err := unix.MemfdCreate("table", unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.Close(fd) })
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := unix.Ftruncate(fd, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Pwrite(fd, b, 0); err != nil {
			t.Fatal(err)
		}
		var want, got Set
		longest := 0
		lines := bytes.Split(b, []byte{'\n'})
		for _, line := range lines[:len(lines)-1] {
			longest = max(longest, len(line))
			if port, state, ok := parseLine(line); ok && state == stateListen && port != 0 {
				want.Add(port)
			}
		}
		s := &Scanner{diag: -1, buf: make([]byte, 200)}
		switch err := s.readFile(fd, stateListen, &got); {
		case errors.Is(err, errMalformed):
			if max(longest, len(lines[len(lines)-1])) < len(s.buf) {
				t.Errorf("malformed, and no line has more than %d bytes", longest)
			}
		case err != nil:
			t.Error(err)
		case got != want:
			t.Errorf("%d ports, want %d", got.Len(), want.Len())
		}
	})
}
