package clients

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// pod is where a user's Podman lives: a process that is root in a user namespace of its own, with a
// mount namespace in which network namespaces are bound to paths.
type pod struct {
	*bed.Bed
	keeper *bed.Process
	dir    string
}

func newPod(t *testing.T) *pod {
	t.Helper()
	p := &pod{Bed: newBed(t), dir: scratch(t)}
	ready, readyW := pipe(t)
	keeper := exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
		"mount -t tmpfs tmpfs "+p.dir+" && echo ready >&3 && exec 3>&- && exec sleep infinity")
	keeper.ExtraFiles = []*os.File{readyW}
	var err error
	if p.keeper, err = p.Host.Spawn(bed.Nobody, keeper); err != nil {
		t.Fatal(err)
	}
	readyW.Close()
	t.Cleanup(func() { p.keeper.Stop(0) })
	if b, err := io.ReadAll(ready); len(b) == 0 || err != nil {
		t.Fatalf("no place for Podman: %v: %s", err, p.keeper.Stderr())
	}
	return p
}

// command is argv as Podman would run it.
func (p *pod) command(argv ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(p.keeper.PID()), "-U", "-m", "--preserve-credentials", "--"}, argv...)...)
	cmd.Env = clientEnv(home, p.dir)
	return cmd
}

// run runs argv there, and returns what Podman collects: both streams until they are closed.
func (p *pod) run(t *testing.T, files []*os.File, argv ...string) (status int, said string) {
	t.Helper()
	cmd := p.command(argv...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, files
	if err := p.Host.Start(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(limit):
		cmd.Process.Kill()
		t.Fatalf("%v holds its streams open", argv)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

func (p *pod) must(t *testing.T, argv ...string) string {
	t.Helper()
	status, said := p.run(t, nil, argv...)
	if status != 0 {
		t.Fatalf("%v: status %d: %s", argv, status, said)
	}
	return said
}

// netns makes a network namespace bound to a path. A process keeps it, too, until the path goes.
func (p *pod) netns(t *testing.T, name string) (path string) {
	t.Helper()
	path = filepath.Join(p.dir, name)
	p.must(t, "sh", "-c", ": >"+path+" && unshare --net="+path+" true")
	return path
}

// open returns the namespace at path.
func (p *pod) open(t *testing.T, path string) *bed.NS {
	t.Helper()
	holder, err := p.Host.Spawn(bed.Nobody, p.command("nsenter", "--net="+path, "sleep", "infinity"))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Stop(0)
	var n *bed.NS
	err = bed.Wait(patience(t, limit), "the namespace", func() (bool, error) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", holder.PID()))
		if err != nil {
			return false, fmt.Errorf("%w: %s", err, holder.Stderr())
		}
		return string(comm) == "sleep\n", nil
	})
	if err == nil {
		n, err = bed.OpenNS(filepath.Base(path), holder.PID())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// remove ends a namespace as Podman does: the path is unmounted and deleted.
func (p *pod) remove(t *testing.T, path string) {
	t.Helper()
	p.must(t, "sh", "-c", "umount -l "+path+" && rm "+path)
}

// Podman's last arguments.
func podmanArgs(path string, args ...string) []string {
	given := strings.Join(args, " ")
	line := append([]string{pasta, "--config-net"}, args...)
	if !strings.Contains(given, "--dns-forward") {
		line = append(line, "--dns-forward", "169.254.1.1")
	}
	for _, o := range [][]string{{"-t", "--tcp-ports"}, {"-u", "--udp-ports"}, {"-T", "--tcp-ns"}, {"-U", "--udp-ns"}} {
		if !strings.Contains(" "+given, " "+o[0]+" ") && !strings.Contains(given, o[1]) {
			line = append(line, o[0], "none")
		}
	}
	line = append(line, "--no-map-gw", "--quiet", "--netns", path)
	if !strings.Contains(given, "--map-guest-addr") {
		line = append(line, "--map-guest-addr", "169.254.1.2")
	}
	return line
}

var tentative = regexp.MustCompile("scope global.* tentative")

func TestPodmanCommandLines(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		args []string
		addr string // expected
		tcp  []string
		udp  []string
	}{
		{"plain", nil, bed.HostAddr4 + "/24", nil, nil},
		{"a published port", []string{"-t", "5000-5000:5000-5000"}, bed.HostAddr4 + "/24", []string{bed.HostAddr4 + ":5000", "127.0.0.1:5000"}, nil},
		{"by address", []string{"-t", bed.HostAddr4 + "/5000-5000:5000-5000"}, bed.HostAddr4 + "/24", []string{bed.HostAddr4 + ":5000"}, nil},
		{"IPv6, bare", []string{"-t", "::1/5000-5000:5000-5000", "-u", "::1/5000-5000:5000-5000"}, bed.HostAddr4 + "/24", []string{"[::1]:5000"}, []string{"[::1]:5000"}},
		{"a range", []string{"-t", "6000-6009:5000-5009"}, bed.HostAddr4 + "/24", []string{"127.0.0.1:6000", bed.HostAddr4 + ":6000"}, nil},
		{"UDP", []string{"-u", bed.HostAddr4 + "/5000-5000:5000-5000"}, bed.HostAddr4 + "/24", nil, []string{bed.HostAddr4 + ":5000"}},
		{"by interface", []string{"--tcp-ports", bed.HostAddr4 + "%h0/5000:5000", "--udp-ports", "fd77::2%h0/5000:5000"}, bed.HostAddr4 + "/24", []string{bed.HostAddr4 + ":5000"}, []string{"[" + bed.HostAddr6 + "]:5000"}},
		{"by loopback", []string{"--tcp-ports", "127.0.0.1%lo/5000:5000", "--udp-ports", "::1%lo/5000:5000"}, bed.HostAddr4 + "/24", []string{"127.0.0.1:5000"}, []string{"[::1]:5000"}},
		{"an address", []string{"-a", "192.0.2.9", "-g", "192.0.2.1"}, "192.0.2.9/24", nil, nil},
		{"an address and its length", []string{"-a", "192.0.2.9", "-n", "25", "-g", "192.0.2.1", "-m", "1500", "-4"}, "192.0.2.9/25", nil, nil},
		{"an IPv6 address", []string{"-a", "2001:db8::9", "-g", "2001:db8::1", "-6"}, "2001:db8::9/64", nil, nil},
		{"a name and two hardware addresses", []string{"-I", "box0", "--ns-mac-addr", "02:00:00:00:00:01", "--ns-mac-addr", "02:00:00:00:00:02"}, bed.HostAddr4 + "/24", nil, nil},
		{"a resolver of the user's", []string{"--dns-forward", "192.0.2.53"}, bed.HostAddr4 + "/24", nil, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			resolver(t, p.Far, bed.FarAddr4+":53")
			greet(t, p.Far, ":5000")
			path := p.netns(t, "netns")
			line := podmanArgs(path, row.args...)
			p.must(t, line...)
			// The namespace is completely set up: nothing is waited for.
			n := p.open(t, path)
			out, err := n.Output(patience(t, limit), bed.Root, "ip", "address")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out, " "+row.addr+" ") || tentative.MatchString(out) {
				t.Errorf("no address %s: %s", row.addr, out)
			}
			given := strings.Join(row.args, " ")
			if strings.Contains(given, "box0") && (!strings.Contains(out, ": box0:") || !strings.Contains(out, "02:00:00:00:00:02")) {
				t.Errorf("not as it was asked for: %s", out)
			}
			far, want := net.JoinHostPort(bed.FarAddr4, "5000"), bed.HostAddr4
			if strings.Contains(given, "-6") {
				far, want = net.JoinHostPort(bed.FarAddr6, "5000"), bed.HostAddr6
			}
			if told, err := meet(t, n, far, 1<<20); err != nil || told != want {
				t.Errorf("outwards: %s, %v", told, err)
			}
			if !strings.Contains(given, "-6") {
				dns := "169.254.1.1:53"
				if strings.Contains(given, "192.0.2.53") {
					dns = "192.0.2.53:53"
				}
				for _, network := range []string{"udp", "tcp"} {
					if a, err := resolve(t, n, network, dns, 5); err != nil || a != answerAddr {
						t.Errorf("DNS over %s: %s, %v", network, a, err)
					}
				}
			}
			greet(t, n, ":5000")
			echo(t, n, ":5000")
			from := func(addr string) *bed.NS {
				if strings.HasPrefix(addr, "127.") || strings.HasPrefix(addr, "[::1]") {
					return p.Host
				}
				return p.Far
			}
			for _, addr := range row.tcp {
				if _, err := meet(t, from(addr), addr, 10<<20); err != nil {
					t.Errorf("TCP to %s: %v", addr, err)
				}
			}
			for _, addr := range row.udp {
				if _, err := ask(t, from(addr), addr); err != nil {
					t.Errorf("UDP to %s: %v", addr, err)
				}
			}
			p.remove(t, path)
		})
	}
}

// TestPodmanTriesAgain: an option that we had not would be left out.
func TestPodmanTriesAgain(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	line := podmanArgs(p.netns(t, "netns"))
	for i, a := range line {
		if a == "--map-guest-addr" {
			line[i] = "--map-guest-addr-of-the-future"
		}
	}
	status, said := p.run(t, nil, line...)
	if status != 1 || !strings.Contains(said, "unrecognized option '--map-guest-addr") {
		t.Errorf("status %d: %s", status, said)
	}
	p.must(t, line[:len(line)-2]...)
}

// TestPodmanHearsOneLine: Podman shows whatever is said.
func TestPodmanHearsOneLine(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	l, err := p.Host.Listen("tcp", ":5000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, line := range map[string][]string{
		"a port that is taken":          podmanArgs(p.netns(t, "a"), "-t", "5000-5000:5000-5000"),
		"a namespace that is not there": podmanArgs(filepath.Join(p.dir, "none")),
		"an interface":                  podmanArgs(p.netns(t, "b"), "-i", "nosuch"),
	} {
		status, said := p.run(t, nil, line...)
		if status != 1 || said == "" || strings.Count(said, "\n") > 2 {
			t.Errorf("%s: status %d: %s", name, status, said)
		}
	}
	if status, said := p.run(t, nil, pasta, "--version"); status != 0 || said == "" {
		t.Errorf("--version: status %d: %s", status, said)
	}
}

// TestPodmansDescriptorsAreLetGoOf: it leaks some, with high numbers, and would hang.
func TestPodmansDescriptorsAreLetGoOf(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	r, w := pipe(t)
	files := make([]*os.File, 249)
	for i := range files {
		files[i] = w
	}
	if status, said := p.run(t, files, podmanArgs(p.netns(t, "netns"))...); status != 0 {
		t.Fatalf("status %d: %s", status, said)
	}
	w.Close()
	r.SetDeadline(time.Now().Add(limit))
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("somebody holds a leaked pipe: %v", err)
	}
}

// TestPodmansContainers: several side by side, each ends with its path, and a container that is
// started again has its port.
func TestPodmansContainers(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	const many = 4
	published := func(i int) []string {
		port := 7000 + i
		return []string{"-t", fmt.Sprintf("%d-%d:80-80", port, port), "-u", fmt.Sprintf("%d-%d:80-80", port, port)}
	}
	paths := make([]string, many)
	for i := range paths {
		name := fmt.Sprint("netns", i)
		paths[i] = p.netns(t, name)
		p.must(t, podmanArgs(paths[i], published(i)...)...)
		greet(t, p.open(t, paths[i]), ":80")
	}
	for i := range paths {
		if _, err := meet(t, p.Far, fmt.Sprintf("%s:%d", bed.HostAddr4, 7000+i), 1<<20); err != nil {
			t.Error(err)
		}
	}
	for range 5 {
		p.remove(t, paths[0])
		paths[0] = p.netns(t, "again")
		// No waiting here either: the port is free, or this fails.
		p.must(t, podmanArgs(paths[0], published(0)...)...)
		p.remove(t, paths[0])
		paths[0] = p.netns(t, "again")
		p.must(t, podmanArgs(paths[0], published(0)...)...)
	}
	for _, path := range paths {
		p.remove(t, path)
	}
	for i := range paths {
		bind(t, p.Host, fmt.Sprintf("0.0.0.0:%d", 7000+i))
	}
}

// TestPodmansBridgeNetworks: one for all of them, by a PID file, ended by a signal.
func TestPodmansBridgeNetworks(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	pidFile := filepath.Join(scratch(t), "pid")
	p.must(t, podmanArgs(p.netns(t, "rootless-netns"), "--pid", pidFile)...)
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("it does not run: %v", err)
	}
	unix.Kill(pid, unix.SIGTERM)
	allGone(t, []int{pid})
}

// podman is Debian's, which knows slirp4netns only.
func podman(b *bed.Bed, dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("podman", append([]string{"--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc",
		"--storage-driver=vfs", "--root=" + dir + "/root", "--runroot=" + dir + "/run", "--network-cmd-path=" + ours}, args...)...)
	cmd.Env = append(clientEnv(dir, "/run/user/65534"), "CONTAINERS_CONF=/dev/null")
	return cmd
}

func TestPodman(t *testing.T) {
	needsClients(t)
	b := newBed(t)
	website(t, b.Far, ":80", "far")
	resolver(t, b.Far, bed.FarAddr4+":53")
	dir, err := os.MkdirTemp(home, "podman")
	if err == nil {
		err = os.Chown(dir, 65534, 65534)
	}
	if err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) string {
		t.Helper()
		cmd := podman(b, dir, args...)
		var out bytes.Buffer
		cmd.Stdout = &out
		p, err := b.Host.Spawn(bed.Nobody, cmd)
		if err != nil {
			t.Fatal(err)
		}
		if status := p.Status(); status != 0 {
			t.Fatalf("podman %v: status %d: %s%s", args, status, &out, p.Stderr())
		}
		return strings.TrimSpace(out.String())
	}
	do("import", "/run/image.tar", "box")
	got := do("run", "--rm", "--network=slirp4netns", "box", "sh", "-c",
		"ip address show tap0 && wget -qO- http://"+bed.FarAddr4+"/ && nslookup -type=a www.example.org && ping -c 1 -W 5 "+bed.FarAddr4)
	for _, want := range []string{"10.0.2.100/24", "far " + bed.HostAddr4, answerAddr, " 0% packet loss"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s lacks %q", got, want)
		}
	}
	for _, handler := range []string{"rootlesskit", "slirp4netns"} {
		t.Run(handler, func(t *testing.T) {
			web := []string{"run", "-d", "--name=web", "--network=slirp4netns:port_handler=" + handler + ",cidr=10.9.0.0/24,enable_ipv6=true",
				"-p", "8080:80", "-p", "127.0.0.1:8081:80", "box", "sh", "-c", "exec httpd -f -p 80 -h /www"}
			do(web...)
			oursRuns(t)
			for range 2 {
				serves(t, b.Host, "127.0.0.1:8080")
				serves(t, b.Far, bed.HostAddr4+":8080")
				serves(t, b.Host, "127.0.0.1:8081")
				do("restart", "-t", "0", "web")
			}
			do("rm", "-f", "-t", "0", "web")
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			err := bed.Wait(ctx, "slirp4netns to end", func() (bool, error) {
				pids, err := bed.Alive("slirp4netns")
				return len(pids) == 0, err
			})
			if err != nil {
				t.Error(err)
			}
			bind(t, b.Host, "0.0.0.0:8080")
		})
	}
}
