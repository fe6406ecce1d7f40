package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// module is a module with targets of all kinds.
var module = map[string]string{
	"go.mod": "module example.org/targets\n\ngo 1.26\n",
	"t.go": `package targets

func Find(b []byte) int {
	if len(b) > 2 && b[0] == 'a' {
		if b[1] == 'b' {
			return 2
		}
		return 1
	}
	return 0
}
`,
	"t_test.go": `package targets

import "testing"

func FuzzGood(f *testing.F) {
	f.Add([]byte("abcd"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) { Find(b) })
}

func FuzzBad(f *testing.F) {
	f.Add([]byte("abcd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if string(b) != "abcd" {
			t.Error("other bytes")
		}
	})
}

func FuzzStill(f *testing.F) {
	f.Add([]byte("abcd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if string(b) != "abcd" {
			select {}
		}
	})
}
`,
}

// inModule makes the module and works in it.
func inModule(t *testing.T) string {
	dir := t.TempDir()
	for name, text := range module {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	return dir
}

func TestTargets(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	for _, tt := range []struct {
		name, target string
		time         time.Duration
		fails        string // part of the error
		stored       bool   // an input that fails
	}{
		{"one that passes", "FuzzGood", time.Second, "", false},
		{"one that fails", "FuzzBad", time.Minute, "FuzzBad", true},
		{"one that stands still", "FuzzStill", time.Minute, "FuzzStill", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := inModule(t)
			o := &options{time: tt.time, still: 5 * time.Second, run: regexp.MustCompile(tt.target), cache: filepath.Join(dir, "cache")}
			err := run(context.Background(), o)
			if tt.fails == "" && err != nil || tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("run = %v, want %q", err, tt.fails)
			}
			files, _ := os.ReadDir(filepath.Join(dir, "testdata", "fuzz", tt.target))
			if (len(files) > 0) != tt.stored {
				t.Errorf("%d inputs that fail are stored", len(files))
			}
		})
	}
}

// TestKeep: what adds coverage goes to the tree, once, and nothing else.
func TestKeep(t *testing.T) {
	if testing.Short() {
		t.Skip("builds test binaries")
	}
	dir := inModule(t)
	cache := filepath.Join(dir, "cache", "example.org", "targets", "FuzzGood")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	entry := func(name, text string) {
		if err := os.WriteFile(filepath.Join(cache, name), []byte("go test fuzz v1\n[]byte(\""+text+"\")\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	entry("same", "abcd")
	entry("more", "axcd")
	entry("again", "ayyyycd")
	entry("long", strings.Repeat("a", keepBytes))
	o := &options{keep: true, run: regexp.MustCompile("FuzzGood"), cache: filepath.Join(dir, "cache")}
	for range 2 {
		if err := run(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "testdata", "fuzz", "FuzzGood", "*"))
		if len(files) != 1 || filepath.Base(files[0]) != "more" {
			t.Errorf("%q are in the tree, want more", files)
		}
	}
}
