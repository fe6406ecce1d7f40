package process_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/internal/process"
)

// attach is a plan for the namespaces of a process.
func attach(pid int) plan {
	return plan{Spec: process.Spec{
		NetNS:  fmt.Sprintf("/proc/%d/ns/net", pid),
		UserNS: fmt.Sprintf("/proc/%d/ns/user", pid),
	}}
}

func TestBackground(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		target := b.target()
		p := attach(target.Process.Pid)
		p.PIDFile, p.Facts = b.path("pid"), b.path("facts")
		c := b.program(p)
		// Both our ends of its output and a pipe it knows nothing about are let go.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c.ExtraFiles = []*os.File{nil, w}
		got := b.run(c)
		w.Close()
		if got != (result{}) {
			t.Fatalf("got %+v, want nothing but status 0", got)
		}
		if _, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		}

		pid := b.pidFile(p.PIDFile)
		f := b.facts(p.Facts)
		if want := link(t, "/proc/%d/ns/net", target.Process.Pid); f.Target != want || f.NetNS != link(t, "/proc/self/ns/net") {
			t.Errorf("translator: %+v, want the target %s and the host's network", f, want)
		}
		if want := link(t, "/proc/%d/ns/user", target.Process.Pid); f.UserNS != want {
			t.Errorf("translator: %+v, want user namespace %s", f, want)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Fields(field(string(status), "Uid")); b.name == "root" && got[0] != "65534" {
			t.Errorf("translator's uid is %s, want nobody's", got)
		}
		if sid, err := unix.Getsid(pid); sid != pid || err != nil {
			t.Errorf("session %d, %v, want its own, %d", sid, err, pid)
		}
		for fd := range 3 {
			// below another root
			if got := link(t, "/proc/%d/fd/%d", pid, fd); got != "/null" && got != "/dev/null" {
				t.Errorf("descriptor %d is %s", fd, got)
			}
		}
		if got := link(t, "/proc/%d/cwd", pid); got != "/" {
			t.Errorf("working directory %s", got)
		}
		if got := comm(pid); got != "program" {
			t.Errorf("process name %q, want that of the program", got)
		}
		if st, err := os.Stat(p.PIDFile); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("PID file: %v, %v; want mode 0600", st, err)
		}

		target.Process.Kill()
		b.eventuallyGone(pid)
	})
}

func TestBackgroundEndsBySignal(t *testing.T) {
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGQUIT, unix.SIGINT, unix.SIGHUP} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			b := newBed(t, identities()[0])
			p := attach(b.target().Process.Pid)
			p.PIDFile = b.path("pid")
			if got := b.run(b.program(p)); got.status != 0 {
				t.Fatalf("got %+v", got)
			}
			pid := b.pidFile(p.PIDFile)
			unix.Kill(pid, s)
			b.eventuallyGone(pid)
		})
	}
}

func TestForegroundSignals(t *testing.T) {
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
		for i, tt := range tests {
			t.Run(unix.SignalName(tt.signal), func(t *testing.T) {
				b := b.in(t)
				p := attach(b.target().Process.Pid)
				p.Foreground, p.PIDFile, p.Facts = true, b.path(fmt.Sprint("pid", i)), b.path(fmt.Sprint("facts", i))
				c := b.program(p)
				b.start(c)
				if pid := b.pidFile(p.PIDFile); pid != c.Process.Pid {
					t.Errorf("PID file has %d, want %d", pid, c.Process.Pid)
				}
				pid := b.facts(p.Facts).PID
				c.Process.Signal(tt.signal)
				c.Wait()
				if got := statusOf(c.ProcessState); got != tt.want {
					t.Errorf("status %d, want %d", got, tt.want)
				}
				b.eventuallyGone(pid)
			})
		}
	})
}

func TestForegroundTranslatorEnds(t *testing.T) {
	tests := []struct {
		name   string
		signal syscall.Signal
		want   int
	}{
		{"in order", unix.SIGTERM, 0},
		{"killed", unix.SIGKILL, 128 + 9},
		{"interrupted", unix.SIGINT, 128 + 2},
	}
	eachIdentity(t, func(t *testing.T, b *bed) {
		for i, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				b := b.in(t)
				p := attach(b.target().Process.Pid)
				p.Foreground, p.PIDFile, p.Facts = true, b.path(fmt.Sprint("pid", i)), b.path(fmt.Sprint("facts", i))
				c := b.program(p)
				b.start(c)
				b.pidFile(p.PIDFile)
				unix.Kill(b.facts(p.Facts).PID, tt.signal)
				c.Wait()
				if got := statusOf(c.ProcessState); got != tt.want {
					t.Errorf("status %d, want %d", got, tt.want)
				}
			})
		}
	})
}

func TestForegroundTargetEnds(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		target := b.target()
		p := attach(target.Process.Pid)
		p.Foreground, p.PIDFile = true, b.path("pid")
		c := b.program(p)
		var errs strings.Builder
		c.Stderr = &errs
		b.start(c)
		b.pidFile(p.PIDFile)
		target.Process.Kill()
		c.Wait()
		want := "Namespace " + p.NetNS + " is gone, exiting\n"
		if got := statusOf(c.ProcessState); got != 0 || lessWarning(errs.String()) != want {
			t.Errorf("status %d, %q; want 0, %q", got, errs.String(), want)
		}
	})
}

func TestStayWithoutNetNS(t *testing.T) {
	b := newBed(t, identities()[0])
	target := b.target()
	p := attach(target.Process.Pid)
	p.StayWithoutNetNS, p.PIDFile = true, b.path("pid")
	if got := b.run(b.program(p)); got.status != 0 {
		t.Fatalf("got %+v", got)
	}
	pid := b.pidFile(p.PIDFile)
	target.Process.Kill()
	target.Wait()
	// A translator that watches would be gone when one that does has ended.
	other := b.target()
	q := attach(other.Process.Pid)
	q.PIDFile = b.path("other")
	if got := b.run(b.program(q)); got.status != 0 {
		t.Fatalf("got %+v", got)
	}
	other.Process.Kill()
	b.eventuallyGone(b.pidFile(q.PIDFile))
	if !alive(pid) {
		t.Error("the translator ended with its target")
	}
	unix.Kill(pid, unix.SIGTERM)
	b.eventuallyGone(pid)
}

// A path in a file system, as container engines and ip-netns(8) make them.
func TestPathTarget(t *testing.T) {
	for _, w := range identities() {
		if w.name == "user" {
			continue // can mount nothing
		}
		t.Run(w.name, func(t *testing.T) {
			b := newBed(t, w)
			dir := b.path("netns")
			if got := b.run(b.command("mkdir", dir)); got.status != 0 {
				t.Fatalf("got %+v", got)
			}
			// Mounts made here are seen by the program, and by nobody else.
			c := b.command("unshare", "-m", "sh", "-ec", `
				touch "$1/a" "$1/b"
				unshare -n mount --bind /proc/self/ns/net "$1/a"
				echo "$$"
				read line
				touch "$1/c" && rm "$1/c" "$1/b"
				read line
				umount "$1/a"
				rm "$1/a"
				read line`, "-", dir)
			in, out := pipes(t, c)
			b.start(c)
			buf := make([]byte, 100)
			n, err := out.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			shell := strings.TrimSpace(string(buf[:n]))

			p := plan{Spec: process.Spec{NetNS: dir + "/a", PIDFile: b.path("pid")}}
			p.Facts = b.path("facts")
			enter := b.program(p)
			enter.Args = append(append(b.wrap[:len(b.wrap):len(b.wrap)], "nsenter", "-m", "-t", shell), enter.Args[len(b.wrap):]...)
			if enter.Path, err = exec.LookPath("nsenter"); err != nil {
				t.Fatal(err)
			}
			if got := b.run(enter); got != (result{}) {
				t.Fatalf("got %+v, want nothing but status 0", got)
			}
			pid := b.pidFile(p.PIDFile)
			f := b.facts(p.Facts)
			if f.Target == f.NetNS || f.UserNS != link(t, "/proc/%s/ns/user", shell) {
				t.Errorf("translator: %+v, want another network and the same user namespace", f)
			}
			fmt.Fprintln(in, "delete others")
			fmt.Fprintln(in, "delete ours")
			b.eventuallyGone(pid)
			fmt.Fprintln(in, "end")
		})
	}
}

func TestTargetsThatCannotBeJoined(t *testing.T) {
	none := 1 << 30 // above the largest PID
	tests := []struct {
		name string
		spec process.Spec
		want string
	}{
		{"no process", attach(none).Spec,
			fmt.Sprintf("Couldn't open user namespace /proc/%d/ns/user: No such file or directory\n", none)},
		{"no file", process.Spec{NetNS: "/run/netns/nonexistent"},
			"Couldn't open network namespace /run/netns/nonexistent: No such file or directory\n"},
		{"no directory", process.Spec{NetNS: "/nonexistent/name"},
			"Couldn't open network namespace /nonexistent/name: No such file or directory\n"},
		{"no namespace", process.Spec{NetNS: "/etc/passwd"},
			"Couldn't switch to pasta namespaces: Invalid argument: it is not a network namespace\n"},
		{"another kind", process.Spec{NetNS: "/proc/self/ns/uts"},
			"Couldn't switch to pasta namespaces: Invalid argument: it is not a network namespace\n"},
		{"no user namespace", process.Spec{NetNS: "/proc/self/ns/net", UserNS: "/etc/passwd"},
			"Couldn't enter user namespace /etc/passwd: Invalid argument: it is not a user namespace\n"},
		{"PID file", process.Spec{NetNS: "/proc/self/ns/net", PIDFile: "/nonexistent/pid"},
			"Couldn't open PID file /nonexistent/pid: No such file or directory\n"},
	}
	eachIdentity(t, func(t *testing.T, b *bed) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				b := b.in(t)
				got := b.run(b.program(plan{Spec: tt.spec}))
				if got != (result{status: 1, err: tt.want}) {
					t.Errorf("got %+v, want status 1 and %q", got, tt.want)
				}
			})
		}
	})
}

func TestForeignTargetIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a target the user has no right to")
	}
	b := newBed(t, identities()[0])
	p := plan{Spec: process.Spec{NetNS: "/proc/1/ns/net"}}
	got := b.run(b.program(p))
	if got != (result{status: 1, err: "Couldn't open network namespace /proc/1/ns/net: Permission denied\n"}) {
		t.Errorf("got %+v, want a refusal", got)
	}
}
