package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

func TestTapTakenAwayEndsTheRun(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	if err := c.target.IP("link delete h0"); err != nil {
		t.Fatal(err)
	}
	if status := c.proc.Status(); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	if got, want := c.proc.Stderr(), "EOF on tap device, exiting\n"; got != want {
		t.Errorf("standard error %q, want %q", got, want)
	}
}

// The PID file of a foreground run and of a command is that of the process the user started.
func TestPIDFile(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"command", []string{"--", "sleep", "1000"}},
		{"foreground", []string{"-f", strconv.Itoa(target.PID)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(scratch(t), "pid")
			p, _ := start(t, b, append([]string{"-q", "-P", path}, tc.args...)...)
			want := fmt.Sprintf("%d\n", p.PID())
			waitFor(t, "the PID file", func() bool {
				text, _ := os.ReadFile(path)
				return strings.HasSuffix(string(text), "\n")
			})
			if got := text(t, path); got != want {
				t.Errorf("PID file %q, want %q", got, want)
			}
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("PID file %v, %v; want mode 0600", st, err)
			}
			if status := p.Stop(limit); status != 0 {
				t.Errorf("status %d", status)
			}
			// Nobody removes it.
			if got := text(t, path); got != want {
				t.Errorf("PID file %q afterwards", got)
			}
		})
	}
	p, _ := start(t, b, "-q", "-P", "/nonexistent/pid", "--", "true")
	if status := p.Status(); status != 1 || p.Stderr() != "Couldn't open PID file /nonexistent/pid: No such file or directory\n" {
		t.Errorf("status %d, %q", status, p.Stderr())
	}
}

// asRoot skips the test where nobody else can be become.
func asRoot(t *testing.T) {
	t.Helper()
	if text(t, "/proc/self/uid_map") != fmt.Sprintf("%10d %10d %10d\n", 0, 0, uint32(1<<32-1)) {
		t.Skip("not the real root")
	}
}

func TestStartedAsRoot(t *testing.T) {
	t.Parallel()
	asRoot(t)
	const nobody = "Started as root, will change to nobody.\n"
	b := newBed(t, defaultBed)
	for _, tc := range []struct {
		runas    string
		uid, gid int
		stderr   string
		status   int
	}{
		{"", 65534, 65534, nobody, 0},
		{"0", 0, 0, "", 0},
		{"1234", 1234, 1234, "", 0},
		{"1234:5678", 1234, 5678, "", 0},
		{"0x10:010", 16, 8, "", 0},
		{"daemon", 1, 1, "", 0},
		{"daemon:5678", 1, 5678, "", 0},
		{"1234:daemon", 1234, 1, "", 0},
		{"root", 0, 0, "Invalid --runas option: root\n", 1},
		{"no-such-user", 0, 0, "Invalid --runas option: no-such-user\n", 1},
		{"daemon:no-such-group", 0, 0, "Invalid --runas option: daemon:no-such-group\n", 1},
	} {
		t.Run(tc.runas, func(t *testing.T) {
			var args []string
			if tc.runas != "" {
				args = []string{"--runas", tc.runas}
			}
			cmd := exec.Command(program, append(args, "--config-net", "--", "sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g")...)
			var stdout strings.Builder
			cmd.Stdout = &stdout
			p, err := b.Host.Spawn(bed.Root, cmd)
			if err != nil {
				t.Fatal(err)
			}
			if status := p.Status(); status != tc.status || p.Stderr() != tc.stderr {
				t.Errorf("status %d, standard error %q; want %d, %q", status, p.Stderr(), tc.status, tc.stderr)
			}
			want := []string{"0", fmt.Sprint(tc.uid), "1", "0", fmt.Sprint(tc.gid), "1", "0", "0"}
			if got := strings.Fields(stdout.String()); tc.status == 0 && strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("maps and user %q, want %q", got, want)
			}
		})
	}
}

// What is opened before the change of user is opened as root, and the capture after it.
func TestFilesOfRoot(t *testing.T) {
	t.Parallel()
	asRoot(t)
	b := newBed(t, defaultBed)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	dir := scratch(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	cmd := exec.Command(program, "--config-net", "-q", "-l", in("log"), "-P", in("pid"), "-p", in("pcap"), strconv.Itoa(target.PID))
	p, err := b.Host.Spawn(bed.Root, cmd)
	if err != nil {
		t.Fatal(err)
	}
	if status := p.Status(); status != 0 {
		t.Fatalf("status %d: %s", status, p.Stderr())
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text(t, in("pid"))))
	if err != nil {
		t.Fatal(err)
	}
	status := text(t, fmt.Sprintf("/proc/%d/status", pid))
	if !strings.Contains(status, "Uid:\t65534\t65534\t65534\t65534\n") || !strings.Contains(status, "Gid:\t65534\t65534\t65534\t65534\n") {
		t.Errorf("the translator is not nobody: %s", status)
	}
	got := text(t, in("log"))
	// What is said before there is a log file is in it, too, and once.
	for _, want := range []string{": WARNING: Started as root, will change to nobody.\n", ": ERROR:   Couldn't open pcap file " + in("pcap")} {
		if strings.Count(got, want) != 1 {
			t.Errorf("log %q, want %q in it once", got, want)
		}
	}
	if n := strings.Count(p.Stderr(), "Started as root"); n != 1 {
		t.Errorf("%d warnings on standard error: %q", n, p.Stderr())
	}
	if !strings.Contains(p.Stderr(), "Couldn't open pcap file "+in("pcap")) {
		t.Errorf("standard error %q", p.Stderr())
	}
	target.Close()
	waitFor(t, "the daemon to end", func() bool {
		_, err := bed.Tree(pid)
		return err != nil
	})
}

// TestSocketOfRoot: passt that root starts has its socket and its PID file where only root may make
// any, and is nobody itself.
func TestSocketOfRoot(t *testing.T) {
	t.Parallel()
	asRoot(t)
	b := newBed(t, defaultBed)
	dir := scratch(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket, control, pid := filepath.Join(dir, "socket"), filepath.Join(dir, "control"), filepath.Join(dir, "pid")
	p, err := b.Host.Spawn(bed.Root, exec.Command(asPasst(t), "-q", "-4", "--one-off", "-s", socket, "-c", control, "-P", pid))
	if err != nil {
		t.Fatal(err)
	}
	if status := p.Status(); status != 0 || p.Stderr() != "Started as root, will change to nobody.\n" {
		t.Fatalf("status %d: %s", status, p.Stderr())
	}
	n, err := strconv.Atoi(strings.TrimSpace(text(t, pid)))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{socket, control} {
		if st, err := os.Stat(path); err != nil || owner(st) != 0 {
			t.Errorf("%s is not root's: %v", path, err)
		}
	}
	if status := text(t, fmt.Sprintf("/proc/%d/status", n)); !strings.Contains(status, "Uid:\t65534\t65534\t65534\t65534\n") {
		t.Errorf("passt is not nobody: %s", status)
	}
	h := plugIn(t, socket)
	h.Write(question())
	h.answered()
	h.Close()
	waitFor(t, "passt to end", func() bool {
		_, err := bed.Tree(n)
		return err != nil
	})
}

func TestRootOfAUserNamespaceStaysSo(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"own network only", []string{"--netns-only"}},
		{"own user namespace", nil},
	} {
		argv := append([]string{"-r", "--", program, "-q"}, append(tc.args, "--", "echo", "TEST")...)
		cmd := exec.Command("unshare", argv...)
		var stdout strings.Builder
		cmd.Stdout = &stdout
		p, err := b.Host.Spawn(bed.Nobody, cmd)
		if err != nil {
			t.Fatal(err)
		}
		if status := p.Status(); status != 0 || stdout.String() != "TEST\n" || p.Stderr() != "" {
			t.Errorf("%s: status %d, output %q, errors %q", tc.name, status, stdout.String(), p.Stderr())
		}
	}
}

func TestClosedStreams(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	for _, closed := range []string{"0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"} {
		t.Run(closed, func(t *testing.T) {
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			dir := scratch(t)
			out, pidFile := filepath.Join(dir, "out"), filepath.Join(dir, "pid")
			run := func(args ...string) {
				t.Helper()
				argv := append([]string{"-c", `exec "$@" ` + closed, "sh", program, "--config-net", "--no-map-gw", "-q"}, args...)
				p, err := b.Host.Spawn(bed.Nobody, exec.Command("sh", argv...))
				if err != nil {
					t.Fatal(err)
				}
				if status := p.Status(); status != 0 || p.Stderr() != "" {
					t.Fatalf("status %d, %q", status, p.Stderr())
				}
			}
			// The command's are closed streams of ours turned to nothing, and no sockets.
			run("--", "sh", "-c", "exec 9>"+out+"; for i in 0 1 2; do is=$(readlink /proc/$$/fd/$i); echo $is >&9; done")
			for i, is := range strings.Fields(text(t, out)) {
				if strings.Contains(closed, fmt.Sprint(i)) && is != "/dev/null" || strings.Contains(is, "socket") {
					t.Errorf("descriptor %d of the command is %s", i, is)
				}
			}
			run("-P", pidFile, strconv.Itoa(target.PID))
			pid := strings.TrimSpace(text(t, pidFile))
			for i := range 3 {
				var st, null unix.Stat_t
				if err := unix.Stat("/proc/"+pid+"/fd/"+fmt.Sprint(i), &st); err != nil {
					t.Fatal(err)
				}
				if err := unix.Stat("/dev/null", &null); err != nil || st.Rdev != null.Rdev {
					t.Errorf("descriptor %d of the daemon is device %#x, not /dev/null", i, st.Rdev)
				}
			}
			c := &connection{Bed: b, target: target}
			target2, peer := c.pair(t, bed.FarAddr4) // it works
			target2.Close()
			peer.Close()
			target.Close()
		})
	}
}

func TestNamespacePathRemoved(t *testing.T) {
	t.Parallel()
	asRoot(t)
	for _, quit := range []bool{true, false} {
		t.Run(fmt.Sprintf("quit %t", quit), func(t *testing.T) {
			b := newBed(t, defaultBed)
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			// As container engines do: a bind mount that is taken away and removed.
			path := filepath.Join(scratch(t), "ns")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			mount := func(args ...string) {
				t.Helper()
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v: %s", args, err, out)
				}
			}
			mount("mount", "--bind", fmt.Sprintf("/proc/%d/ns/net", target.PID), path)
			log := filepath.Join(scratch(t), "log")
			pidFile := filepath.Join(scratch(t), "pid")
			args := []string{"--runas", "0", "--config-net", "--no-map-gw", "-P", pidFile, "-l", log, "--netns-only", "--netns", path}
			if !quit {
				args = append(args, "--no-netns-quit")
			}
			p, err := b.Host.Spawn(bed.Root, exec.Command(program, args...))
			if err != nil {
				t.Fatal(err)
			}
			if status := p.Status(); status != 0 {
				t.Fatalf("status %d: %s", status, p.Stderr())
			}
			pid, err := strconv.Atoi(strings.TrimSpace(text(t, pidFile)))
			if err != nil {
				t.Fatal(err)
			}
			mount("umount", path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if quit {
				waitFor(t, "the daemon to end", func() bool {
					_, err := bed.Tree(pid)
					return err != nil
				})
				if want := "info:    Namespace " + path + " is gone, exiting\n"; !strings.HasSuffix(text(t, log), want) {
					t.Errorf("log %q, want %q", text(t, log), want)
				}
				return
			}
			c := &connection{Bed: b, target: target}
			a, far := c.pair(t, bed.FarAddr4) // it still works
			a.Close()
			far.Close()
			if proc, err := os.FindProcess(pid); err == nil {
				proc.Signal(os.Kill)
			}
		})
	}
}

func TestDeprecatedOptionsWarnOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	p, _ := start(t, b, "-q", "-e", "--config-net", "--no-copy-routes", "--no-copy-addrs", "--", "true")
	want := "--stderr will be dropped soon\n--no-copy-routes will be dropped soon\n--no-copy-addrs will be dropped soon\n"
	if status := p.Status(); status != 0 || p.Stderr() != want {
		t.Errorf("status %d, %q, want %q", status, p.Stderr(), want)
	}
}
