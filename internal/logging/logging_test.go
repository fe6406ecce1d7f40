package logging

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLevelsAndLines(t *testing.T) {
	tests := []struct {
		name  string
		level zapcore.Level
		want  string
	}{
		{"quiet", zapcore.WarnLevel, "w\ne\n"},
		{"default", zapcore.InfoLevel, "i port=80\nw\ne\n"},
		{"debug", zapcore.DebugLevel, "2.5000: d\n2.5000: i port=80\n2.5000: w\n2.5000: e\n"},
		{"trace", TraceLevel, "2.5000: t\n2.5000: d\n2.5000: i port=80\n2.5000: w\n2.5000: e\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				log := New(&out, Options{Level: tt.level, Origin: time.Now()})
				time.Sleep(2500 * time.Millisecond) // virtual
				log.Log(TraceLevel, "t")
				log.Debug("d")
				log.Info("i", zap.Int("port", 80))
				log.Warn("w")
				log.Error("e")
				if !log.Close() {
					t.Error("Close = false")
				}
				if d := cmp.Diff(tt.want, out.String()); d != "" {
					t.Error(d)
				}
			})
		})
	}
}

func TestStamp(t *testing.T) {
	tests := []struct {
		since time.Duration
		want  string
	}{
		{0, "0.0000:"},
		{-time.Second, "0.0000:"},
		{99 * time.Microsecond, "0.0000:"},
		{1234*time.Second + 5*time.Millisecond, "1234.0050:"},
	}
	for _, tt := range tests {
		if got := stamp(tt.since); got != tt.want {
			t.Errorf("stamp(%v) = %q, want %q", tt.since, got, tt.want)
		}
	}
}

// jumped is at as it would be had the host's clock been set by d before: the monotonic reading is
// the same. How a time.Time is made up is nobody's business; that it is made up so is checked.
func jumped(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	// of the wall clock, in the first word of a time with a monotonic reading
	const second = 1 << 30
	got := at
	*(*uint64)(unsafe.Pointer(&got)) += uint64(d/time.Second) * second
	// the one compares monotonic readings, the other has none
	if !got.Equal(at) || got.Round(0).Sub(at.Round(0)) != d {
		t.Fatalf("a jump by %v makes %v of %v", d, got, at)
	}
	return got
}

// TestStampsGoOnWhenTheClockIsSet: lines count from the start of the program on, in their order,
// whatever becomes of the host's clock.
func TestStampsGoOnWhenTheClockIsSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := CreateFile(path, "header")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stderr bytes.Buffer
	origin := time.Now()
	log := New(&stderr, Options{Level: zapcore.DebugLevel, Origin: origin, File: NewFile(f, 40960, origin)})
	for i, jump := range []time.Duration{0, time.Hour, -24 * time.Hour, 0} {
		e := zapcore.Entry{Level: zapcore.WarnLevel, Time: jumped(t, origin.Add(time.Duration(i)*1500*time.Millisecond), jump), Message: "line"}
		if err := log.Core().Write(e, nil); err != nil {
			t.Fatal(err)
		}
	}
	log.Close()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "0.0000: line\n1.5000: line\n3.0000: line\n4.5000: line\n"
	if d := cmp.Diff(want, stderr.String()); d != "" {
		t.Errorf("standard error: %s", d)
	}
	if d := cmp.Diff("header\n"+strings.ReplaceAll(want, "line", "WARNING: line"), string(text)); d != "" {
		t.Errorf("file: %s", d)
	}
}

// stuck is an output that takes nothing until it is let go.
type stuck struct {
	free chan struct{}
	held chan struct{} // if not nil, closed when it has something
	once sync.Once
	mu   sync.Mutex
	got  bytes.Buffer
}

func (s *stuck) Write(b []byte) (int, error) {
	if s.held != nil {
		s.once.Do(func() { close(s.held) })
	}
	<-s.free
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(b)
}

func TestStuckOutputDoesNotBlock(t *testing.T) {
	out := &stuck{free: make(chan struct{}), held: make(chan struct{})}
	log := New(out, Options{})
	line := strings.Repeat("x", 1000)
	log.Info(line)
	<-out.held
	for range 200 {
		log.Info(line)
	}
	close(out.free)
	log.Sync()
	log.Info("last")
	log.Close()

	out.mu.Lock()
	defer out.mu.Unlock()
	got := out.got.String()
	if n := strings.Count(got, line); n != 1+queueSize/1001 {
		t.Errorf("%d lines written, want the first and one queue full", n)
	}
	if !strings.Contains(got, "messages lost)\nlast\n") {
		t.Errorf("no count of lost lines before the last one: %q", got[max(0, len(got)-80):])
	}
}

func TestCloseGivesUpOnStuckOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{free: make(chan struct{})}
		log := New(out, Options{})
		log.Info("a")
		if log.Close() {
			t.Error("Close = true with a stuck output")
		}
		close(out.free)
	})
}

func TestMute(t *testing.T) {
	var out bytes.Buffer
	log := New(&out, Options{})
	log.Info("a")
	log.Sync()
	log.Mute()
	log.Info("b")
	log.Close()
	if got := out.String(); got != "a\n" {
		t.Errorf("output = %q, want a only", got)
	}
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		all := New(&out, Options{})
		log := Limit(all.Logger).With(zap.Int("port", 1))
		for range 9 {
			log.Info("a")
		}
		log.Info("b")
		log.Debug("hidden")
		time.Sleep(limitWindow) // virtual; not more than a window yet
		log.Info("a")
		time.Sleep(time.Millisecond)
		log.Info("a")
		all.Close()

		a := "a port=1\n"
		want := strings.Repeat(a, 5) + "(suppressing further similar messages) port=1\nb port=1\n" +
			"(suppressed 5 similar messages) port=1\n" + a
		if d := cmp.Diff(want, out.String()); d != "" {
			t.Error(d)
		}
	})
}

func TestLimitForgetsOldSites(t *testing.T) {
	log := Limit(New(io.Discard, Options{}).Logger)
	core := log.Core().(*limitCore)
	for i := range 3 * limitSites {
		log.Info(strings.Repeat("x", i))
	}
	if n := len(core.sites.m); n > limitSites {
		t.Errorf("%d sites remembered, want at most %d", n, limitSites)
	}
}

func TestLeftOutMessagesAllocateNothing(t *testing.T) {
	log := Limit(New(io.Discard, Options{}).Logger)
	for range limitBurst + 1 {
		log.Warn("a")
	}
	if n := testing.AllocsPerRun(100, func() { log.Warn("a") }); n != 0 {
		t.Errorf("%v allocations a message, want none", n)
	}
}
