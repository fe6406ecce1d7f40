package config

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// manPage is the file of a mode's manual page.
func manPage(mode Mode) string { return filepath.Join("..", "man", mode.String()+".1") }

// Each option of a mode has an entry in its manual page, with its letter and, if it takes one, a
// value; and no entry is of another option.
func TestManPagesHaveEachOption(t *testing.T) {
	spelling := regexp.MustCompile(`\\fB(\\-[A-Za-z0-9\\-]+)\\fR`)
	for _, mode := range []Mode{Pasta, Passt} {
		text, err := os.ReadFile(manPage(mode))
		if err != nil {
			t.Fatal(err)
		}
		_, list, _ := strings.Cut(string(text), "\n.SH OPTIONS\n")
		list, _, _ = strings.Cut(list, "\n.SH ")
		got, want := map[string]string{}, map[string]string{}
		for _, entry := range strings.Split(list, "\n.TP\n")[1:] {
			tag, _, _ := strings.Cut(entry, "\n")
			if !strings.HasPrefix(tag, `\fB\-`) {
				continue // of a list, not of an option
			}
			var names []string
			for _, m := range spelling.FindAllStringSubmatch(tag, -1) {
				names = append(names, strings.ReplaceAll(m[1], `\-`, "-"))
			}
			value := ""
			if strings.Contains(tag, `\fI`) {
				value = " VALUE"
			}
			for _, name := range names {
				if strings.HasPrefix(name, "--") {
					if _, twice := got[name]; twice {
						t.Errorf("%s: %s twice", mode, name)
					}
					got[name] = strings.Join(names, ", ") + value
				}
			}
		}
		for i := range options {
			o := &options[i]
			if !scopeOf(o).includes(mode, mode == Passt) {
				continue
			}
			value := ""
			if o.arg != "" {
				value = " VALUE"
			}
			var names []string
			for j := range options { // all spellings of the option
				if s := &options[j]; s.name() == o.name() {
					if s.short != "" {
						names = append(names, "-"+s.short)
					}
					names = append(names, "--"+s.long)
				}
			}
			want["--"+o.long] = strings.Join(names, ", ") + value
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s, options - page +:\n%s", mode, diff)
		}
	}
}

// scopeOf is where an option is valid, whatever its spelling.
func scopeOf(o *option) scope {
	for i := range options {
		if options[i].long == o.name() {
			return options[i].only
		}
	}
	return o.only
}

// A page formats without a complaint.
func TestManPagesFormat(t *testing.T) {
	man, err := exec.LookPath("man")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("../man/*.1")
	if err != nil || len(pages) < 2 {
		t.Fatalf("%v, %v", pages, err)
	}
	for _, page := range pages {
		cmd := exec.Command(man, "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
		var errs strings.Builder
		cmd.Stderr = &errs
		if out, err := cmd.Output(); err != nil || errs.Len() > 0 || len(out) < 1000 {
			t.Errorf("%s: %v, %d bytes: %s", page, err, len(out), errs.String())
		}
	}
}

// Each manual page says what the program reads, leaves behind and complains about.
func TestManPagesHaveSections(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "man", "*.1"))
	if err != nil || len(pages) < 4 {
		t.Fatalf("%d manual pages, %v", len(pages), err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{"EXIT STATUS", "ENVIRONMENT", "FILES", "DIAGNOSTICS"} {
			if !strings.Contains(string(text), "\n.SH "+section+"\n") {
				t.Errorf("%s has no section %s", page, section)
			}
		}
	}
}
