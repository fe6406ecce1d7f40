// Package docs_test keeps ARCHITECTURE.md true: it compares the document with the tree.
package docs_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = ".."

// layers are the packages of the program, from those that decide to those that know nothing of the
// others. A package imports only packages of lower layers.
var layers = [][]string{
	{"."},
	{"internal/app"},
	{"actors", "internal/pesto", "internal/qrap", "internal/slirp"},
	{"actors/tcp", "actors/udp", "actors/icmp", "actors/forward", "splice", "autodetect", "internal/netconf", "internal/unixsock", "tapio/vhost"},
	{"actors/flow", "actors/dhcp", "actors/dhcpv6", "actors/neigh", "internal/process"},
	{"actors/frag", "actors/rules", "actors/sock", "autodetect/ports", "autodetect/rtnl", "config", "tapio",
		"internal/sandbox", "internal/restart", "internal/logging", "internal/dnsname"},
	{"tapio/frame"},
}

// goDirs returns the directories with Go files, by path from the root, and whether one has code
// that is no test.
func goDirs(t *testing.T) map[string]bool {
	t.Helper()
	dirs := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			rel, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			dirs[rel] = dirs[rel] || !strings.HasSuffix(path, "_test.go")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// documented returns the directories that ARCHITECTURE.md has a line for, and the files it names.
func documented(t *testing.T) (dirs, files []string) {
	t.Helper()
	f, err := os.Open("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table := false
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if strings.HasPrefix(line, "#") {
			table = line == "## Directories"
		}
		for i, word := range strings.Split(line, "`") {
			if i%2 == 1 && strings.Contains(word, "/") && strings.Contains(filepath.Base(word), ".") && !strings.Contains(word, " ") {
				files = append(files, word)
			}
		}
		if cells := strings.Split(line, "|"); table && len(cells) == 4 && strings.HasPrefix(cells[1], " `") {
			dirs = append(dirs, strings.Trim(cells[1], " `"))
		}
	}
	return dirs, files
}

func TestDirectoriesAreDocumented(t *testing.T) {
	dirs, files := documented(t)
	if len(dirs) < 20 || len(files) < 10 {
		t.Fatalf("read %d directories and %d files from ARCHITECTURE.md", len(dirs), len(files))
	}
	for _, name := range append(dirs, files...) {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Errorf("ARCHITECTURE.md names what is not there: %v", err)
		}
	}
	for dir, code := range goDirs(t) {
		if code && !slices.Contains(dirs, dir) && !strings.HasPrefix(dir, "tests/") && !strings.HasPrefix(dir, "docs/") &&
			!strings.HasSuffix(dir, "test") {
			t.Errorf("ARCHITECTURE.md has no line for %s", dir)
		}
	}
}

func TestImportsPointDown(t *testing.T) {
	rank := make(map[string]int)
	for i, layer := range layers {
		for _, pkg := range layer {
			rank[pkg] = i + 1
		}
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "fusilli/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	name := func(path string) string {
		if path == "fusilli" {
			return "."
		}
		return strings.TrimPrefix(path, "fusilli/")
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		pkg := name(words[0])
		if strings.HasPrefix(pkg, "tests/") || strings.HasPrefix(pkg, "docs") || strings.HasSuffix(pkg, "test") {
			continue
		}
		seen++
		if rank[pkg] == 0 {
			t.Errorf("package %s has no layer", pkg)
			continue
		}
		for _, to := range words[1:] {
			if to != "fusilli" && !strings.HasPrefix(to, "fusilli/") {
				continue
			}
			if to = name(to); rank[to] <= rank[pkg] {
				t.Errorf("%s imports %s, which is not below it", pkg, to)
			}
		}
	}
	if seen != len(rank) {
		t.Errorf("%d packages, %d in layers", seen, len(rank))
	}
}

// Each package says what it is for.
func TestPackagesHaveComments(t *testing.T) {
	for dir, code := range goDirs(t) {
		if !code {
			continue
		}
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var doc *ast.CommentGroup
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				doc = f.Doc
			}
		}
		if doc == nil {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// No program is kept in the tree.
func TestNoBinaries(t *testing.T) {
	out, err := exec.Command("git", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		f, err := os.Open(filepath.Join(root, path))
		if err != nil {
			continue // removed, not committed yet
		}
		head := make([]byte, 4)
		f.Read(head) // short files are no programs
		f.Close()
		if string(head) == "\x7fELF" {
			t.Errorf("%s is a program", path)
		}
	}
}

// The README is a front page.
func TestReadmeIsShort(t *testing.T) {
	st, err := os.Stat(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 8<<10 {
		t.Errorf("README.md has %d bytes, at most 8 KiB are wanted", st.Size())
	}
}
