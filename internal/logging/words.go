package logging

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"go.uber.org/zap/zapcore"
)

// words is what fields add to a message for people: ": REASON" for an error, " KEY=VALUE" for
// another.
func words(fields []zapcore.Field) string {
	var b strings.Builder
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			b.WriteString(": " + reason(err))
			continue
		}
		m := zapcore.NewMapObjectEncoder()
		f.AddTo(m)
		v, ok := m.Fields[f.Key]
		if !ok {
			continue // there is nothing to say, as of an error that is none
		}
		text := fmt.Sprint(v)
		if quoted := strconv.Quote(text); text == "" || strings.ContainsAny(text, " =") || len(quoted) != len(text)+2 {
			text = quoted
		}
		b.WriteString(" " + f.Key + "=" + text)
	}
	return b.String()
}

// reason is err, a bare error number in the words of the C library.
func reason(err error) string {
	text := err.Error()
	if _, ok := err.(syscall.Errno); ok && text != "" {
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return text
}
