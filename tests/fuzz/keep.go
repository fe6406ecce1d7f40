package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	keepFiles = 16      // inputs of a target in the tree
	keepBytes = 2 << 10 // bytes of each, written as Go does
	keepTotal = 8 << 10 // and of all of a target
)

// input is a file of a corpus.
type input struct {
	path    string
	size    int
	reaches map[string]bool // statements, as a coverage profile names them
}

// keepAll copies, for each target, what adds coverage from the cache to the tree.
func keepAll(ctx context.Context, o *options, targets []target, tmp string) error {
	builder := builder{dir: tmp, flags: []string{"-cover", "-covermode=set", "-coverpkg=./..."}}
	for _, t := range targets {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if files, _ := os.ReadDir(filepath.Join(o.cache, t.pkg, t.name)); len(files) == 0 {
			continue
		}
		bin, err := builder.binary(ctx, t.pkg)
		if err != nil {
			return err
		}
		if err := keep(ctx, o, t, bin, tmp); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
	}
	return nil
}

// keep is keepAll for one target, whose test binary counts statements.
func keep(ctx context.Context, o *options, t target, bin, tmp string) error {
	inTree := filepath.Join(t.dir, "testdata", "fuzz", t.name)
	have, total := inputs(inTree)
	found, _ := inputs(filepath.Join(o.cache, t.pkg, t.name))
	run, err := newRunner(t, bin, tmp)
	if err != nil {
		return err
	}
	defer run.close()
	reached, err := run.coverage(ctx, "") // what is given in the source
	if err != nil {
		return err
	}
	for _, in := range have {
		more, err := run.of(ctx, in)
		if err != nil {
			return err
		}
		for s := range more {
			reached[s] = true
		}
	}
	var left []input
	for _, in := range found {
		if in.size > keepBytes {
			continue
		}
		if in.reaches, err = run.of(ctx, in); err != nil {
			if ctx.Err() != nil {
				return err
			}
			continue // it fails by now, or has other types: the next run of the target says so
		}
		left = append(left, in)
	}
	added := 0
	for len(have)+added < keepFiles {
		best, most := -1, 0
		for i, in := range left {
			n := 0
			for s := range in.reaches {
				if !reached[s] {
					n++
				}
			}
			if n > most && total+in.size <= keepTotal {
				best, most = i, n
			}
		}
		if best < 0 {
			break
		}
		in := left[best]
		left = slices.Delete(left, best, best+1)
		for s := range in.reaches {
			reached[s] = true
		}
		text, err := os.ReadFile(in.path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(inTree, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(inTree, filepath.Base(in.path)), text, 0o644); err != nil {
			return err
		}
		total += in.size
		added++
	}
	fmt.Printf("%s: %d of %d inputs are added to %d\n", t, added, len(found), len(have))
	return nil
}

// inputs returns the files of a corpus, the smallest first, and their size.
func inputs(dir string) (all []input, total int) {
	entries, _ := os.ReadDir(dir) // there may be none
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		all = append(all, input{path: filepath.Join(dir, e.Name()), size: int(info.Size())})
		total += int(info.Size())
	}
	slices.SortStableFunc(all, func(a, b input) int { return cmp.Compare(a.size, b.size) })
	return all, total
}

// runner runs a target with one input each time. It works in a copy of the package's directory, in
// which only the corpus is its own.
type runner struct {
	t            target
	bin          string
	dir, profile string
}

func newRunner(t target, bin, tmp string) (*runner, error) {
	dir, err := os.MkdirTemp(tmp, "run")
	if err != nil {
		return nil, err
	}
	r := &runner{t: t, bin: bin, dir: dir, profile: filepath.Join(dir, "profile")}
	link := func(from, to, except string) error {
		entries, err := os.ReadDir(from)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		for _, e := range entries {
			if e.Name() == except {
				continue
			}
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	data := filepath.Join(dir, "testdata")
	if err := os.MkdirAll(filepath.Join(data, "fuzz", t.name), 0o755); err != nil {
		return nil, err
	}
	if err := link(t.dir, dir, "testdata"); err != nil {
		return nil, err
	}
	return r, link(filepath.Join(t.dir, "testdata"), data, "fuzz")
}

func (r *runner) close() { os.RemoveAll(r.dir) }

// of returns what in reaches.
func (r *runner) of(ctx context.Context, in input) (map[string]bool, error) {
	text, err := os.ReadFile(in.path)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(r.dir, "testdata", "fuzz", r.t.name, "input")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return nil, err
	}
	defer os.Remove(path)
	return r.coverage(ctx, "input")
}

// coverage returns the statements that the inputs of that name reach; all if it is empty.
func (r *runner) coverage(ctx context.Context, name string) (map[string]bool, error) {
	pattern := "^" + r.t.name + "$"
	if name != "" {
		pattern += "/^" + name + "$"
	}
	cmd := exec.CommandContext(ctx, r.bin, "-test.run="+pattern, "-test.coverprofile="+r.profile, "-test.timeout=1m")
	cmd.Dir = r.dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	text, err := os.ReadFile(r.profile)
	if err != nil {
		return nil, err
	}
	reached := map[string]bool{}
	for line := range bytes.Lines(text) {
		// file.go:10.2,12.3 statements count
		if w := strings.Fields(string(line)); len(w) == 3 && w[2] != "0" {
			reached[w[0]] = true
		}
	}
	return reached, nil
}
