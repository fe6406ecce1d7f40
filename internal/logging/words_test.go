package logging

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// What people read has no JSON in it; what is for debugging has.
func TestFieldsInWords(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fields []zapcore.Field
		want   string
	}{
		{"none", nil, "m\n"},
		{"an error", []zapcore.Field{zap.Error(errors.New("it fails"))}, "m: it fails\n"},
		{"an error number, as others word it", []zapcore.Field{zap.Error(unix.ENOENT)}, "m: No such file or directory\n"},
		{"an error that wraps one", []zapcore.Field{zap.Error(fmt.Errorf("open: %w", unix.ENOENT))}, "m: open: no such file or directory\n"},
		{"no error", []zapcore.Field{zap.Error(nil)}, "m\n"},
		{"several", []zapcore.Field{zap.Uint64("times", 3), zap.Duration("after", 1500*time.Millisecond), zap.Error(unix.EPERM)},
			"m times=3 after=1.5s: Operation not permitted\n"},
		{"a Stringer", []zapcore.Field{zap.Stringer("guest", netip.MustParseAddrPort("[::1]:80"))}, "m guest=[::1]:80\n"},
		{"with blanks", []zapcore.Field{zap.String("reason", "a b"), zap.String("none", ""), zap.ByteString("stack", []byte("x\n\x1b"))},
			"m reason=\"a b\" none=\"\" stack=\"x\\n\\x1b\"\n"},
	} {
		var out bytes.Buffer
		log := New(&out, Options{})
		log.Warn("m", tt.fields...)
		log.Close()
		if out.String() != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, out.String(), tt.want)
		}
	}
	var out bytes.Buffer
	log := New(&out, Options{Level: zapcore.DebugLevel, Origin: time.Now().Add(time.Hour)})
	with := log.With(zap.String("socket", "control"))
	with.Warn("w", zap.Error(unix.EPERM))
	with.Debug("d", zap.Int("port", 80))
	log.Close()
	if want := "0.0000: w socket=control: Operation not permitted\n0.0000: d {\"socket\": \"control\", \"port\": 80}\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
