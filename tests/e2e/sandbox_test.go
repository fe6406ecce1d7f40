package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// confinement is what the outside sees of a confined process.
type confinement struct {
	pid int
	t   *testing.T
}

func (c confinement) link(name string) string {
	c.t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", c.pid, name))
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c confinement) read(name string) string {
	c.t.Helper()
	return text(c.t, fmt.Sprintf("/proc/%d/%s", c.pid, name))
}

// namespaces checks which of the process's namespaces are those of this one.
func (c confinement) namespaces(own ...string) {
	c.t.Helper()
	for _, kind := range []string{"user", "mnt", "ipc", "uts", "pid"} {
		outside, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			c.t.Fatal(err)
		}
		if got := c.link("ns/" + kind); (got != outside) != slices.Contains(own, kind) {
			c.t.Errorf("%s namespace %s, ours is %s; want its own: %v", kind, got, outside, own)
		}
	}
}

// threads checks the rights of every thread of a translator.
func (c confinement) threads(caps string) {
	c.t.Helper()
	const none = "0000000000000000"
	c.status(map[string]string{"CapInh": none, "CapPrm": caps, "CapEff": caps, "CapBnd": none, "CapAmb": none,
		"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "2"}) // one from when it started
}

// waits checks the rights of every thread of a launcher.
func (c confinement) waits() {
	c.t.Helper()
	c.status(map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1"})
}

// free checks that a command has what the user has who started it.
func (c confinement) free() {
	c.t.Helper()
	c.status(map[string]string{"NoNewPrivs": "0", "Seccomp": "0", "Seccomp_filters": "0"})
}

// status checks lines of /proc/PID/status for every thread.
func (c confinement) status(want map[string]string) {
	c.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.pid))
	if err != nil || len(tasks) == 0 {
		c.t.Fatalf("no threads: %v", err)
	}
	for _, task := range tasks {
		seen := 0
		for line := range strings.Lines(text(c.t, task)) {
			name, value, _ := strings.Cut(line, ":")
			w, ok := want[name]
			if !ok {
				continue
			}
			seen++
			if value = strings.TrimSpace(value); value != w {
				c.t.Errorf("%s: %s %s, want %s", task, name, value, w)
			}
		}
		if seen < len(want)-1 { // Seccomp_filters since Linux 5.9
			c.t.Errorf("%s: %d of %d rights", task, seen, len(want))
		}
	}
}

// files checks the root and the descriptors: each must match one of the patterns.
func (c confinement) files(patterns ...string) {
	c.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/", c.pid))
	if err != nil || len(entries) != 0 {
		c.t.Errorf("root has %v, %v; want nothing", entries, err)
	}
	if dir := c.link("cwd"); dir != "/" {
		c.t.Errorf("working directory %s", dir)
	}
	mounts := strings.Split(strings.TrimSpace(c.read("mountinfo")), "\n")
	if len(mounts) != 1 || !strings.Contains(mounts[0], " / ro,nosuid,nodev,noexec") || !strings.Contains(mounts[0], "- tmpfs") {
		c.t.Errorf("mounts %q, want an empty read-only tmpfs", mounts)
	}
	env := strings.Split(strings.TrimRight(c.read("environ"), "\x00"), "\x00")
	for _, v := range env {
		// nothing, where the program was begun anew without execve
		name, _, _ := strings.Cut(v, "=")
		if !slices.Contains([]string{"", "FUSILLI_STAGE", "FUSILLI_SECCOMP", "GOMAXPROCS", "TZ", "GORACE"}, name) {
			c.t.Errorf("environment has %q", v)
		}
	}
	patterns = append(patterns, `^anon_inode:\[event(fd|poll)\]$`, `^socket:`, `^pipe:`)
	intended := regexp.MustCompile(strings.Join(patterns, "|"))
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.pid))
	if err != nil || len(fds) == 0 {
		c.t.Fatalf("no descriptors: %v", err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && !intended.MatchString(to) {
			c.t.Errorf("descriptor %s is %s", filepath.Base(fd), to)
		}
	}
	for line := range strings.Lines(c.read("limits")) {
		if strings.HasPrefix(line, "Max core file size") && strings.Join(strings.Fields(line)[4:6], " ") != "0 0" {
			c.t.Errorf("limits: %s", line)
		}
	}
}

func owner(info os.FileInfo) uint32 {
	if info == nil {
		return ^uint32(0)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// childOf waits for the one child of a launcher that is a translator, and ready (Linux 5.9).
func childOf(t *testing.T, launcher int) (pid int) {
	t.Helper()
	waitFor(t, "the translator", func() bool {
		all, err := filepath.Glob("/proc/[0-9]*/status")
		if err != nil {
			return false
		}
		for _, path := range all {
			status, _ := os.ReadFile(path)
			if strings.Contains(string(status), fmt.Sprintf("PPid:\t%d\n", launcher)) && strings.Contains(string(status), "Seccomp_filters:\t2\n") {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
			}
		}
		return pid != 0
	})
	return pid
}

// commandOf waits for a child of a launcher that has become a program.
func commandOf(t *testing.T, launcher int, name string) (pid int) {
	t.Helper()
	waitFor(t, "the command", func() bool {
		all, err := filepath.Glob("/proc/[0-9]*/status")
		if err != nil {
			return false
		}
		for _, path := range all {
			status, _ := os.ReadFile(path)
			if strings.Contains(string(status), fmt.Sprintf("PPid:\t%d\n", launcher)) && strings.HasPrefix(string(status), "Name:\t"+name+"\n") {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
			}
		}
		return pid != 0
	})
	return pid
}

// TestConfinementFromOutside starts each mode and looks at the translator by /proc.
func TestConfinementFromOutside(t *testing.T) {
	if raceEnabled {
		t.Skip("a program with the race detector is linked with a C library, which is not confined")
	}
	asRoot(t)
	const null, tap = `^/null$|^/dev/null$`, `^/dev/net/tun$|^/net/tun$`
	const tables = `/net/(tcp|udp)6?$` // of bound ports
	const stderr = `^/dev/|^/[0-9]+$`
	const bindLow, nothing = "0000000000000400", "0000000000000000"
	none := []string{"-t", "none", "-u", "none", "-T", "none", "-U", "none"}
	t.Run("command", func(t *testing.T) {
		b := newBed(t, defaultBed)
		p, _ := start(t, b, append(none, "--config-net", "-q", "--", "sleep", "1000")...)
		c := confinement{childOf(t, p.PID()), t}
		c.namespaces("user", "mnt", "ipc", "uts")
		c.threads(nothing)
		c.files(null, tap, tables)
		confinement{p.PID(), t}.waits()
		confinement{commandOf(t, p.PID(), "sleep"), t}.free()
	})
	for _, tc := range []struct {
		name string
		args []string
		own  []string
		caps string
	}{
		{"background", none, []string{"user", "mnt", "ipc", "uts", "pid"}, nothing},
		{"automatic forwarding", nil, []string{"user", "mnt", "ipc", "uts", "pid"}, bindLow},
		{"foreground", append([]string{"-f"}, none...), []string{"user", "mnt", "ipc", "uts"}, nothing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t, defaultBed)
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			pidFile := filepath.Join(scratch(t), "pid")
			args := append(slices.Clone(tc.args), "--config-net", "-q", "-P", pidFile, strconv.Itoa(target.PID))
			p, _ := start(t, b, args...)
			waitFor(t, "the PID file", func() bool {
				got, err := os.ReadFile(pidFile)
				return err == nil && strings.HasSuffix(string(got), "\n")
			})
			pid, err := strconv.Atoi(strings.TrimSpace(text(t, pidFile)))
			if err != nil {
				t.Fatal(err)
			}
			if tc.args != nil && tc.args[0] == "-f" {
				pid = childOf(t, p.PID())
				confinement{p.PID(), t}.waits()
			}
			c := confinement{pid, t}
			c.namespaces(tc.own...)
			c.threads(tc.caps)
			c.files(null, tap, stderr, `^anon_inode:\[pidfd\]$|^pidfd:`, tables)
		})
	}
	t.Run("virtual machine", func(t *testing.T) {
		b := newBed(t, defaultBed)
		passt, err := bed.Provide(program, "passt")
		if err != nil {
			t.Fatal(err)
		}
		dir := scratch(t)
		pidFile := filepath.Join(dir, "pid")
		p, err := b.Host.Spawn(bed.Nobody, exec.Command(passt, "-q", "-P", pidFile, "-s", filepath.Join(dir, "socket")))
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
		defer unix.Kill(pid, unix.SIGTERM)
		c := confinement{pid, t}
		c.namespaces("user", "mnt", "ipc", "uts", "pid")
		c.threads(nothing)
		c.files(null)
		// The files of a process that is not dumpable belong to the root of its user
		// namespace, and to the real one where there is none.
		if st, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid)); owner(st) != 0 {
			t.Errorf("owner of /proc/PID/fd: %d, %v; want root: the process is dumpable", owner(st), err)
		}
	})
}
