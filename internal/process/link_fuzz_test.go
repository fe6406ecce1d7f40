package process

import (
	"testing"
)

// FuzzHello: a greeting that is understood is the one that was sent.
func FuzzHello(f *testing.F) {
	for _, h := range []hello{{Role: Translator}, {Role: Translator, Origin: 1 << 40, FDs: []string{fdNetNS, fdProcess}}, {Role: Translator, FDs: []string{""}}} {
		f.Add(h.text())
	}
	for _, s := range []string{"", "translator", "launcher\n1", "translator\nx", "translator\n99999999999999999999", "translator\n+1\n\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHello(text)
		if err != nil {
			return
		}
		again, err := parseHello(h.text())
		if err != nil || again.text() != h.text() || h.Role != Translator {
			t.Errorf("%q became %q, then %q, %v", text, h.text(), again.text(), err)
		}
	})
}
