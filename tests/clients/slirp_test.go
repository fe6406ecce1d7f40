package clients

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// slirp is a target connected by a program that acts as slirp4netns.
type slirp struct {
	*bed.Bed
	target *bed.Target
	proc   *bed.Process
}

// beside runs a test of ours and of the other implementation.
func beside(t *testing.T, test func(t *testing.T, program string)) {
	t.Helper()
	for _, impl := range []struct{ name, program string }{{"ours", ours}, {"Debian's", theirs}} {
		t.Run(impl.name, func(t *testing.T) {
			t.Parallel()
			test(t, impl.program)
		})
	}
}

// start connects a fresh target of b, and waits for the ready descriptor. operands come after the
// options; none means PID and tap0.
func start(t *testing.T, b *bed.Bed, program string, args ...string) *slirp {
	t.Helper()
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	return startIn(t, b, target, program, append(args, strconv.Itoa(target.PID), "tap0")...)
}

// startIn is start with a target that is there, and the complete arguments.
func startIn(t *testing.T, b *bed.Bed, target *bed.Target, program string, args ...string) *slirp {
	t.Helper()
	s := &slirp{Bed: b, target: target}
	r, w := pipe(t)
	cmd := exec.Command(program, append([]string{"--ready-fd=3"}, args...)...)
	cmd.ExtraFiles = []*os.File{w}
	var err error
	if s.proc, err = b.Host.Spawn(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { s.proc.Stop(limit) })
	// "1", and then the end of file: the descriptor is closed.
	if said, err := io.ReadAll(r); string(said) != "1" || err != nil {
		t.Fatalf("%s %v: ready descriptor says %q, %v; status %d: %s", program, args, said, err, s.proc.Status(), s.proc.Stderr())
	}
	return s
}

// shown runs ip(8) in the target.
func (s *slirp) shown(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.target.Output(patience(t, limit), bed.Root, "ip", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// has waits until ip(8) shows what matches.
func (s *slirp) has(t *testing.T, pattern string, args ...string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	waitFor(t, fmt.Sprintf("ip %v to show %q", args, pattern), func() bool { return re.MatchString(s.shown(t, args...)) })
}

// reaches has the target meet a server at addr that is to see it as from.
func (s *slirp) reaches(t *testing.T, addr, from string) {
	t.Helper()
	if told, err := meet(t, s.target.NS, addr, 1<<20); err != nil || told != from {
		t.Errorf("TCP to %s: seen as %q, %v; want %s", addr, told, err, from)
	}
}

func (s *slirp) asks(t *testing.T, addr, from string) {
	t.Helper()
	if told, err := ask(t, s.target.NS, addr); err != nil || told != from {
		t.Errorf("UDP to %s: seen as %q, %v; want %s", addr, told, err, from)
	}
}

func TestSlirpConfigures(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		greet(t, b.Far, ":5000")
		echo(t, b.Far, bed.FarAddr4+":5000")
		greet(t, b.Host, "127.0.0.1:5001")
		echo(t, b.Host, "127.0.0.1:5001")
		resolver(t, b.Far, bed.FarAddr4+":53")
		s := start(t, b, program, "-c", "--mtu", "9000")
		s.has(t, `inet 10\.0\.2\.100/24 `, "address", "show", "dev", "tap0")
		s.has(t, `default via 10\.0\.2\.2 `, "route")
		s.has(t, `UP.* mtu 9000`, "link", "show", "dev", "tap0")
		s.has(t, `LOOPBACK,UP`, "link", "show", "dev", "lo")
		s.reaches(t, bed.FarAddr4+":5000", bed.HostAddr4)
		s.asks(t, bed.FarAddr4+":5000", bed.HostAddr4)
		s.reaches(t, "10.0.2.2:5001", "127.0.0.1")
		s.asks(t, "10.0.2.2:5001", "127.0.0.1")
		for _, network := range []string{"udp", "tcp"} {
			if a, err := resolve(t, s.target.NS, network, "10.0.2.3:53", 5); err != nil || a != answerAddr {
				t.Errorf("DNS over %s: %s, %v", network, a, err)
			}
		}
		for _, host := range []string{"10.0.2.2", bed.FarAddr4} {
			if _, err := s.target.Output(patience(t, limit), bed.Root, "ping", "-c1", "-W5", host); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSlirpIPv6(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		greet(t, b.Far, "["+bed.FarAddr6+"]:5000")
		greet(t, b.Host, "[::1]:5001")
		resolver(t, b.Far, "["+bed.FarAddr6+"]:53")
		s := start(t, b, program, "-c", "-6")
		s.has(t, `inet6 fd00::[0-9a-f:]+/64 scope global`, "-6", "address", "show", "dev", "tap0", "-tentative")
		s.has(t, `default via fe80::`, "-6", "route")
		s.reaches(t, "["+bed.FarAddr6+"]:5000", bed.HostAddr6)
		s.reaches(t, "[fd00::2]:5001", "::1")
		for _, network := range []string{"udp", "tcp"} {
			if a, err := resolve(t, s.target.NS, network, "[fd00::3]:53", 5); err != nil || a != answerAddr {
				t.Errorf("DNS over %s: %s, %v", network, a, err)
			}
		}
	})
}

func TestSlirpLeases(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		s := start(t, b, program, "--cidr=10.9.0.0/16")
		if err := s.target.IP("link set tap0 up"); err != nil {
			t.Fatal(err)
		}
		script := filepath.Join(scratch(t), "script")
		if err := os.WriteFile(script, []byte("#!/bin/sh\n[ $1 != bound ] || echo $ip $mask $router $dns >&2\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("udhcpc", "-f", "-n", "-q", "-i", "tap0", "-t", "20", "-T", "1", "-s", script)
		p, err := s.target.Spawn(bed.Root, cmd)
		if err != nil {
			t.Fatal(err)
		}
		if status, said := p.Status(), p.Stderr(); status != 0 || !strings.Contains(said, "10.9.0.15 16 10.9.0.2 10.9.0.3\n") {
			t.Errorf("status %d: %s", status, said)
		}
	})
}

func TestSlirpCIDR(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		greet(t, b.Host, "127.0.0.1:5001")
		resolver(t, b.Far, bed.FarAddr4+":53")
		s := start(t, b, program, "-c", "--cidr", "10.9.0.0/16")
		s.has(t, `inet 10\.9\.0\.100/16 `, "address", "show", "dev", "tap0")
		s.has(t, `default via 10\.9\.0\.2 `, "route")
		s.reaches(t, "10.9.0.2:5001", "127.0.0.1")
		if a, err := resolve(t, s.target.NS, "udp", "10.9.0.3:53", 5); err != nil || a != answerAddr {
			t.Errorf("DNS: %s, %v", a, err)
		}
	})
}

func TestSlirpDisableHostLoopback(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		greet(t, b.Host, ":5001")
		s := start(t, b, program, "-c", "--disable-host-loopback")
		if _, err := s.target.Output(patience(t, limit), bed.Root, "ping", "-c1", "-W5", "10.0.2.2"); err != nil {
			t.Error(err)
		}
		if _, err := meet(t, s.target.NS, "10.0.2.2:5001", 1); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("TCP to the gateway: %v, want ENETUNREACH", err)
		}
		s.reaches(t, bed.HostAddr4+":5001", bed.HostAddr4)
	})
}

func TestSlirpDisableDNS(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		resolver(t, b.Far, bed.FarAddr4+":53")
		s := start(t, b, program, "-c", "--disable-dns")
		for _, network := range []string{"udp", "tcp"} {
			_, err := resolve(t, s.target.NS, network, "10.0.2.3:53", 2)
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("DNS over %s: %v, want a timeout", network, err)
			}
		}
	})
}

func TestSlirpOutboundAddress(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		for _, row := range []struct{ name, value, value6, want, want6 string }{
			{"address", "10.77.0.20", "fd77::20", "10.77.0.20", "fd77::20"},
			{"interface", "h1", "h1", "10.77.0.30", "fd77::30"},
		} {
			t.Run(row.name, func(t *testing.T) {
				b := newBed(t)
				greet(t, b.Far, ":5000")
				echo(t, b.Far, bed.FarAddr4+":5000")
				// h1 leads nowhere: it only has the address.
				err := b.Host.IP("addr add 10.77.0.20/24 dev h0\naddr add fd77::20/64 dev h0 nodad\n" +
					"link add h1 type veth peer name h1x\nlink set h1x up\nlink set h1 up\naddr add 10.77.0.30/32 dev h1\naddr add fd77::30/128 dev h1 nodad")
				if err != nil {
					t.Fatal(err)
				}
				// The kernel answers neighbour solicitations only for addresses of the interface
				// they come by.
				if err := b.Far.IP("route add fd77::30 via " + bed.HostAddr6); err != nil {
					t.Fatal(err)
				}
				s := start(t, b, program, "-c", "-6", "--outbound-addr", row.value, "--outbound-addr6="+row.value6)
				s.has(t, `inet6 fd00::[0-9a-f:]+/64 scope global`, "-6", "address", "show", "dev", "tap0", "-tentative")
				s.has(t, `default via fe80::`, "-6", "route")
				s.reaches(t, bed.FarAddr4+":5000", row.want)
				s.asks(t, bed.FarAddr4+":5000", row.want)
				s.reaches(t, "["+bed.FarAddr6+"]:5000", row.want6)
			})
		}
	})
}

func TestSlirpMACAddress(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		s := start(t, newBed(t), program, "-c", "--macaddress=0e:d4:18:d9:38:fb")
		s.has(t, `link/ether 0e:d4:18:d9:38:fb`, "link", "show", "dev", "tap0")
	})
}

func TestSlirpAttachesToATapThatIsThere(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		greet(t, b.Far, ":5000")
		target, err := b.Target(patience(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		err = target.IP("tuntap add name mytap mode tap\nlink set mytap up mtu 4000\naddr add 10.0.2.50/24 dev mytap\nroute add default via 10.0.2.2")
		if err != nil {
			t.Fatal(err)
		}
		s := startIn(t, b, target, program, strconv.Itoa(target.PID), "mytap")
		s.reaches(t, bed.FarAddr4+":5000", bed.HostAddr4)
		s.has(t, `mtu 4000`, "link", "show", "dev", "mytap")
		if got := s.shown(t, "-4", "-br", "address", "show", "dev", "mytap"); !strings.Contains(got, "10.0.2.50/24") || strings.Contains(got, ".100") {
			t.Errorf("addresses %s", got)
		}
	})
}

func TestSlirpWithoutConfigure(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		s := start(t, newBed(t), program)
		if got := s.shown(t, "-4", "-br", "address", "show", "dev", "tap0"); strings.Contains(got, "10.0.2") {
			t.Errorf("addresses %s", got)
		}
	})
}

func TestSlirpJoinsPaths(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		greet(t, b.Far, ":5000")
		target, err := b.Target(patience(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		ns := fmt.Sprintf("/proc/%d/ns/", target.PID)
		s := startIn(t, b, target, program, "--userns-path="+ns+"user", "--netns-type=path", ns+"net", "tap0", "-c", "surplus")
		s.reaches(t, bed.FarAddr4+":5000", bed.HostAddr4)
	})
}

// TestSlirpIsOneProcessToItsClient: who kills the process it has started has ended everything, and
// sees its streams close.
func TestSlirpIsOneProcessToItsClient(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		target, err := b.Target(patience(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		ready, readyW := pipe(t)
		stdout, stdoutW := pipe(t)
		cmd := exec.Command(program, "-c", "-r", "3", strconv.Itoa(target.PID), "tap0")
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stdoutW, stdoutW, []*os.File{readyW}
		if err := b.Host.Start(bed.Nobody, cmd); err != nil {
			t.Fatal(err)
		}
		readyW.Close()
		stdoutW.Close()
		if said, err := io.ReadAll(ready); string(said) != "1" {
			t.Fatalf("ready: %q, %v", said, err)
		}
		usage, err := bed.Tree(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		if _, err := io.ReadAll(stdout); err != nil {
			t.Error(err)
		}
		allGone(t, usage.PIDs)
	})
}

func TestSlirpEndsWithTheExitDescriptor(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		target, err := b.Target(patience(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		ready, readyW := pipe(t)
		exit, exitW := pipe(t)
		cmd := exec.Command(program, "-c", "-r", "3", "-e", "4", strconv.Itoa(target.PID), "tap0")
		cmd.ExtraFiles = []*os.File{readyW, exit}
		p, err := b.Host.Spawn(bed.Nobody, cmd)
		if err != nil {
			t.Fatal(err)
		}
		readyW.Close()
		if said, err := io.ReadAll(ready); string(said) != "1" {
			t.Fatalf("ready: %q, %v: %s", said, err, p.Stderr())
		}
		usage, err := bed.Tree(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		exitW.Close()
		select {
		case <-p.Done():
		case <-time.After(limit):
			t.Fatal("it goes on")
		}
		if status := p.Status(); status != 0 {
			t.Errorf("status %d: %s", status, p.Stderr())
		}
		allGone(t, usage.PIDs)
	})
}

// api sends a request to the API socket, as its clients do, and returns the answer.
func api(t *testing.T, socket, request string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	io.WriteString(c, request)
	c.(*net.UnixConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestSlirpAPI(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		socket := filepath.Join(scratch(t), "api")
		s := start(t, b, program, "-c", "--api-socket="+socket)
		if st, err := os.Stat(socket); err != nil || program == ours && st.Mode().Perm() != 0o600 {
			t.Errorf("socket %v, %v; want mode 0600", st.Mode(), err)
		}
		greet(t, s.target.NS, "10.0.2.100:80")
		echo(t, s.target.NS, "10.0.2.100:81")
		for _, row := range []struct{ request, want string }{
			{`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80}}`, `{"id":1}`},
			{`{"execute": "add_hostfwd", "arguments": {"proto": "udp", "host_port": 8081, "guest_port": 81}}`, `{"id":2}`},
			{`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8082, "guest_port": 80}}`, `{"id":3}`},
			{`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8083, "guest_addr": "", "guest_port": 80}}`, `{"id":4}`},
			{`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "", "host_port": 8084, "guest_port": 80}}`, `{"id":5}`},
		} {
			if got := strings.ReplaceAll(api(t, socket, row.request), " ", ""); got != `{"return":`+row.want+`}` {
				t.Errorf("%s: %s", row.request, got)
			}
		}
		list := strings.ReplaceAll(api(t, socket, `{"execute": "list_hostfwd"}`), " ", "")
		for _, want := range []string{
			`{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}`,
			`{"id":2,"proto":"udp","host_addr":"0.0.0.0","host_port":8081,"guest_addr":"10.0.2.100","guest_port":81}`,
			`{"id":3,"proto":"tcp","host_addr":"127.0.0.1","host_port":8082,"guest_addr":"10.0.2.100","guest_port":80}`,
			`{"id":4,"proto":"tcp","host_addr":"0.0.0.0","host_port":8083,"guest_addr":"10.0.2.100","guest_port":80}`,
			`{"id":5,"proto":"tcp","host_addr":"0.0.0.0","host_port":8084,"guest_addr":"10.0.2.100","guest_port":80}`,
		} {
			if !strings.Contains(list, want) {
				t.Errorf("list %s lacks %s", list, want)
			}
		}
		reach := func(n *bed.NS, addr string) {
			t.Helper()
			if _, err := meet(t, n, addr, 1<<20); err != nil {
				t.Errorf("TCP to %s: %v", addr, err)
			}
		}
		reach(b.Far, bed.HostAddr4+":8080")
		reach(b.Host, "127.0.0.1:8080")
		reach(b.Host, "127.0.0.1:8082")
		reach(b.Far, bed.HostAddr4+":8083")
		reach(b.Far, bed.HostAddr4+":8084")
		if _, err := ask(t, b.Far, bed.HostAddr4+":8081"); err != nil {
			t.Errorf("UDP from outside: %v", err)
		}
		if program == ours { // the other's answers do not get back to where they were asked from
			if _, err := ask(t, b.Host, "127.0.0.1:8081"); err != nil {
				t.Errorf("UDP from the host: %v", err)
			}
		}
		if _, err := meet(t, b.Far, bed.HostAddr4+":8082", 1); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("TCP to 127.0.0.1's port from outside: %v, want refused", err)
		}
		for _, row := range []struct{ name, request, want string }{
			{"a port that is taken", `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8080, "guest_port": 80}}`, "bad request: add_hostfwd: slirp_add_hostfwd failed"},
			{"no JSON", `not JSON`, "bad request: cannot parse JSON"},
			{"no request", `{"foo": 1}`, "bad request: no execute found"},
			{"an unknown one", `{"execute": "bogus"}`, "bad request: unknown execute"},
			{"a protocol", `{"execute": "add_hostfwd", "arguments": {"proto": "sctp", "host_port": 1, "guest_port": 1}}`, "bad request: add_hostfwd: bad arguments.proto"},
			{"no port", `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "guest_port": 1}}`, "bad request: add_hostfwd: bad arguments.host_port"},
			{"an id", `{"execute": "remove_hostfwd", "arguments": {"id": 77}}`, "bad request: remove_hostfwd: bad arguments.id"},
			{"too much", `{"execute": "` + strings.Repeat("x", 4096-len(`{"execute": ""}`)) + `"}`, "bad request: too large message"},
		} {
			if got := api(t, socket, row.request); !strings.Contains(got, row.want) || !strings.Contains(got, `"desc"`) {
				t.Errorf("%s: %s, want %s", row.name, got, row.want)
			}
		}
		for id := 1; id <= 5; id++ {
			api(t, socket, fmt.Sprintf(`{"execute": "remove_hostfwd", "arguments": {"id": %d}}`, id))
		}
		if _, err := meet(t, b.Host, "127.0.0.1:8080", 1); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("TCP to a port that was removed: %v, want refused", err)
		}
		// The port can be had again at once.
		l, err := b.Host.Listen("tcp", "0.0.0.0:8080")
		if err != nil {
			t.Error(err)
		} else {
			l.Close()
		}
	})
}

// TestSlirpStatus: what is refused is refused alike, with a line that says why.
func TestSlirpStatus(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(target.PID)
	long := "/run/" + strings.Repeat("x", 110)
	for _, row := range []struct {
		name string
		args []string
		want string // what is said by both, on whichever stream
	}{
		{"help", []string{"--help"}, "--netns-type"},
		{"version", []string{"-v"}, "SLIRP_CONFIG_VERSION_MAX: "},
		{"nothing", nil, "slirp4netns"},
		{"an unknown option", []string{"--bogus", pid}, "unrecognized option '--bogus'"},
		{"a bad CIDR", []string{"--cidr=foo", pid, "tap0"}, "invalid CIDR"},
		{"no network", []string{"--cidr=10.0.2.100/24", pid, "tap0"}, "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"},
		{"a small network", []string{"--cidr=10.0.2.0/26", pid, "tap0"}, "prefix length needs to be 1-25"},
		{"a long socket path", []string{"-a", long, pid, "tap0"}, "too long"},
		{"a type", []string{"--netns-type=foo", pid, "tap0"}, "netns-type"},
		{"no such process", []string{"4194303", "tap0"}, ""},
		{"no such path", []string{"--netns-type=path", "/nonexistent", "tap0"}, "No such file or directory"},
		{"a machine, set up", []string{"--target-type=bess", "-c", "/run/s"}, "--configure conflicts with --target-type=bess"},
		{"a machine's namespace", []string{"--target-type=bess", "--netns-type=path", "/run/s"}, "--netns-type conflicts with --target-type=bess"},
		{"a machine's tap", []string{"--target-type=bess", "/run/s", "tap0"}, "too many arguments"},
		{"a machine's long path", []string{"--target-type=bess", long}, "the specified BESS socket path is too long (>= 108)"},
		{"a machine nowhere", []string{"--target-type=bess", "/nonexistent/s"}, "No such file or directory"},
		{"no such user namespace", []string{"--userns-path=/nonexistent", "--netns-type=path", "/proc/" + pid + "/ns/net", "tap0"}, "userns path doesn't exist: /nonexistent"},
		{"no such interface", []string{"--outbound-addr=nosuch", pid, "tap0"}, "outbound-addr has to be valid ipv4 address or interface name"},
		{"a MAC address alone", []string{"--macaddress=0e:d4:18:d9:38:fb", pid, "tap0"}, "--macaddr cannot be specified when --configure or -c is not specified"},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := finish(t, b.Host, nil, append([]string{ours}, row.args...)...)
			d := finish(t, b.Host, nil, append([]string{theirs}, row.args...)...)
			if diff := cmp.Diff(d.status, o.status); diff != "" {
				t.Errorf("status (-Debian's +ours): %s%s", diff, o.errors)
			}
			for who, o := range map[string]outcome{"ours": o, "Debian's": d} {
				if !strings.Contains(o.out+o.errors, row.want) {
					t.Errorf("%s says %q, want %q", who, o.out+o.errors, row.want)
				}
			}
			if said := map[bool]string{true: o.out, false: o.errors}[o.status == 0]; !strings.Contains(said, row.want) {
				t.Errorf("status %d, and what is said is on the wrong stream", o.status)
			}
		})
	}
}

// TestSlirpBadExitDescriptor: it is taken for one that has an event.
func TestSlirpBadExitDescriptor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{ours, theirs} {
		if o := finish(t, b.Host, nil, program, "-c", "-e", "99", strconv.Itoa(target.PID), "tap0"); o.status != 0 {
			t.Errorf("%s: %+v", program, o)
		}
	}
}

// TestSlirpSandbox: the process that the client has started has no capabilities but one, even if it
// was started by root, and nor have those that work for it. Its root directory has /etc and /run,
// with what is mounted there.
func TestSlirpSandbox(t *testing.T) {
	t.Parallel()
	for _, user := range []bed.User{bed.Root, bed.Nobody} {
		t.Run(map[bed.User]string{bed.Root: "root", bed.Nobody: "a user"}[user], func(t *testing.T) {
			beside(t, func(t *testing.T, program string) { slirpSandbox(t, user, program) })
		})
	}
}

// slirpSandbox is that test of a program that root starts with a path, as Podman does in its
// namespace, or a plain user with a PID, as rootlesskit does.
func slirpSandbox(t *testing.T, user bed.User, program string) {
	b := newBed(t)
	greet(t, b.Far, ":5000")
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	mounted := scratch(t)
	if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mounted, unix.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(mounted, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ready, readyW := pipe(t)
	args := []string{"-c", "-r", "3", "--enable-sandbox", "--enable-seccomp"}
	if user == bed.Root {
		args = append(args, "--netns-type=path", fmt.Sprintf("/proc/%d/ns/net", target.PID), "tap0")
	} else {
		args = append(args, strconv.Itoa(target.PID), "tap0")
	}
	cmd := exec.Command(program, args...)
	cmd.ExtraFiles = []*os.File{readyW}
	s := &slirp{Bed: b, target: target}
	if s.proc, err = b.Host.Spawn(user, cmd); err != nil {
		t.Fatal(err)
	}
	readyW.Close()
	t.Cleanup(func() { s.proc.Stop(limit) })
	if said, err := io.ReadAll(ready); string(said) != "1" {
		t.Fatalf("ready: %q, %v: %s", said, err, s.proc.Stderr())
	}
	usage, err := bed.Tree(s.proc.PID())
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/proc/%d/root", s.proc.PID())
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	for _, want := range []string{"etc", "run"} {
		if !slices.Contains(names, want) {
			t.Errorf("root directory has %v", names)
		}
	}
	for _, hidden := range []string{"home", "root", "var"} {
		if slices.Contains(names, hidden) {
			t.Errorf("root directory has %v", names)
		}
	}
	if _, err := os.Stat(filepath.Join(root, mounted, "file")); err != nil {
		t.Errorf("what is mounted below /run: %v", err)
	}
	const most = 1 << unix.CAP_NET_BIND_SERVICE
	for _, pid := range usage.PIDs {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`Cap(?:Inh|Prm|Eff|Amb):\t([0-9a-f]+)`).FindAllStringSubmatch(string(status), -1) {
			if caps, err := strconv.ParseUint(m[1], 16, 64); err != nil || caps&^most != 0 {
				t.Errorf("process %d has %s, %v", pid, m[0], err)
			}
		}
	}
	s.reaches(t, bed.FarAddr4+":5000", bed.HostAddr4)
}
