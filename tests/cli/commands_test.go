package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// commands are those of the scripts:
//
//	status N PROGRAM ARGS...      run PROGRAM on the host as the unprivileged user; it must end
//	                              with status N
//	asroot N PROGRAM ARGS...      the same as root
//	refused PROGRAM FILE          each line "ARGS => TEXT" of FILE: status 1, TEXT alone on
//	                              standard error
//	misused PROGRAM FILE          each line "ARGS => TEXT": status 1, "PROGRAM: TEXT" and how to
//	                              see the help on standard error
//	understood PROGRAM FILE       each line ARGS, followed by --version: status 0, and that is all
//	                              it does
//	target VAR                    make a user and network namespace; VAR is the PID of its process
//	leave PID                     end that process, and so the namespace
//	inside PID PROGRAM ARGS...    run PROGRAM in the namespaces of PID
//	running FILE, ended FILE      the process whose PID is in FILE runs; ends within the limit
//	logs FILE TEXT                FILE contains TEXT within the limit
//	signal NAME FILE              send it to that process
//	ip ARGS...                    run ip as root on the host
//
// In the lines of a file words stand in single quotes where they have blanks or are empty, and {xN}
// is N times x. In TEXT, \n begins another line.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"status": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "status", neg, args, 2)
		wantStatus(ts, args[0], runOnHost(ts, bed.Nobody, args[1:]...))
	},
	"asroot": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "asroot", neg, args, 2)
		wantStatus(ts, args[0], runOnHost(ts, bed.Root, args[1:]...))
	},
	"refused":    refused,
	"misused":    misused,
	"understood": understood,
	"target":     target,
	"leave": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "leave", neg, args, 1)
		ts.Check(unix.Kill(number(ts, args[0]), unix.SIGKILL))
	},
	"inside": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "inside", neg, args, 2)
		enter := []string{"nsenter", "-t", args[0], "-U", "-n", "--preserve-credentials", "--"}
		wantStatus(ts, "0", runOnHost(ts, bed.Nobody, append(enter, args[1:]...)...))
	},
	"running": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "running", neg, args, 1)
		ts.Check(unix.Kill(pidIn(ts, args[0]), 0))
	},
	"logs": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "logs", neg, args, 2)
		ctx, cancel := patience()
		defer cancel()
		ts.Check(bed.Wait(ctx, "text in "+args[0], func() (bool, error) {
			log, err := os.ReadFile(ts.MkAbs(args[0]))
			return strings.Contains(string(log), args[1]), err
		}))
	},
	"ended": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "ended", neg, args, 1)
		pid := pidIn(ts, args[0])
		ctx, cancel := patience()
		defer cancel()
		ts.Check(bed.Wait(ctx, "the process to end", func() (bool, error) { return dead(pid), nil }))
	},
	"signal": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "signal", neg, args, 2)
		sig := unix.SignalNum(args[0])
		if sig == 0 {
			ts.Fatalf("no signal %s", args[0])
		}
		ts.Check(unix.Kill(pidIn(ts, args[1]), sig))
	},
	"ip": func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, "ip", neg, args, 1)
		ts.Check(hostOf(ts).IP(strings.Join(args, " ")))
	},
}

func plain(ts *testscript.TestScript, name string, neg bool, args []string, least int) {
	if neg || len(args) < least {
		ts.Fatalf("usage: see commands for %s", name)
	}
}

func hostOf(ts *testscript.TestScript) *bed.NS { return ts.Value(bedKey{}).(*bed.Bed).Host }

// canBeNobody tells whether there is another user to become.
var canBeNobody = sync.OnceValue(func() bool {
	return exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "true").Run() == nil
})

// onHost is the command that runs argv on the host of the script. argv[0] reaches the program as it
// is.
func onHost(h *bed.NS, user bed.User, argv ...string) []string {
	words := []string{"timeout", "-s", "KILL", strconv.Itoa(int(limit.Seconds())), "nsenter", "--net=" + h.Path()}
	if user == bed.Nobody && canBeNobody() {
		words = append(words, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
	}
	return append(append(words, "--"), argv...)
}

// runOnHost runs a program to its end and returns its exit status. What it wrote is for the
// script's stdout and stderr.
func runOnHost(ts *testscript.TestScript, user bed.User, argv ...string) int {
	words := onHost(hostOf(ts), user, argv...)
	err := ts.Exec(words[0], words[1:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	ts.Fatalf("%v: %v", argv, err)
	return -1
}

func wantStatus(ts *testscript.TestScript, want string, got int) {
	if strconv.Itoa(got) != want {
		ts.Fatalf("exit status %d, want %s", got, want)
	}
}

// rows runs program with each line of a file, and has check look at what it said.
func rows(ts *testscript.TestScript, name string, neg bool, args, more []string, check func(status int, out, errs, want string) string) {
	plain(ts, name, neg, args, 2)
	program := filepath.Join(ts.Getenv("BIN"), args[0])
	n := 0
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		line = strings.TrimSuffix(line, "\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		n++
		line, want, _ := strings.Cut(line, " => ")
		cmd := exec.Command(program)
		cmd.Args = append(append([]string{args[0]}, split(expand(line))...), more...)
		cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "SHELL=/bin/false"}
		cmd.Dir = ts.Getenv("WORK")
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		ts.Check(hostOf(ts).Start(bed.Nobody, cmd))
		if err := cmd.Wait(); cmd.ProcessState == nil {
			ts.Fatalf("%v: %v", cmd.Args, err)
		}
		want = strings.ReplaceAll(expand(want), `\n`, "\n")
		if wrong := check(cmd.ProcessState.ExitCode(), out.String(), errs.String(), want); wrong != "" {
			ts.Fatalf("%s %.200s: %.2000s", args[0], line, wrong)
		}
	}
	if n == 0 {
		ts.Fatalf("%s has no rows", args[1])
	}
}

func refused(ts *testscript.TestScript, neg bool, args []string) {
	rows(ts, "refused", neg, args, nil, func(status int, out, errs, want string) string {
		if status != 1 || out != "" || errs != want+"\n" {
			return fmt.Sprintf("status %d, standard output %q, standard error %q, want %q", status, out, errs, want)
		}
		return ""
	})
}

func misused(ts *testscript.TestScript, neg bool, args []string) {
	rows(ts, "misused", neg, args, nil, func(status int, out, errs, want string) string {
		want = args[0] + ": " + want + "\n"
		help := "Try '" + args[0] + " --help' for all options.\n"
		if status != 1 || out != "" || !strings.HasPrefix(errs, want) || !strings.HasSuffix(errs, help) || strings.Count(errs, "\n") > 3 {
			return fmt.Sprintf("status %d, standard output %q, standard error %q, want %q and %q", status, out, errs, want, help)
		}
		return ""
	})
}

func understood(ts *testscript.TestScript, neg bool, args []string) {
	rows(ts, "understood", neg, args, []string{"--version"}, func(status int, out, errs, _ string) string {
		if first, _, _ := strings.Cut(out, "\n"); status != 0 || first != args[0]+" 2026_01_02.abcdef0" || errs != "" {
			return fmt.Sprintf("status %d, first line %q, standard error %q", status, first, errs)
		}
		return ""
	})
}

// expand replaces each {xN}.
func expand(s string) string {
	for {
		before, rest, ok := strings.Cut(s, "{")
		inner, after, ok2 := strings.Cut(rest, "}")
		if !ok || !ok2 || inner == "" {
			return s
		}
		n, err := strconv.Atoi(inner[1:])
		if err != nil {
			return s
		}
		s = before + strings.Repeat(inner[:1], n) + after
	}
}

// split takes a line apart at its blanks, but for those in single quotes.
func split(line string) []string {
	var words []string
	var word strings.Builder
	in, quoted := false, false
	for _, c := range line {
		switch {
		case c == '\'':
			quoted, in = !quoted, true
		case c == ' ' && !quoted:
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if in {
		words = append(words, word.String())
	}
	return words
}

func target(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, "target", neg, args, 1)
	ctx, cancel := patience()
	defer cancel()
	t, err := ts.Value(bedKey{}).(*bed.Bed).Target(ctx)
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(t.PID))
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

// pidIn reads a PID file, which has to be there: that is what tells that the program is ready. The
// process is ended with the script.
func pidIn(ts *testscript.TestScript, file string) int {
	text := ts.ReadFile(file)
	pid, err := strconv.Atoi(strings.TrimSuffix(text, "\n"))
	if err != nil || !strings.HasSuffix(text, "\n") || pid < 2 {
		ts.Fatalf("%s holds %q", file, text)
	}
	return pid
}

// dead tells whether a process is no more, or waits for nobody but its parent.
func dead(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(after, "Z")
}
