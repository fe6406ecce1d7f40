package config

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

func help(t *testing.T, mode Mode) string {
	t.Helper()
	var b bytes.Buffer
	if err := Help(&b, mode, "./"+mode.String()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// column is where a line ends on a terminal.
func column(line string) int {
	n := 0
	for i := range len(line) {
		if n++; line[i] == '\t' {
			n = (n + 7) / 8 * 8
		}
	}
	return n
}

func TestHelpFitsTheScreen(t *testing.T) {
	for _, mode := range []Mode{Pasta, Passt} {
		for _, section := range strings.Split(help(t, mode), "\n\n") {
			lines := strings.Split(strings.TrimSuffix(section, "\n"), "\n")
			if len(lines) > 23 {
				t.Errorf("%s: %q has %d lines", mode, lines[0], len(lines))
			}
			for _, l := range lines {
				if column(l) > 80 {
					t.Errorf("%s: %d columns: %s", mode, column(l), l)
				}
			}
		}
	}
}

func TestHelpHasEachOptionOfItsMode(t *testing.T) {
	shape := regexp.MustCompile(`(?m)^(?:  -(\w), |      )--([\w-]+)(?: (\S+))?\t\S`)
	for _, mode := range []Mode{Pasta, Passt} {
		shown := map[string]bool{}
		for _, m := range shape.FindAllStringSubmatch(help(t, mode), -1) {
			shown[m[2]] = true
		}
		for _, o := range options {
			if o.same != "" || o.shown != everywhere {
				continue
			}
			if want := o.only.includes(mode, true) && (o.only != onlyVhostUser || mode == Passt); shown[o.long] != want {
				t.Errorf("%s: --%s shown: %v, want %v", mode, o.long, shown[o.long], want)
			}
		}
		if shown["no-splice"] != (mode == Pasta) || shown["vhost-user"] != (mode == Passt) {
			t.Errorf("%s: an option of the other mode is shown", mode)
		}
	}
}

func TestHelpBegins(t *testing.T) {
	const pasta = "Usage: ./pasta [OPTION]... [COMMAND] [ARGS]...\n" +
		"       ./pasta [OPTION]... PID\n" +
		"       ./pasta [OPTION]... --netns [PATH|NAME]\n\n"
	if h := help(t, Pasta); !strings.HasPrefix(h, pasta) || !strings.Contains(h, "\n      -t auto") {
		t.Error(h)
	}
	if h := help(t, Passt); !strings.HasPrefix(h, "Usage: ./passt [OPTION]...\n\n") || strings.Contains(h, "auto") {
		t.Error(h)
	}
}

func TestVersion(t *testing.T) {
	var b bytes.Buffer
	if err := Version(&b, Passt, "2026_07_16.abc"); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	if len(lines) != 8 || lines[0] != "passt 2026_07_16.abc" || !strings.HasPrefix(lines[1], "Copyright ") ||
		!regexp.MustCompile(`^  <https://\S+>$`).MatchString(lines[3]) || lines[6] != "" || lines[7] != "" {
		t.Errorf("%q", lines)
	}
}

func TestCapabilities(t *testing.T) {
	var b bytes.Buffer
	if err := Capabilities(&b); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || got["type"] != "net" {
		t.Errorf("%s: %v", b.Bytes(), err)
	}
}
