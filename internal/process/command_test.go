package process_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/internal/process"
)

// shell is a plan that runs a shell script. Its processes are told by the bed's name.
func (b *bed) shell(script string) plan {
	return plan{Spec: process.Spec{Command: []string{"sh", "-c", script, b.dir}}}
}

func TestCommandStatus(t *testing.T) {
	tests := []struct {
		name    string
		command []string
		want    int
		stderr  string
	}{
		{"zero", []string{"true"}, 0, ""},
		{"one", []string{"false"}, 1, ""},
		{"seven", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"grandchild killed", []string{"sh", "-c", "sh -c 'kill -TERM $$' 2>/dev/null"}, 128 + 15, ""},
		{"not found", []string{"/nonexistent"}, 1, "Failed to start command or shell: No such file or directory\n"},
		{"not in PATH", []string{"nonexistent-command"}, 1, "Failed to start command or shell: No such file or directory\n"},
		{"not executable", []string{"/etc/passwd"}, 1, "Failed to start command or shell: Permission denied\n"},
		{"directory", []string{"/"}, 1, "Failed to start command or shell: Permission denied\n"},
		{"empty name", []string{""}, 1, "Failed to start command or shell: No such file or directory\n"},
	}
	eachIdentity(t, func(t *testing.T, b *bed) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				b := b.in(t)
				c := b.program(plan{Spec: process.Spec{Command: tt.command}})
				c.Env = []string{"GORACE=" + noRaceWait, "PATH=/usr/bin:/bin:/nonexistent"}
				got := b.run(c)
				if got.status != tt.want || got.err != tt.stderr || got.out != "" {
					t.Errorf("got %+v, want status %d and %q", got, tt.want, tt.stderr)
				}
			})
		}
	})
}

func TestCommandKilledFromOutside(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		c := b.program(b.shell("echo ready; exec sleep 1000 # as-command"))
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		b.start(c)
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		translator := b.translatorOf(c)
		var sleep int
		b.eventually("the command runs", func() bool {
			for _, pid := range childrenOf(b.launcher(c)) {
				if comm(pid) == "sleep" {
					sleep = pid
				}
			}
			return sleep != 0
		})
		unix.Kill(sleep, unix.SIGKILL)
		c.Wait()
		if got := statusOf(c.ProcessState); got != 128+9 {
			t.Errorf("status %d, want %d", got, 128+9)
		}
		if alive(translator) {
			t.Error("the translator survived the launcher")
		}
	})
}

func TestScriptWithoutInterpreterRuns(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		if err := os.WriteFile(b.path("script"), []byte("echo \"$1\"; exit 5\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		c := b.program(plan{Spec: process.Spec{Command: []string{"script", "a b"}}})
		c.Env = []string{"GORACE=" + noRaceWait, "PATH=" + b.dir}
		if got := b.run(c); got.status != 5 || got.out != "a b\n" {
			t.Errorf("got %+v, want status 5", got)
		}
	})
}

func TestShellIsLoginShell(t *testing.T) {
	b := newBed(t, identities()[0])
	script := "#!/bin/sh\ntr '\\0' ' ' </proc/$$/cmdline; exit 4\n"
	if err := os.WriteFile(b.path("shell"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c := b.program(plan{})
	c.Env = []string{"GORACE=" + noRaceWait, "SHELL=/bin/sh", "PATH=/usr/bin:/bin"}
	c.Stdin = strings.NewReader("tr '\\0' ' ' </proc/$$/cmdline; exit 4\n")
	if got := b.run(c); got.status != 4 || got.out != "-/bin/sh " {
		t.Errorf("got %+v, want status 4 and -/bin/sh", got)
	}

	c = b.program(plan{})
	c.Env = []string{"GORACE=" + noRaceWait, "SHELL=/" + strings.Repeat("x", 5000)}
	if got := b.run(c); got.status != 1 || got.err != "$SHELL is too long (5001 bytes)\n" {
		t.Errorf("got %+v, want a complaint about $SHELL", got)
	}
}

// What the command finds must be what the caller gave us, in namespaces of its own.
func TestCommandSurroundings(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		script := `
			echo pid $$
			echo uid $(id -u) $(id -g)
			echo map $(cat /proc/self/uid_map)
			echo host $(cat /proc/sys/kernel/hostname)
			echo ping $(cat /proc/sys/net/ipv4/ping_group_range)
			echo first $(cat /proc/1/comm)
			echo limit $(ulimit -Sn)
			echo files $(ls /proc/self/fd)
			# make(1) has the two signals that are the C library's own ignored
			grep -E 'SigBlk|SigIgn|CapAmb|CapInh' /proc/self/status | sed '/SigIgn/s/[18]\(0000000\)$/0\1/; /SigIgn/s/1\(00000000\)$/0\1/'
			echo arg "$1"
			echo var "$VAR" "${FUSILLI_STAGE-unset}"
			cat`
		p := b.shell(script)
		p.Command = append(p.Command, "two  words\n")
		p.Facts = b.path("facts")
		c := b.program(p)
		c.Args = append([]string{"sh", "-c", `ulimit -Sn 777; exec "$@"`, "-"}, c.Args...)
		c.Path, err = exec.LookPath("sh")
		if err != nil {
			t.Fatal(err)
		}
		c.Env = append(os.Environ(), "VAR=a=b")
		c.Stdin = strings.NewReader("input\n")
		stray, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer stray.Close()
		c.ExtraFiles = []*os.File{stray, nil, stray, stray}
		got := b.run(c)
		outside := "65534"
		switch {
		case b.nested:
			outside = "0"
		case os.Geteuid() != 0:
			outside = strconv.Itoa(os.Geteuid())
		}
		want := "pid 1\nuid 0 0\nmap 0 " + outside + " 1\nhost " + ("pasta-" + host)[:min(64, 6+len(host))] +
			"\nping 0 0\nfirst sh\nlimit 777\nfiles 0 1 2 3\n" + // 3 is the directory ls reads
			"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n" +
			"CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n" +
			"arg two  words\n\nvar a=b unset\ninput\n"
		if got.out != want || got.status != 0 || got.err != "" {
			t.Errorf("status %d, errors %q, output:\n%s\nwant:\n%s", got.status, got.err, got.out, want)
		}
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			t.Fatal(err)
		}
		f := b.facts(p.Facts)
		if f.Files != lim.Max || !f.SIGPIPE {
			t.Errorf("translator: %+v, want %d files and SIGPIPE ignored", f, lim.Max)
		}
		if f.NetNS != link(t, "/proc/self/ns/net") || f.Target == f.NetNS || f.UserNS == link(t, "/proc/self/ns/user") {
			t.Errorf("translator: %+v, want the host's network and another user namespace", f)
		}
		if f.UID != 0 || f.Caps == "0000000000000000" {
			t.Errorf("translator: %+v, want root of the new user namespace", f)
		}
	})
}

func TestHostName(t *testing.T) {
	b := newBed(t, identities()[0])
	p := b.shell("cat /proc/sys/kernel/hostname")
	p.HostName = "inside"
	if got := b.run(b.program(p)); got.out != "inside\n" {
		t.Errorf("got %+v, want the name given", got)
	}
}

func TestClosedStreamsAreNotReused(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		p := b.shell("for i in 0 1 2; do readlink /proc/self/fd/$i; done >" + b.path("out"))
		c := b.program(p)
		var err error
		if c.Path, err = exec.LookPath("sh"); err != nil {
			t.Fatal(err)
		}
		c.Args = append([]string{"sh", "-c", `exec "$@" <&- >&- 2>&-`, "-"}, c.Args...)
		if got := b.run(c); got.status != 0 {
			t.Errorf("got %+v, want status 0", got)
		}
		text, err := os.ReadFile(b.path("out"))
		if want := "/dev/null\n" + b.path("out") + "\n/dev/null\n"; string(text) != want {
			t.Errorf("streams %q (%v), want %q", text, err, want)
		}
	})
}

// The command sees a namespace that is connected, and the PID file.
func TestCommandWaitsForTranslator(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		p := b.shell("echo ran; test -s " + b.path("pid") + " && echo with PID file")
		p.PIDFile, p.Wait = b.path("pid"), b.path("go")
		c := b.program(p)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		b.start(c)
		b.eventually("three processes", func() bool { return len(b.children(c)) == 2 })
		if text, err := os.ReadFile(p.PIDFile); len(text) > 0 {
			t.Errorf("PID file before readiness: %q, %v", text, err)
		}
		launcher := b.launcher(c)
		if err := os.WriteFile(p.Wait, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		text := ""
		for {
			n, err := out.Read(buf)
			text += string(buf[:n])
			if err != nil {
				break
			}
		}
		if want := "ran\nwith PID file\n"; text != want {
			t.Errorf("output %q, want %q", text, want)
		}
		if pid := b.pidFile(p.PIDFile); pid != launcher {
			t.Errorf("PID file has %d, want %d", pid, launcher)
		}
		st, err := os.Stat(p.PIDFile)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("PID file: %v, %v; want mode 0600", st, err)
		}
	})
}

func TestTranslatorFailureStopsCommand(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		p := b.shell("echo ran")
		p.Fail = "open tap \"eth0\": no tap today"
		got := b.run(b.program(p))
		if got.status != 1 || got.out != "" || got.err != p.Fail+"\n" {
			t.Errorf("got %+v, want status 1 and the translator's message", got)
		}
	})
}

func TestTranslatorDeath(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		t.Run("before readiness", func(t *testing.T) {
			b := b.in(t)
			p := b.shell("echo ran")
			p.Wait = b.path("never")
			c := b.program(p)
			b.start(c)
			unix.Kill(b.translatorOf(c), unix.SIGKILL)
			c.Wait()
			if got := statusOf(c.ProcessState); got != 1 {
				t.Errorf("status %d, want 1", got)
			}
		})
		t.Run("while the command runs", func(t *testing.T) {
			b := b.in(t)
			c := b.program(b.shell("echo; read line; exit 9"))
			in, out := pipes(t, c)
			b.start(c)
			out.Read(make([]byte, 1))
			unix.Kill(b.translatorOf(c), unix.SIGKILL)
			c.Wait()
			if got := statusOf(c.ProcessState); got != 128+9 {
				t.Errorf("status %d, want %d", got, 128+9)
			}
			in.Close() // ends the command, which is on its own now
		})
	})
}

func TestTranslatorKnowsWhyItEnds(t *testing.T) {
	b := newBed(t, identities()[0])
	p := b.shell("true")
	p.Cause = b.path("cause")
	if got := b.run(b.program(p)); got != (result{}) {
		t.Errorf("got %+v, want nothing but status 0", got)
	}
	if text, err := os.ReadFile(p.Cause); string(text) != process.ErrCommandEnded.Error() {
		t.Errorf("cause %q, %v; want that the command has ended", text, err)
	}

	p = b.shell("echo; read line")
	p.Cause = b.path("other")
	c := b.program(p)
	in, out := pipes(t, c)
	b.start(c)
	out.Read(make([]byte, 1))
	c.Process.Signal(unix.SIGTERM)
	c.Wait()
	in.Close()
	if text, err := os.ReadFile(p.Cause); err != nil || string(text) == process.ErrCommandEnded.Error() {
		t.Errorf("cause %q, %v; want another", text, err)
	}
}

func pipes(t *testing.T, c *exec.Cmd) (in, out *os.File) {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stdin, c.Stdout = r, w
	t.Cleanup(func() {
		for _, f := range []*os.File{in, out} {
			f.Close()
		}
	})
	return in, out
}

func TestSignalsToLauncherOfCommand(t *testing.T) {
	tests := []struct {
		signal syscall.Signal
		want   int
	}{
		{unix.SIGTERM, 0},
		{unix.SIGQUIT, 0},
		{unix.SIGINT, 128 + 2},
		{unix.SIGHUP, 128 + 1},
		{unix.SIGKILL, 128 + 9},
	}
	eachIdentity(t, func(t *testing.T, b *bed) {
		for _, tt := range tests {
			t.Run(unix.SignalName(tt.signal), func(t *testing.T) {
				b := b.in(t)
				c := b.program(b.shell("echo; read line; echo still here"))
				in, out := pipes(t, c)
				b.start(c)
				buf := make([]byte, 100)
				out.Read(buf)
				translator := b.translatorOf(c)
				unix.Kill(b.launcher(c), tt.signal)
				c.Wait()
				if got := statusOf(c.ProcessState); got != tt.want {
					t.Errorf("status %d, want %d", got, tt.want)
				}
				b.eventuallyGone(translator)
				fmt.Fprintln(in, "go on")
				n, err := out.Read(buf)
				if string(buf[:n]) != "still here\n" {
					t.Errorf("the command said %q, %v", buf[:n], err)
				}
			})
		}
	})
}

// A command that was not released never runs.
func TestLauncherKilledEarly(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		for _, s := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM} {
			t.Run(unix.SignalName(s), func(t *testing.T) {
				b := b.in(t)
				p := b.shell("touch " + b.path("ran"))
				p.Wait = b.path("never")
				c := b.program(p)
				b.start(c)
				b.translatorOf(c)
				children := b.children(c)
				unix.Kill(b.launcher(c), s)
				c.Wait()
				for _, pid := range children {
					b.eventuallyGone(pid)
				}
				if _, err := os.Stat(b.path("ran")); err == nil {
					t.Error("the command ran")
				}
			})
		}
	})
}

func TestCommandInsideGivenUserNS(t *testing.T) {
	b := newBed(t, identities()[0])
	target := b.target()
	p := b.shell("readlink /proc/self/ns/user; echo $$; grep -E 'CapInh|CapAmb' /proc/self/status")
	p.UserNS = fmt.Sprintf("/proc/%d/ns/user", target.Process.Pid)
	p.Facts = b.path("facts")
	got := b.run(b.program(p))
	userNS := link(t, "/proc/%d/ns/user", target.Process.Pid)
	want := userNS + "\n1\nCapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n"
	if got.status != 0 || got.out != want {
		t.Errorf("got %+v, want %q", got, want)
	}
	if f := b.facts(p.Facts); f.UserNS != userNS || f.Target == link(t, "/proc/%d/ns/net", target.Process.Pid) {
		t.Errorf("translator: %+v, want user namespace %s and a network namespace of its own", f, userNS)
	}
}

// With our own user namespace kept, only root can make the others. The command does not
// stay root.
func TestCommandKeepsUserNS(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		p := b.shell("id -u; readlink /proc/self/ns/user; grep CapEff /proc/self/status")
		p.KeepUserNS = true
		got := b.run(b.program(p))
		switch b.name {
		case "user":
			if got.status != 1 || got.err != "Couldn't create namespaces: Operation not permitted: that takes root's rights in the user namespace, "+
				"as in the new one that there is without --userns and --netns-only\n" {
				t.Errorf("got %+v, want a refusal", got)
			}
		case "root":
			want := "65534\n" + link(t, "/proc/self/ns/user") + "\nCapEff:\t0000000000000000\n"
			if got.status != 0 || got.out != want {
				t.Errorf("got %+v, want %q", got, want)
			}
		default:
			if got.status != 0 || !strings.HasPrefix(got.out, "0\n") {
				t.Errorf("got %+v, want root", got)
			}
		}
	})
}

func TestRunAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b := newBed(t, who{name: "root"})
	for _, u := range []process.User{{UID: 1234, GID: 4321}, {}} {
		p := b.shell("cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; grep Groups /proc/self/status")
		p.RunAs = &u
		got := b.run(b.program(p))
		want := fmt.Sprintf(" 0 %d 1\n 0 %d 1\n", u.UID, u.GID)
		if !strings.HasPrefix(got.out, want) || got.err != "" || got.status != 0 {
			t.Errorf("got %+v, want %q", got, want)
		}
	}
}

// TestRunAsRefused: who may not change the user is told so, in each form.
func TestRunAsRefused(t *testing.T) {
	b := newBed(t, identities()[0])
	attached := attach(b.target().Process.Pid)
	for name, p := range map[string]plan{"command": b.shell("echo ran"), "attached": attached, "alone": {Spec: process.Spec{Alone: true}}} {
		p.RunAs = &process.User{UID: 1234, GID: 4321}
		const want = "Can't set GID to 4321: Operation not permitted: only root may run as another user\n"
		if got := b.run(b.program(p)); got.status != 1 || got.out != "" || got.err != want {
			t.Errorf("%s: got %+v, want %q", name, got, want)
		}
	}
}

func TestStageVariableWithoutLauncher(t *testing.T) {
	b := newBed(t, identities()[0])
	text, err := json.Marshal(b.shell("echo ran"))
	if err != nil {
		t.Fatal(err)
	}
	c := b.command(b.binary(), asProgram, string(text))
	c.Env = append(os.Environ(), process.StageVariable+"=1")
	got := b.run(c)
	if got.status != 1 || got.out != "" || !strings.Contains(got.err, "there is no launcher") {
		t.Errorf("got %+v, want a refusal", got)
	}
}

// launcher is the PID of the program c runs: what wraps it replaces itself.
func (b *bed) launcher(c *exec.Cmd) int { return c.Process.Pid }

func (b *bed) children(c *exec.Cmd) []int { return childrenOf(b.launcher(c)) }

func childrenOf(pid int) []int {
	var pids []int
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, word := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

func comm(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSuffix(string(text), "\n")
}

// translatorOf waits until the program c runs has a translator. Before that there are
// children that have begun no program, and look like their parent.
func (b *bed) translatorOf(c *exec.Cmd) int {
	b.t.Helper()
	pid := 0
	b.eventually("there is a translator", func() bool {
		for _, child := range b.children(c) {
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", child))
			// or it has executed a program
			begun := len(environ) > 0 && len(bytes.Trim(environ, "\x00")) == 0
			if comm(child) == "program" && (begun || bytes.Contains(environ, []byte(process.StageVariable))) {
				pid = child
			}
		}
		return pid != 0
	})
	if pid == 0 {
		b.t.FailNow() // zero would be our own process group
	}
	return pid
}
