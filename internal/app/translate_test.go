package app

import (
	"slices"
	"testing"
)

// What was opened is closed in the opposite order, unless all of it could be opened.
func TestUndo(t *testing.T) {
	open := func(forget bool) (closed []string) {
		var u undo
		defer u.do()
		for _, name := range []string{"link", "ports", "API", "control"} {
			u.add(func() { closed = append(closed, name) })
		}
		if forget {
			u.forget()
		}
		u.do()
		u.forget()
		return closed
	}
	if got := open(false); !slices.Equal(got, []string{"control", "API", "ports", "link"}) {
		t.Errorf("closed %v", got)
	}
	if got := open(true); got != nil {
		t.Errorf("closed %v", got)
	}
	// What there is none of is closed all the same.
	(*api)(nil).close()
	(*control)(nil).close()
}
