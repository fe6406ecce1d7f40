// Command bench compares user-mode network translators on one machine.
//
//	go run ./tests/bench [-ours ./pasta] [-cases tcp-out,slow] [-runs 3] [-secs 2] [-json FILE
//	[-chart FILE]] [-markdown]
//
// It makes its own namespaces (package bed), connects one through each implementation in
// turn, within each round and for each case, and prints the median over the rounds, the
// CPU time that the translator took (its process with all descendants), the CPU time for
// a gigabyte carried, and by what factor the first implementation is better than each
// other. A ratio holds when the machine's speed drifts; an absolute figure does not.
// The machine is part of a figure: measure with nothing else running.
//
// The peers are the pasta and the slirp4netns in PATH. It needs root or user namespaces
// for all, /dev/net/tun, and iproute2 and util-linux; see tests/setup.sh.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// options is the command line.
type options struct {
	ours     string
	impls    []string
	prefixes string
	mtus     string
	runs     int
	length   time.Duration
	flows    int
	json     string
	chart    string
	markdown bool
	list     bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "traffic" {
		if err := trafficMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	status, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		status = 1
	}
	os.Exit(status)
}

func run() (int, error) {
	var o options
	flag.StringVar(&o.ours, "ours", "./pasta", "our binary, the first column; empty for none")
	flag.Func("impl", "another implementation as `NAME=PATH`, may be given again (default: the pasta and slirp4netns in PATH)",
		func(s string) error { o.impls = append(o.impls, s); return nil })
	flag.StringVar(&o.prefixes, "cases", "", "comma-separated `prefixes` of case names (default: all)")
	flag.StringVar(&o.mtus, "mtu", "", "comma-separated tap `MTUs`: only cases with one of them (default: all)")
	flag.IntVar(&o.runs, "runs", 3, "rounds")
	secs := flag.Float64("secs", 2, "`seconds` of measurement a case")
	flag.IntVar(&o.flows, "flows", 4000, "`number` of flows of the stuck-flows case")
	flag.StringVar(&o.json, "json", "", "write all figures to this `file` as well")
	flag.StringVar(&o.chart, "chart", "", "draw the headline figures to this SVG `file`; needs -json, and measures nothing if -cases is \"none\"")
	flag.BoolVar(&o.markdown, "markdown", false, "print a Markdown table")
	flag.BoolVar(&o.list, "list", false, "print the names of the cases and stop")
	flag.Parse()
	o.length = time.Duration(*secs * float64(time.Second))

	if o.chart != "" && o.prefixes == "none" {
		if err := drawChart(o.json, o.chart); err != nil {
			return 1, err
		}
		return 0, nil
	}
	chosen, err := choose(o)
	if err != nil || o.list {
		for _, c := range chosen {
			fmt.Println(c.name)
		}
		return 0, err
	}
	if bed.Outside() {
		// Refuse what cannot work before anything is made.
		if _, err := implementations(o.ours, o.impls); err != nil {
			return 1, err
		}
	}
	var env []string
	if bed.Outside() {
		if env, err = guestImage(chosen); err != nil {
			return 1, err
		}
	}
	inside, status, err := bed.Isolate(env...)
	if !inside && err == nil && status == 0 && o.chart != "" {
		err = drawChart(o.json, o.chart)
	}
	if !inside || err != nil {
		return status, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	return 0, measure(ctx, o, chosen)
}

// choose returns the cases that the options ask for.
func choose(o options) ([]benchCase, error) {
	var chosen []benchCase
	for _, c := range cases(o.length, o.flows) {
		wanted := o.prefixes == ""
		for p := range strings.SplitSeq(o.prefixes, ",") {
			wanted = wanted || p != "" && strings.HasPrefix(c.name, p)
		}
		if o.mtus != "" && !slices.Contains(strings.Split(o.mtus, ","), strconv.Itoa(c.mtu)) {
			wanted = false
		}
		if wanted {
			chosen = append(chosen, c)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no case matches -cases %q -mtu %q; -list shows all", o.prefixes, o.mtus)
	}
	return chosen, nil
}

func measure(ctx context.Context, o options, chosen []benchCase) error {
	begin := time.Now()
	impls, err := implementations(o.ours, o.impls)
	if err != nil {
		return err
	}
	if len(impls) == 0 {
		return fmt.Errorf("nothing to measure")
	}
	// The unprivileged user may not reach a source tree.
	if o.ours != "" {
		if impls[0].path, err = bed.Provide(impls[0].path, "pasta"); err != nil {
			return err
		}
		if err := os.Symlink("pasta", impls[0].passt()); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(chosen, func(c benchCase) bool { return c.local }) {
		impls = append(impls, impl{name: "loopback", kind: loopbackKind})
	}
	self, err := bed.Provide("/proc/self/exe", "bench")
	if err != nil {
		return err
	}
	beds := make(map[bool]*bed.Bed)
	for _, c := range chosen {
		if beds[c.slow] != nil {
			continue
		}
		var cfg bed.Config
		if c.slow {
			cfg.Link = &bed.LinkConfig{Rate: 900e6, Delay: 200 * time.Microsecond}
		}
		if beds[c.slow], err = bed.New(cfg); err != nil {
			return err
		}
		defer beds[c.slow].Close()
	}

	t := &table{impls: impls}
	for n := range o.runs {
		for _, c := range chosen {
			for i, im := range impls {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if !c.runs(im) {
					continue
				}
				figures, err := once(ctx, c, im, beds[c.slow], self, o.length)
				t.add(c, i, figures, err)
				progress("round %d of %d: %s %s", n+1, o.runs, c.name, im.name)
			}
		}
	}
	progress("")
	t.finish()
	about := fmt.Sprintf("%d CPUs, %s, %s; %d rounds of %v; median, CPU time of the translator, for throughput also a gigabyte; factor by which %s is better",
		runtime.NumCPU(), kernel(), time.Now().Format(time.DateOnly), o.runs, o.length, impls[0].name)
	fmt.Println(about)
	fmt.Println()
	if err := t.write(os.Stdout, o.markdown); err != nil {
		return err
	}
	if o.json == "" {
		return nil
	}
	f, err := os.Create(o.json)
	if err != nil {
		return err
	}
	err = t.json(f, about, time.Since(begin))
	if err2 := f.Close(); err == nil {
		err = err2
	}
	return err
}

// once runs one case with one implementation.
func once(ctx context.Context, c benchCase, im impl, b *bed.Bed, self string, d time.Duration) ([]figure, error) {
	if c.alone != nil {
		return c.alone(ctx, im, b, self)
	}
	s, err := im.connect(ctx, b, self, c)
	if err != nil {
		return nil, err
	}
	defer s.close()
	return c.connected(s, d)
}

// progress shows one line on a terminal, over the one before.
func progress(format string, args ...any) {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err != nil {
		return
	}
	fmt.Fprintf(os.Stderr, "\r\033[K"+format, args...)
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}
