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
// prints Warnings, Text, the Suggestion and how to see the help, all on standard error, and ends
// with status 1.
type UsageError struct {
	Text string // one line, beginning with argv[0], without a newline
	// an option of Mode that is spelled nearly the same, with dashes; empty: none
	Suggestion string
	Mode       Mode     // whose help would tell more
	Warnings   []string // what was to be said before, one line each

	unknown string // the long option that does not exist, without dashes
}

func (e *UsageError) Error() string { return e.Text }

func errorf(format string, args ...any) *Error {
	return &Error{Text: fmt.Sprintf(format, args...)}
}
