// Command fuzz runs the fuzz targets of this module, one after the other, and keeps what they find.
//
//	go run ./tests/fuzz [-time 2s | -total 1h] [-run REGEXP] [-cache DIR] [-list] [PACKAGE...]
//	go run ./tests/fuzz -keep [-run REGEXP] [-cache DIR] [PACKAGE...]
//
// It is what go test -fuzz is for all targets together, with four differences. A package is built
// once for all its targets. Inputs are not minimised: a short run would do little else, and an
// input that fails may be long. The end of the time is an interrupt, as by a user, and not
// -fuzztime, whose end is at times reported as a failure (context deadline exceeded). And a target
// that stands still is a failure: its workers are aborted, so that the input is written to
// testdata/fuzz as one that fails.
//
// Inputs that reach new code stay in the cache, which is where go test -fuzz keeps them too ("go
// env GOCACHE", directory fuzz) unless told otherwise, and each run begins with what is there. With
// -keep those that add coverage to what the tree has are copied to testdata/fuzz, a few small ones
// for each target: every go test runs them from then on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"
)

// options is the command line.
type options struct {
	time     time.Duration
	total    time.Duration
	still    time.Duration // see stillTime
	run      *regexp.Regexp
	cache    string
	list     bool
	keep     bool
	packages []string
}

// target is one fuzz target.
type target struct {
	pkg, dir, name string
}

func (t target) String() string { return t.pkg + " " + t.name }

func main() {
	o := options{time: 2 * time.Second, still: stillTime, run: regexp.MustCompile("")}
	flag.DurationVar(&o.time, "time", o.time, "how long each target runs")
	flag.DurationVar(&o.total, "total", 0, "how long all run together, in place of -time")
	flag.Func("run", "targets to run, as \"PACKAGE NAME\" matches it (default all)", func(s string) (err error) {
		o.run, err = regexp.Compile(s)
		return err
	})
	flag.StringVar(&o.cache, "cache", "", "where inputs that reach new code stay (default GOCACHE/fuzz)")
	flag.BoolVar(&o.list, "list", false, "list the targets")
	flag.BoolVar(&o.keep, "keep", false, "copy what adds coverage from the cache to testdata/fuzz")
	flag.Parse()
	o.packages = flag.Args()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) error {
	if len(o.packages) == 0 {
		o.packages = []string{"./..."}
	}
	targets, err := find(ctx, o)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("no fuzz target matches")
	}
	if o.list {
		for _, t := range targets {
			fmt.Println(t)
		}
		return nil
	}
	if o.cache == "" {
		dir, err := output(ctx, "go", "env", "GOCACHE")
		if err != nil {
			return err
		}
		o.cache = filepath.Join(strings.TrimSpace(dir), "fuzz")
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "fuzz")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if o.keep {
		return keepAll(ctx, o, targets, tmp)
	}
	if o.total != 0 {
		o.time = o.total / time.Duration(len(targets))
	}
	return fuzzAll(ctx, o, targets, tmp)
}

// find returns the targets, in the order of their packages.
func find(ctx context.Context, o *options) ([]target, error) {
	args := []string{"list", "-f", `{{$d := .Dir}}{{$p := .ImportPath}}{{range .TestGoFiles}}{{$p}} {{$d}} {{.}}{{"\n"}}{{end}}` +
		`{{range .XTestGoFiles}}{{$p}} {{$d}} {{.}}{{"\n"}}{{end}}`}
	list, err := output(ctx, "go", append(args, o.packages...)...)
	if err != nil {
		return nil, err
	}
	declared := regexp.MustCompile(`(?m)^func (Fuzz\w*)\(`)
	var targets []target
	for line := range strings.Lines(list) {
		w := strings.Fields(line)
		if len(w) != 3 {
			continue
		}
		text, err := os.ReadFile(filepath.Join(w[1], w[2]))
		if err != nil {
			return nil, err
		}
		for _, m := range declared.FindAllSubmatch(text, -1) {
			if t := (target{w[0], w[1], string(m[1])}); o.run.MatchString(t.String()) {
				targets = append(targets, t)
			}
		}
	}
	return targets, nil
}

// output returns what a command prints.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return string(b), nil
}

// builder builds test binaries, each once.
type builder struct {
	dir   string
	flags []string
	built map[string]string
}

// binary returns the test binary of pkg.
func (b *builder) binary(ctx context.Context, pkg string) (string, error) {
	if path, ok := b.built[pkg]; ok {
		return path, nil
	}
	path := filepath.Join(b.dir, fmt.Sprintf("%d.test", len(b.built)))
	args := append(append([]string{"test", "-c", "-o", path}, b.flags...), pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	if b.built == nil {
		b.built = map[string]string{}
	}
	b.built[pkg] = path
	return path, nil
}

// fuzzAll fuzzes the targets and prints a table of what they did.
func fuzzAll(ctx context.Context, o *options, targets []target, tmp string) error {
	builder := builder{dir: tmp, flags: []string{"-fuzz=."}}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TARGET\tEXECS\tEXECS/S\tNEW\tCORPUS")
	var failed []string
	for _, t := range targets {
		if ctx.Err() != nil {
			break
		}
		bin, err := builder.binary(ctx, t.pkg)
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "fuzz", t)
		s, err := fuzz(ctx, o, t, bin)
		if err != nil {
			failed = append(failed, t.String())
			fmt.Fprintf(os.Stderr, "%s: %v\n", t, err)
		}
		fmt.Fprintf(table, "%s\t%d\t%.0f\t%d\t%d\n", t, s.execs, s.rate, s.found, s.corpus)
	}
	table.Flush()
	if failed != nil {
		return fmt.Errorf("failed: %s; what failed is in testdata/fuzz beside the test, and go test runs it",
			strings.Join(failed, ", "))
	}
	return ctx.Err()
}
