package config

import "fmt"

// Error is a command line that cannot be used. The program prints Warnings, then Text, and
// ends with status 1.
type Error struct {
	Text     string   // one line, without a newline
	Warnings []string // what was to be said before, one line each
}

func (e *Error) Error() string { return e.Text }

// UsageError is a word that is no option, or an option without its value. The program
// prints Warnings, Text and then the help text of Mode, all on standard error, and ends with
// status 1.
type UsageError struct {
	Text     string   // one line, beginning with argv[0], without a newline
	Mode     Mode     // whose help to show
	Warnings []string // what was to be said before, one line each
}

func (e *UsageError) Error() string { return e.Text }

func errorf(format string, args ...any) *Error {
	return &Error{Text: fmt.Sprintf(format, args...)}
}
