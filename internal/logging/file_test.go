package logging

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const testHeader = "pasta devel: /usr/bin/passt (17)"

// newLog makes a log file and a logger that writes to nothing else.
func newLog(t *testing.T, limit int64, level zap.AtomicLevel) (*Logger, *File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	f, err := CreateFile(path, testHeader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	origin := time.Now()
	file := NewFile(f, limit, origin)
	log := New(&bytes.Buffer{}, Options{Level: level.Level(), Origin: origin, File: file})
	return log, file, path
}

func read(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(text), "\n") {
		t.Errorf("the file ends within a line: %q", text[max(0, len(text)-80):])
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func TestFileHasHeaderLevelsAndStamps(t *testing.T) {
	log, _, path := newLog(t, 40960, zap.NewAtomicLevelAt(zap.DebugLevel))
	log.Error("e")
	log.Warn("w", zap.Int("port", 80))
	log.Info("two\nlines\n")
	log.Debug("d")
	if !log.Close() {
		t.Error("Close = false")
	}
	lines := read(t, path)
	for i, line := range lines[1:] {
		stamp, rest, _ := strings.Cut(line, ": ")
		if _, err := strconv.ParseFloat(stamp, 64); err != nil || len(stamp) != len("0.0000") {
			t.Errorf("line %q has the stamp %q", line, stamp)
		}
		lines[i+1] = rest
	}
	want := []string{testHeader, "ERROR:   e", "WARNING: w port=80", "info:    two lines", "         d"}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file %v, %v; want mode 0600", st, err)
	}
}

func TestFileIsEmptiedFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old\n"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := CreateFile(path, testHeader)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got := read(t, path); len(got) != 1 || got[0] != testHeader {
		t.Errorf("file holds %q", got)
	}
}

// Whatever is written, the file stays between half of its limit and the limit, holds the
// newest lines in order and whole, and keeps its first line.
func TestFileRotates(t *testing.T) {
	for _, limit := range []int64{40960, 102400} {
		for _, move := range []bool{false, true} {
			t.Run(fmt.Sprintf("limit %d, move %t", limit, move), func(t *testing.T) {
				log, file, path := newLog(t, limit, zap.NewAtomicLevel())
				file.move = move
				full := false
				last := int(limit / 16)
				for i := range last + 1 {
					log.Info("line " + strconv.Itoa(i) + " " + strings.Repeat("x", i%97) + "!")
					if i%50 != 0 && i != last {
						continue
					}
					log.Sync()
					st, err := os.Stat(path)
					if err != nil {
						t.Fatal(err)
					}
					full = full || st.Size() > limit/2
					if st.Size() >= limit || full && st.Size() <= limit/2 {
						t.Fatalf("%d bytes after line %d", st.Size(), i)
					}
				}
				log.Close()
				lines := read(t, path)
				if !strings.HasPrefix(lines[0], testHeader+" - log truncated at ") {
					t.Errorf("first line %q", lines[0])
				}
				next, stamp := -1, 0.0
				for _, line := range lines[1:] {
					var s float64
					var n int
					var word, tail string
					if _, err := fmt.Sscanf(line, "%f: info: %s %d %s", &s, &word, &n, &tail); err != nil {
						t.Fatalf("line %q: %v", line, err)
					}
					if s < stamp || next >= 0 && n != next || !strings.HasSuffix(tail, "!") {
						t.Fatalf("line %q after number %d and stamp %f", line, next-1, stamp)
					}
					next, stamp = n+1, s
				}
				if next-1 != last {
					t.Errorf("last line is %d, want %d", next-1, last)
				}
			})
		}
	}
}

// TestFileWithALongFirstLine: a program whose path is long keeps the limit, too.
func TestFileWithALongFirstLine(t *testing.T) {
	const limit = 8192
	for _, move := range []bool{false, true} {
		f, err := CreateFile(filepath.Join(t.TempDir(), "log"), strings.Repeat("x", unix.PathMax))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l := NewFile(f, limit, time.Now())
		l.move = move
		for range 20 {
			if _, err := l.Write([]byte(strings.Repeat("y", limit/4) + "\n")); err != nil {
				t.Fatal(err)
			}
			if st, err := f.Stat(); err != nil || st.Size() >= limit {
				t.Fatalf("%d bytes, %v", st.Size(), err)
			}
		}
	}
}

func TestFileCutsLongLines(t *testing.T) {
	for _, move := range []bool{false, true} {
		log, file, path := newLog(t, 40960, zap.NewAtomicLevel())
		file.move = move
		for i := range 20 {
			log.Info(strconv.Itoa(i) + strings.Repeat("x", 30000))
			log.Sync()
			if st, err := os.Stat(path); err != nil || st.Size() >= 40960 {
				t.Fatalf("%v, %v", st, err)
			}
		}
		log.Info("last")
		log.Close()
		lines := read(t, path)
		if got := lines[len(lines)-1]; !strings.HasSuffix(got, "info:    last") {
			t.Errorf("last line %q", got)
		}
		for _, line := range lines[1:] {
			if len(line) > 40960/4 || len(line) < 10 || line[1] != '.' {
				t.Errorf("line of %d bytes: %.20q", len(line), line)
			}
		}
	}
}

// Two processes have a description of the same file, as launcher and translator do.
func TestFileIsShared(t *testing.T) {
	log, file, path := newLog(t, 40960, zap.NewAtomicLevel())
	fd, err := unix.FcntlInt(file.f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "log")
	defer f.Close()
	other := New(&bytes.Buffer{}, Options{Origin: time.Now(), File: NewFile(f, 40960, time.Now())})
	for range 1000 {
		log.Info("one")
		log.Sync()
		other.Info("other")
		other.Sync()
	}
	log.Close()
	other.Close()
	lines := read(t, path)
	words := []string{": info:    one", ": info:    other"}
	if strings.HasSuffix(lines[1], words[1]) {
		words[0], words[1] = words[1], words[0]
	}
	for i, line := range lines[1:] {
		if !strings.HasSuffix(line, words[i%2]) {
			t.Fatalf("line %d is %q, want one with %q", i+1, line, words[i%2])
		}
	}
	if !strings.HasPrefix(lines[0], testHeader+" - log truncated") {
		t.Errorf("first line %q", lines[0])
	}
}

func TestFileThatIsNone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log := New(&bytes.Buffer{}, Options{File: NewFile(w, 40960, time.Now())})
	log.Info("a")
	log.Close()
	w.Close()
	var got bytes.Buffer
	got.ReadFrom(r)
	if !strings.HasSuffix(got.String(), ": info:    a\n") {
		t.Errorf("%q", got.String())
	}
}

func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	s, err := DialSyslog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stderr bytes.Buffer
	log := New(&stderr, Options{Syslog: s, Ident: "pasta"})
	log.Error("e")
	log.Warn("w\nx", zap.Int("port", 80))
	log.Sync()
	log.Mute()
	log.Info("i")
	log.Debug("d")
	log.Close()
	if got := stderr.String(); got != "e\nw\nx port=80\n" {
		t.Errorf("standard error %q", got)
	}
	for _, want := range []string{"<3> pasta: e\n", "<4> pasta: w x port=80\n", "<6> pasta: i\n"} {
		b := make([]byte, 1000)
		server.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := server.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("%q, %v, want %q", b[:n], err, want)
		}
	}
	if _, err := DialSyslog(path + "x"); err == nil {
		t.Error("connected to nothing")
	}
}
