package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stillTime is how long a target may go without a run that ends. Those that wait for something
	// give up sooner by themselves, and say what they have waited for.
	stillTime = 3 * time.Minute
	// leave is how long a target may take to stop.
	leave = 30 * time.Second
)

// stats is what a target has done.
type stats struct {
	execs  int
	rate   float64 // runs a second, from when the corpus had been run on
	found  int     // inputs that reach new code
	corpus int     // all of them
}

var (
	progress = regexp.MustCompile(`execs: (\d+) .*new interesting: (\d+) \(total: (\d+)\)`)
	baseline = regexp.MustCompile(`baseline coverage: (\d+)/(\d+) completed, now fuzzing`)
)

// fuzz runs the target t of the test binary bin.
func fuzz(ctx context.Context, o *options, t target, bin string) (s stats, err error) {
	cmd := exec.Command(bin, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzzminimizetime=0",
		"-test.fuzzcachedir="+filepath.Join(o.cache, t.pkg), "-test.timeout=0", "-test.paniconexit0")
	cmd.Dir = t.dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		return s, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return s, err
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadString('\n')
			if line != "" {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	var (
		all    bytes.Buffer
		end    = time.After(o.time)
		ended  time.Time // when it was told to
		began  time.Time // when the corpus had been run
		warm   int       // runs until then
		ctxEnd = ctx.Done()
		alarm  = time.NewTimer(o.still)
		aborts int
	)
	defer alarm.Stop()
	stop := func() {
		end, ctxEnd = nil, nil
		ended = time.Now()
		alarm.Reset(leave)
		cmd.Process.Signal(os.Interrupt)
	}
read:
	for {
		select {
		case <-end:
			stop()
		case <-ctxEnd:
			stop()
		case <-alarm.C:
			// A worker that is aborted has run into something, as far as the fuzzer knows.
			if aborts++; aborts > 1 {
				cmd.Process.Kill()
			}
			fmt.Fprintf(&all, "fuzz: nothing has happened for %v: the workers are aborted\n", o.still)
			abortWorkers(cmd.Process.Pid)
			alarm.Reset(leave)
		case line, ok := <-lines:
			if !ok {
				break read
			}
			all.WriteString(line)
			if baseline.MatchString(line) {
				began, warm = time.Now(), s.execs
			}
			if m := progress.FindStringSubmatch(line); m != nil {
				execs := number(m[1])
				if execs > s.execs && ended.IsZero() && aborts == 0 {
					alarm.Reset(o.still)
				}
				s.execs, s.found, s.corpus = execs, number(m[2]), number(m[3])
			}
		}
	}
	err = cmd.Wait()
	if ended.IsZero() {
		ended = time.Now()
	}
	if !began.IsZero() && ended.After(began) {
		s.rate = float64(s.execs-warm) / ended.Sub(began).Seconds()
	}
	if err == nil && aborts > 0 {
		err = errors.New("stood still")
	}
	if err != nil {
		return s, fmt.Errorf("%w\n%s", err, all.Bytes())
	}
	return s, nil
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// abortWorkers sends SIGABRT to the children of the process pid.
func abortWorkers(pid int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for _, w := range strings.Fields(string(text)) {
			if child := number(w); child > 0 {
				unix.Kill(child, unix.SIGABRT)
			}
		}
	}
}
