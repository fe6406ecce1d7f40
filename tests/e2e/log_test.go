package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"fusilli/tests/bed"
)

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLogFileBeginsWithVersionAndPID(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(scratch(t), "log")
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"command", []string{"--", "true"}},
		{"background", []string{strconv.Itoa(target.PID)}}, // empties what the first left
	} {
		p, _ := start(t, b, append([]string{"--config-net", "-d", "-l", path}, tc.args...)...)
		if status := p.Status(); status != 0 {
			t.Fatalf("%s: status %d: %s", tc.name, status, p.Stderr())
		}
		first, rest, _ := strings.Cut(text(t, path), "\n")
		if ok, _ := regexp.MatchString(fmt.Sprintf(`^pasta .* \(%d\)$`, p.PID()), first); !ok {
			t.Errorf("%s: first line %q, want one that ends with the PID %d", tc.name, first, p.PID())
		}
		if strings.Contains(rest, "\npasta ") || !strings.Contains(rest, ":          tap is open") {
			t.Errorf("%s: log %q", tc.name, rest)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: log file %v, %v; want mode 0600", tc.name, st.Mode(), err)
		}
	}
}

func TestLogFileThatCannotBeMade(t *testing.T) {
	t.Parallel()
	p, _ := start(t, newBed(t, defaultBed), "-l", "/nonexistent/log", "--", "true")
	want := "Couldn't open log file /nonexistent/log: No such file or directory\n"
	if status := p.Status(); status != 1 || p.Stderr() != want {
		t.Errorf("status %d, %q, want 1 and %q", status, p.Stderr(), want)
	}
}

// Where a message of the running translator shows up depends on the form and the options. The
// message is that the namespace is gone.
func TestMessagesAtRunTime(t *testing.T) {
	t.Parallel()
	const gone = " is gone, exiting"
	for _, tc := range []struct {
		name         string
		args         []string
		stderr, file bool
		prefix       string // regular expression, on standard error
	}{
		{"foreground", []string{"-f"}, true, false, ""},
		{"foreground, quiet", []string{"-f", "-q"}, false, false, ""},
		{"foreground, file", []string{"-f", "-l"}, true, true, ""},
		{"foreground, debug", []string{"-f", "-d"}, true, false, `\d+\.\d{4}: `},
		{"foreground, debug, file", []string{"-f", "-d", "-l"}, false, true, ""},
		{"background", nil, false, false, ""},
		{"background, file", []string{"-l"}, false, true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, defaultBed)
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			dir := scratch(t)
			log, pidFile := filepath.Join(dir, "log"), filepath.Join(dir, "pid")
			args := append([]string{"--config-net", "-P", pidFile}, tc.args...)
			if len(tc.args) > 0 && tc.args[len(tc.args)-1] == "-l" {
				args = append(args, log)
			}
			p, _ := start(t, b, append(args, strconv.Itoa(target.PID))...)
			var pid int
			waitFor(t, "the PID file", func() bool {
				text, _ := os.ReadFile(pidFile)
				pid, err = strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
				return strings.HasSuffix(string(text), "\n") && err == nil
			})
			target.Close()
			waitFor(t, "the translator to end", func() bool {
				_, err := bed.Tree(pid)
				return err != nil
			})
			if status := p.Status(); status != 0 {
				t.Errorf("status %d, want 0", status)
			}
			line := regexp.MustCompile(`(?m)^` + tc.prefix + `Namespace /proc/\d+/ns/net` + gone + `$`)
			if got := line.MatchString(p.Stderr()); got != tc.stderr || !got && strings.Contains(p.Stderr(), gone) {
				t.Errorf("standard error %q, want the message: %t", p.Stderr(), tc.stderr)
			}
			if !tc.file {
				return
			}
			line = regexp.MustCompile(`(?m)^\d+\.\d{4}: info:    Namespace /proc/\d+/ns/net` + gone + `$`)
			if !line.MatchString(text(t, log)) {
				t.Errorf("log file %q", text(t, log))
			}
		})
	}
}

// A /dev of the test's own, with the system's log in it, for the program it runs then.
const withLog = `
set -e
mkdir "$1/dev"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs /dev
mkdir /dev/net
for f in null zero random urandom net/tun; do
	touch "/dev/$f"
	mount --bind "$1/dev/$f" "/dev/$f"
done
ln -s "$1/log" /dev/log
shift
exec "$@"`

func TestMessagesGoToTheSystemsLog(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"default", nil, "<6> pasta: Namespace /proc/%d/ns/net is gone, exiting\n"},
		{"quiet", []string{"-q"}, ""},
		{"file", []string{"-l", "/dev/null"}, ""},
		{"debug", []string{"-d"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t, defaultBed)
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			dir := scratch(t)
			server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/log", Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if err := os.Chmod(dir+"/log", 0o666); err != nil {
				t.Fatal(err)
			}
			// Only a few datagrams wait for a reader who does not come.
			lines := make(chan string, 1000)
			go func() {
				defer close(lines)
				buf := make([]byte, 8192)
				for {
					n, err := server.Read(buf)
					if err != nil {
						return
					}
					lines <- string(buf[:n])
				}
			}()
			argv := append([]string{"--mount", "sh", "-c", withLog, "sh", dir, program, "-f", "--config-net"}, tc.args...)
			p, err := b.Host.Spawn(bed.Root, exec.Command("unshare", append(argv, strconv.Itoa(target.PID))...))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Stop(limit) })
			if err := target.Configured(patience(t, limit), p, true); err != nil {
				t.Fatal(err)
			}
			target.Close()
			if status := p.Status(); status != 0 {
				t.Fatalf("status %d: %s", status, p.Stderr())
			}
			// Datagrams are there when their sender has ended; a last one follows them.
			last, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: dir + "/log", Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer last.Close()
			if _, err := last.Write([]byte("end")); err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for line := range lines {
				if line == "end" {
					break
				}
				got.WriteString(line)
			}
			want := tc.want
			if want != "" {
				want = fmt.Sprintf(want, target.PID)
			}
			for line := range strings.Lines(got.String()) {
				if !strings.HasPrefix(line, "<4> pasta: ") && !strings.HasPrefix(line, "<6> pasta: ") {
					t.Errorf("line %q", line)
				}
			}
			if want == "" && strings.Contains(got.String(), "gone") || !strings.Contains(got.String(), want) {
				t.Errorf("log %q, want %q in it", got.String(), want)
			}
		})
	}
}

func TestSummaryAtTheStart(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	const block = `(?m)^Template interface: h0 \(IPv4\), h0 \(IPv6\)
Namespace interface: h0
MAC:
    host: 9a:55:9a:55:9a:55
    NAT to host 127\.0\.0\.1: 10\.77\.0\.1
DHCP:
    assign: 10\.77\.0\.2
    mask: 255\.255\.255\.0
    router: 10\.77\.0\.1
DNS:
    10\.77\.0\.1
    NAT to host ::1: fd77::1
NDP/DHCPv6:
    assign: fd77::2
    router: fd77::1
    our link-local: fe80::[0-9a-f:]+
`
	for _, tc := range []struct {
		name    string
		args    []string
		command bool
		want    string // regular expression for standard error
	}{
		{"default", nil, false, block},
		{"quiet", []string{"-q"}, false, `^$`},
		{"foreground", []string{"-f"}, false, block},
		{"command", nil, true, `^$`},
		{"command, debug", []string{"-d"}, true, `(?m)^\d+\.\d{4}: Template interface: h0 \(IPv4\), h0 \(IPv6\)$`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			args := append([]string{"--config-net"}, tc.args...)
			if tc.command {
				args = append(args, "--", "true")
			} else {
				args = append(args, strconv.Itoa(target.PID))
			}
			p, stdout := start(t, b, args...)
			if tc.name == "foreground" {
				if err := target.Configured(patience(t, limit), p, true); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "the summary", func() bool { return strings.Contains(p.Stderr(), "our link-local") })
				p.Stop(limit)
			}
			if status := p.Status(); status != 0 {
				t.Fatalf("status %d: %s", status, p.Stderr())
			}
			if ok, _ := regexp.MatchString(tc.want, p.Stderr()); !ok {
				t.Errorf("standard error:\n%s\nwant:\n%s", p.Stderr(), tc.want)
			}
			if stdout.Len() > 0 {
				t.Errorf("standard output %q", stdout)
			}
		})
	}
}

// The log stays between half of its limit and the limit while the program is at work, and its lines
// in order; on a file system that takes blocks out of files, and on one that does not.
func TestLogRotatesUnderLoad(t *testing.T) {
	t.Parallel()
	const size = 40960
	disk, err := os.MkdirTemp("", "fusilli-log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(disk) })
	if err := os.Chmod(disk, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{scratch(t), disk} {
		t.Run(filepath.Dir(dir), func(t *testing.T) {
			path := filepath.Join(dir, "log")
			c := connect(t, newBed(t, defaultBed), "-d", "-l", path, "--log-size", strconv.Itoa(size))
			l, err := c.Far.Listen("tcp", net.JoinHostPort(bed.FarAddr6, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conn.Close()
				}
			}()
			full, rotated := false, false
			check := func() {
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				full = full || st.Size() > size/2
				if st.Size() >= size || full && st.Size() <= size/2 {
					t.Fatalf("%d bytes", st.Size())
				}
			}
			for range sizedCount(1500) {
				conn, err := c.target.Dial(patience(t, limit), "tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				check()
			}
			if status := c.proc.Stop(limit); status != 0 {
				t.Errorf("status %d", status)
			}
			check()
			lines := strings.Split(strings.TrimSuffix(text(t, path), "\n"), "\n")
			rotated = strings.Contains(lines[0], " - log truncated at ")
			if !rotated || !strings.HasPrefix(lines[0], "pasta ") {
				t.Errorf("first line %q", lines[0])
			}
			last, flows := 0.0, 0
			for _, line := range lines[1:] {
				stamp, _, _ := strings.Cut(line, ":")
				s, err := strconv.ParseFloat(stamp, 64)
				if err != nil || s < last {
					t.Fatalf("line %q after %f", line, last)
				}
				last = s
				if strings.Contains(line, " (TCP connection): TAP [") {
					flows++
				}
			}
			if flows < 50 {
				t.Errorf("%d flows in %d lines", flows, len(lines))
			}
			if got := lines[len(lines)-1]; !strings.Contains(got, "Counters at the end") {
				t.Errorf("last line %q", got)
			}
		})
	}
}
