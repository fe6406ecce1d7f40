package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// What cannot be forwarded as asked for is said in the words that others look for; the exit status
// is 1, and nothing is left.
func TestPortsThatCannotBeForwarded(t *testing.T) {
	b := newBed(t, defaultBed)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*bed.NS{b.Host, target.NS} {
		for _, network := range []string{"tcp", "udp"} {
			if network == "tcp" {
				l, err := n.Listen("tcp", ":2085")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				continue
			}
			c, err := n.ListenPacket("udp", ":2085")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"port in use", []string{"-t", "2080-2090"}, []string{
			"Listen failed for HOST TCP port */2085: Address already in use", "Couldn't listen on requested ports"}},
		{"port in use, UDP", []string{"-u", "2080-2090:3080-3090"}, []string{
			"Listen failed for HOST UDP port */2085: Address already in use", "Couldn't listen on requested ports"}},
		{"port in use in the target", []string{"-t", "2080", "-T", "2080-2090"}, []string{
			"Listen failed for SPLICE TCP port *%lo/2085: Address already in use", "Couldn't listen on requested ports"}},
		{"port in use in the target, UDP", []string{"-t", "2080", "-U", "2085"}, []string{
			"Listen failed for SPLICE UDP port *%lo/2085: Address already in use", "Couldn't listen on requested ports"}},
		{"all that is asked for in use", []string{"-t", "~1-2084,~2086-65535"}, []string{
			"Listen failed for HOST TCP port */2085: Address already in use", "All listens failed for HOST TCP */2085-2085"}},
		{"address the host has not", []string{"-t", "2080", "-t", "198.51.100.9/2081"}, []string{
			"Listen failed for HOST TCP port 198.51.100.9/2081: Cannot assign requested address", "Couldn't listen on requested ports"}},
		{"interface the host has not", []string{"-t", "2080", "-u", "%nil0/2081"}, []string{
			"SO_BINDTODEVICE nil0 failed for UDP on *%nil0/2081: No such device", "Couldn't listen on requested ports"}},
		{"privileged port", []string{"-t", "2080", "-t", "1023"}, []string{
			"Listen failed for HOST TCP port */1023: Permission denied", "Couldn't listen on requested ports"}},
		{"the same twice", []string{"-t", "2080", "-t", "2080"}, []string{
			"Forwarding configuration conflict: TCP [*]:2080  =>  2080  versus TCP [*]:2080  =>  2080 ", "Unable to add rule TCP [*]:2080  =>  2080 "}},
		{"port 0", []string{"-t", "0"}, []string{
			"Forwarding rule attempts to map from port 0", "Unable to add rule TCP [*]:0  =>  0 "}},
		{"beyond the last port", []string{"-t", "70000"}, []string{"Invalid port specifier '70000'"}},
		{"ranges of different length", []string{"-t", "2080-2081:2080-2082"}, []string{"Invalid port specifier '2080-2081:2080-2082'"}},
		{"target without a family to listen on", []string{"-t", "2080:192.0.2.1/2080"}, []string{
			"Dual stack forward to IPv4 address 192.0.2.1 unsupported", "Did you mean 0.0.0.0/... instead?", "Unable to add rule TCP [*]:2080  =>  192.0.2.1:2080 "}},
		{"address of a family that is off", []string{"-4", "-t", "::1/2080"}, []string{
			"IPv6 forward, but IPv6 not enabled", "Unable to add rule TCP [::1]:2080  =>  2080 "}},
		{"protocol that is off", []string{"--no-udp", "-u", "2080"}, []string{
			"Can't add UDP forwarding rule, UDP not enabled", "Unable to add rule UDP [*]:2080  =>  2080 "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"--config-net", "-f", "-q"}, append(tt.args, strconv.Itoa(target.PID))...)
			p, err := b.Host.Spawn(bed.Nobody, exec.Command(program, args...))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Stop(limit) })
			if status := p.Status(); status != 1 {
				t.Errorf("status %d, want 1", status)
			}
			said := strings.Split(strings.TrimSuffix(p.Stderr(), "\n"), "\n")
			for _, want := range tt.want {
				found := false
				for _, line := range said {
					found = found || line == want
				}
				if !found {
					t.Errorf("said %q, which is not %q", said, want)
				}
			}
			for _, at := range []struct {
				name string
				n    *bed.NS
			}{{"host", b.Host}, {"target", target.NS}} {
				for _, port := range []int{2080, 2081} {
					addr := fmt.Sprintf(":%d", port)
					if l, err := at.n.Listen("tcp", addr); err != nil {
						t.Errorf("left behind on %s: %v", at.name, err)
					} else {
						l.Close()
					}
					if c, err := at.n.ListenPacket("udp", addr); err != nil {
						t.Errorf("left behind on %s: %v", at.name, err)
					} else {
						c.Close()
					}
				}
			}
		})
	}
}

// A port that is let go of a moment after the start is had. So a container can be started again at
// once.
func TestPortThatComesFree(t *testing.T) {
	b := newBed(t, defaultBed)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	l, err := b.Host.Listen("tcp", ":2080")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := b.Host.Spawn(bed.Nobody, exec.Command(program, "--config-net", "-f", "-d", "-t", "2080", strconv.Itoa(target.PID)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(limit) })
	waitFor(t, "an attempt", func() bool { return strings.Contains(p.Stderr(), "waits for a port") })
	l.Close()
	waitFor(t, "the port to be taken", func() bool {
		l, err := b.Host.Listen("tcp", ":2080")
		if err != nil {
			return errors.Is(err, unix.EADDRINUSE)
		}
		l.Close()
		return false
	})
	waitFor(t, "the start", func() bool { return strings.Contains(p.Stderr(), "confined") })
}

// Thousands of ports, of both protocols and both directions, as far as open files go.
func TestAllPorts(t *testing.T) {
	files := openFiles(t)
	share := min(48128, (files*7/8-200)/4)
	last := fmt.Sprintf("1024-%d", 1024+share-1)
	for _, tt := range []struct {
		name  string
		files int // that may be open
		args  []string
		ports int // at least so many are listened on
		want  []string
		not   string
	}{
		{"all", files, []string{"-t", "all", "-u", "all", "-T", "none", "-U", "none"}, min(63000, files*3/4),
			[]string{"Listen failed for HOST TCP port */1-1023: Permission denied"}, "panic"},
		{"a range, four times", files, []string{"-t", last, "-u", last, "-T", last, "-U", last}, 4 * share, nil, "failed"},
		{"more than files, and not all needed", 4000, []string{"-t", "all", "-u", "none", "-T", "none", "-U", "none"}, 3400,
			[]string{"Too many open files", "Each port takes an open file: of 4000 (RLIMIT_NOFILE), 3500 can be ports. Raise the limit or forward fewer ports"}, "panic"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, defaultBed)
			target, err := b.Target(patience(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			pidFile := scratch(t) + "/pid"
			args := append([]string{fmt.Sprintf("--nofile=%d:%d", tt.files, tt.files), program, "--config-net", "-f", "-q", "-P", pidFile}, tt.args...)
			began := time.Now()
			p, err := b.Host.Spawn(bed.Nobody, exec.Command("prlimit", append(args, strconv.Itoa(target.PID))...))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Stop(limit) })
			waitFor(t, "readiness", func() bool {
				select {
				case <-p.Done():
					t.Fatalf("status %d: %s", p.Status(), p.Stderr())
				default:
				}
				text, err := os.ReadFile(pidFile)
				return err == nil && strings.HasSuffix(string(text), "\n")
			})
			took := time.Since(began)
			u, err := bed.Tree(p.PID())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("ready after %v with %d open files and %d MiB", took, u.FDs, u.RSS>>20)
			if u.FDs < tt.ports {
				t.Errorf("%d open files, want at least %d", u.FDs, tt.ports)
			}
			if took > 20*time.Second {
				t.Errorf("ready after %v", took)
			}
			for _, want := range tt.want {
				if !strings.Contains(p.Stderr(), want) {
					t.Errorf("said %q, without %q", p.Stderr(), want)
				}
			}
			if strings.Contains(p.Stderr(), tt.not) {
				t.Errorf("said %q", p.Stderr())
			}
			if slices.Contains(tt.args, "none") { // else all ports of the target are ours
				greeter(t, target.NS, ":3000", "target")
				greeted(t, b.Far, bed.HostAddr4+":3000", "target")
			}
			began = time.Now()
			if status := p.Stop(limit); status != 0 {
				t.Errorf("status %d", status)
			}
			t.Logf("ended after %v", time.Since(began))
		})
	}

	t.Run("more than files, and all needed", func(t *testing.T) {
		b := newBed(t, defaultBed)
		target, err := b.Target(patience(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.Host.Spawn(bed.Nobody, exec.Command("prlimit", "--nofile=4000:4000", program, "--config-net", "-f", "-q",
			"-t", "1024-49151", "-T", "none", strconv.Itoa(target.PID)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Stop(limit) })
		if status := p.Status(); status != 1 {
			t.Errorf("status %d, want 1", status)
		}
		for _, want := range []string{
			"-49151: Too many open files\n", "Each port takes an open file: of 4000 (RLIMIT_NOFILE), 3500 can be ports.", "Couldn't listen on requested ports\n",
		} {
			if !strings.Contains(p.Stderr(), want) {
				t.Errorf("said %q, without %q", p.Stderr(), want)
			}
		}
	})
}
