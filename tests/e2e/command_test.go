package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// start runs the program on the host as the unprivileged user, with its standard output
// in a buffer.
func start(t *testing.T, b *bed.Bed, args ...string) (*bed.Process, *strings.Builder) {
	t.Helper()
	cmd := exec.Command(program, append(extra(), args...)...)
	var stdout strings.Builder
	cmd.Stdout = &stdout
	p, err := b.Host.Spawn(bed.Nobody, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(limit) })
	return p, &stdout
}

func TestStatusOfTheCommandIsRelayed(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	for _, tc := range []struct {
		name   string
		argv   []string
		status int
		stdout string
	}{
		{"success", []string{"true"}, 0, ""},
		{"failure", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"signal to a child", []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 128 + 9, ""},
		{"output", []string{"echo", "-q", "--help"}, 0, "-q --help\n"},
		{"root in its namespace", []string{"id", "-u"}, 0, "0\n"},
		{"first process", []string{"sh", "-c", "echo $$"}, 0, "1\n"},
		{"no such command", []string{"/nonexistent"}, 1, ""},
		{"network", []string{"sh", "-c", "ip -br -4 address show dev h0 | awk '{print $3}'"}, 0, bed.HostAddr4 + "/24\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, stdout := start(t, b, append([]string{"--config-net", "-q", "--"}, tc.argv...)...)
			if status := p.Status(); status != tc.status {
				t.Errorf("status %d, want %d: %s", status, tc.status, p.Stderr())
			}
			if stdout.String() != tc.stdout {
				t.Errorf("standard output %q, want %q", stdout, tc.stdout)
			}
			if tc.name == "no such command" && !strings.Contains(p.Stderr(), "Failed to start command or shell") {
				t.Errorf("message %q", p.Stderr())
			}
		})
	}
}

func TestCommandInheritsNothingButTheStandardDescriptors(t *testing.T) {
	t.Parallel()
	p, stdout := start(t, newBed(t, defaultBed), "--config-net", "-q", "--", "sh", "-c", "ls /proc/self/fd | tr '\n' ' '")
	if status := p.Status(); status != 0 {
		t.Fatalf("status %d: %s", status, p.Stderr())
	}
	if stdout.String() != "0 1 2 3 " { // 3 is the directory itself
		t.Errorf("descriptors %s", stdout)
	}
}

// TestNoDescriptorIsForOthers: whatever the translator has open while it is at work, a program that
// it started would not get it.
func TestNoDescriptorIsForOthers(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	control := filepath.Join(scratch(t), "control")
	c := connect(t, b, "-t", "1100", "-u", "1100", "-T", "3100", "-U", "3100", "-c", control)
	echo := func(n *bed.NS, addr string) {
		l, err := n.ServeTCP(addr, func(c net.Conn) { io.Copy(c, c) })
		serving(t)(l, err)
	}
	echo(c.target.NS, ":1100")
	echo(b.Host, "127.0.0.1:3100")
	echo(b.Far, ":1200")
	serveDatagrams(t, c.target.NS, []string{bed.HostAddr4}, 1100)
	serveDatagrams(t, b.Host, []string{"127.0.0.1"}, 3100)
	serveDatagrams(t, b.Far, []string{bed.FarAddr4}, 1200)
	before := c.usage(t).FDs
	for _, way := range []struct {
		n    *bed.NS
		addr string
	}{
		{b.Far, bed.HostAddr4 + ":1100"},      // by the tap
		{b.Host, "127.0.0.1:1100"},            // spliced
		{c.target.NS, "127.0.0.1:3100"},       // spliced, the other way
		{c.target.NS, bed.FarAddr4 + ":1200"}, // out
	} {
		for _, network := range []string{"tcp", "udp"} {
			conn, err := way.n.Dial(patience(t, limit), network, way.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if _, err := ask(conn, []byte("?")); err != nil {
				t.Fatalf("%s %s: %v", network, way.addr, err)
			}
		}
	}
	client, err := net.Dial("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.ReadFull(client, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	u := c.usage(t)
	if u.FDs < before+8 {
		t.Errorf("%d descriptors, %d before: there is nothing to look at", u.FDs, before)
	}
	for _, pid := range u.PIDs {
		all, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			info, err := os.ReadFile(path)
			if n, _ := strconv.Atoi(filepath.Base(path)); err != nil || n <= 2 {
				continue
			}
			_, rest, _ := strings.Cut(string(info), "flags:")
			word, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
			if flags, err := strconv.ParseUint(word, 8, 64); err != nil || flags&unix.O_CLOEXEC == 0 {
				to, _ := os.Readlink(strings.Replace(path, "fdinfo", "fd", 1))
				t.Errorf("process %d, descriptor %s: %s has flags %q", pid, filepath.Base(path), to, word)
			}
		}
	}
}

func TestBackgroundIsReadyWhenTheLauncherEnds(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	for _, form := range []string{"PID", "--netns"} {
		t.Run(form, func(t *testing.T) {
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			pidFile := filepath.Join(scratch(t), "pid")
			args := []string{"--config-net", "--no-map-gw", "-q", "-P", pidFile, strconv.Itoa(target.PID)}
			if form == "--netns" {
				args = append(args[:len(args)-1], "--userns", fmt.Sprintf("/proc/%d/ns/user", target.PID),
					"--netns", fmt.Sprintf("/proc/%d/ns/net", target.PID))
			}
			p, _ := start(t, b, args...)
			if status := p.Status(); status != 0 {
				t.Fatalf("status %d: %s", status, p.Stderr())
			}
			// Ready is now: nothing is waited for.
			text, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
			if err != nil {
				t.Fatalf("PID file holds %q", text)
			}
			usage, err := bed.Tree(pid)
			if err != nil {
				t.Fatal(err)
			}
			l, err := b.Far.Listen("tcp", net.JoinHostPort(bed.FarAddr6, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					io.WriteString(c, "hello")
					c.Close()
				}
			}()
			conn, err := target.Dial(patience(t, limit), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
			conn.Close()
			if sid, err := unix.Getsid(pid); err != nil || sid == mustSid(t) {
				t.Errorf("session %d, %v: not one of its own", sid, err)
			}
			// The namespace ends, and with it everything that was started.
			target.Close()
			for _, pid := range usage.PIDs {
				waitFor(t, "the daemon to end", func() bool {
					_, err := bed.Tree(pid)
					return err != nil
				})
			}
		})
	}
}

func mustSid(t *testing.T) int {
	t.Helper()
	sid, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	return sid
}

func TestLauncherFailsWhereThereIsNothingToConnect(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"no such process", []string{"--config-net", "4194303"}},
		{"no such path", []string{"--config-net", "--netns", "/nonexistent"}},
		{"not a namespace", []string{"--config-net", "--netns-only", "--netns", "/etc/passwd"}},
		{"not ours", []string{"--config-net", "1"}},
		{"unknown option", []string{"--no-such-option"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _ := start(t, b, tc.args...)
			if status := p.Status(); status != 1 {
				t.Errorf("status %d, want 1", status)
			}
			if p.Stderr() == "" {
				t.Error("nothing says why")
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	for _, arg := range []string{"--help", "--version"} {
		p, stdout := start(t, b, arg)
		if status := p.Status(); status != 0 || stdout.Len() == 0 {
			t.Errorf("%s: status %d, %d bytes: %s", arg, status, stdout.Len(), p.Stderr())
		}
	}
}

func TestTerminateEndsEverything(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			c := connect(t, newBed(t, defaultBed))
			pids := c.usage(t).PIDs
			unix.Kill(c.proc.PID(), sig)
			if status := c.proc.Status(); status != 0 {
				t.Errorf("status %d, want 0: %s", status, c.proc.Stderr())
			}
			for _, pid := range pids {
				waitFor(t, "the processes to end", func() bool {
					_, err := bed.Tree(pid)
					return err != nil
				})
			}
			var links []struct{ Ifname string }
			ipJSON(t, c.target.NS, &links, "link")
			if len(links) != 1 {
				t.Errorf("links %+v, want lo alone", links)
			}
		})
	}
}
