package clients

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// alone fails the test if a translator is left, once there is time to end. The test must not run
// beside others.
func alone(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit) // that of the test is over
	defer cancel()
	err := bed.Wait(ctx, "all translators to end", func() (bool, error) {
		pids, err := bed.Alive("pasta", "passt", "slirp4netns", "rootlesskit")
		return len(pids) == 0, err
	})
	if err != nil {
		t.Error(err)
	}
}

// oursRuns fails the test unless translators run, all of them ours. The test must not run beside
// others.
func oursRuns(t *testing.T) {
	t.Helper()
	runs(t, filepath.Join(filepath.Dir(pasta), "passt"))
}

// runs fails the test unless translators run, and all of them are the program at path.
func runs(t *testing.T, path string) {
	t.Helper()
	pids, err := bed.Alive("pasta", "passt", "slirp4netns")
	if err != nil || len(pids) == 0 {
		t.Errorf("translators %v, %v", pids, err)
	}
	for _, pid := range pids {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != path {
			t.Errorf("the translator is %s, %v; want %s", exe, err, path)
		}
	}
}

// homeless fails the test unless processes of that name run, and none of them has users'
// directories below its root directory.
func homeless(t *testing.T, name string) {
	t.Helper()
	pids, err := bed.Alive(name)
	if err != nil || len(pids) == 0 {
		t.Errorf("%s: %v, %v", name, pids, err)
	}
	for _, pid := range pids {
		for _, dir := range []string{"home", "root", "var"} {
			if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root/%s", pid, dir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("process %d has /%s, %v", pid, dir, err)
			}
		}
	}
}

// kit is a namespace that rootlesskit has made.
type kit struct {
	*bed.Bed
	inside *bed.NS
	proc   *bed.Process
}

// startKit runs rootlesskit until the test ends. With detached, its child stays in the host's
// network and the namespace is apart.
func startKit(t *testing.T, b *bed.Bed, program string, detached bool, args ...string) *kit {
	t.Helper()
	dir := scratch(t)
	pidFile := filepath.Join(dir, "pid")
	script := "echo $$ >" + pidFile + ".new && mv " + pidFile + ".new " + pidFile + " && exec sleep infinity"
	args = append([]string{"--state-dir=" + filepath.Join(dir, "state"), "--copy-up=/etc"}, args...)
	if detached {
		args = append(args, "--detach-netns", "nsenter", "--net="+filepath.Join(dir, "state/netns"))
	}
	k := &kit{Bed: b}
	cmd := exec.Command(program, append(args, "sh", "-c", script)...)
	cmd.Env = clientEnv(home, dir)
	var err error
	if k.proc, err = b.Host.Spawn(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.proc.Stop(limit)
		if t.Failed() {
			t.Logf("%v: %s", cmd.Args, k.proc.Stderr())
		}
		alone(t)
	})
	var pid int
	err = bed.Wait(patience(t, clientLimit), "rootlesskit's child", func() (bool, error) {
		select {
		case <-k.proc.Done():
			return false, fmt.Errorf("%v ended with status %d: %s", cmd.Args, k.proc.Status(), k.proc.Stderr())
		default:
		}
		text, err := os.ReadFile(pidFile)
		if err != nil {
			return false, nil
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return true, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if k.inside, err = bed.OpenNS("inside", pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.inside.Close() })
	return k
}

func TestRootlesskit(t *testing.T) {
	needsClients(t)
	const debian = "/usr/bin/rootlesskit"
	v2, v3 := filepath.Join(tools, "rootlesskit"), filepath.Join(tools, "3/rootlesskit")
	publish := []string{"-p", "0.0.0.0:8080:80/tcp", "-p", "0.0.0.0:8081:81/udp"}
	for _, row := range []struct {
		name    string
		program string
		args    []string
	}{
		{"pasta, implicit", v2, []string{"--net=pasta", "--port-driver=implicit"}},
		{"pasta, none", v2, []string{"--net=pasta", "--port-driver=none"}},
		{"pasta, no loopback", v2, []string{"--net=pasta", "--port-driver=implicit", "--disable-host-loopback"}},
		{"pasta, IPv6", v2, []string{"--net=pasta", "--port-driver=implicit", "--ipv6"}},
		{"pasta, detached", v2, []string{"--net=pasta", "--port-driver=implicit", "--detach-netns"}},
		{"pasta, MTU 1500", v2, []string{"--net=pasta", "--port-driver=none", "--mtu=1500"}},
		{"rootlesskit 3, pasta, implicit", v3, []string{"--net=pasta", "--port-driver=implicit"}},
		{"rootlesskit 3, pasta, none, IPv6", v3, []string{"--net=pasta", "--port-driver=none", "--ipv6"}},
		{"rootlesskit 3, pesto", v3, append([]string{"--net=pasta", "--port-driver=pesto"}, publish...)},
		{"rootlesskit 3, pesto, no loopback", v3, append([]string{"--net=pasta", "--port-driver=pesto", "--disable-host-loopback"}, publish...)},
		{"rootlesskit 3, pesto, IPv6, detached", v3, append([]string{"--net=pasta", "--port-driver=pesto", "--ipv6", "--detach-netns"}, publish...)},
		{"slirp4netns, none", v2, []string{"--net=slirp4netns", "--port-driver=none"}},
		{"slirp4netns, builtin", v2, append([]string{"--net=slirp4netns", "--port-driver=builtin"}, publish...)},
		{"slirp4netns, its own ports", v2, append([]string{"--net=slirp4netns", "--port-driver=slirp4netns"}, publish...)},
		{"slirp4netns, no loopback", v2, []string{"--net=slirp4netns", "--port-driver=none", "--disable-host-loopback"}},
		{"slirp4netns, IPv6", v2, []string{"--net=slirp4netns", "--port-driver=none", "--ipv6"}},
		{"slirp4netns, detached", v2, append([]string{"--net=slirp4netns", "--port-driver=builtin", "--detach-netns"}, publish...)},
		{"slirp4netns, confined", v2, []string{"--net=slirp4netns", "--port-driver=none", "--slirp4netns-sandbox=true", "--slirp4netns-seccomp=true"}},
		{"slirp4netns, CIDR", v2, []string{"--net=slirp4netns", "--port-driver=none", "--cidr=10.9.0.0/24"}},
		{"rootlesskit 1, builtin", debian, append([]string{"--net=slirp4netns", "--port-driver=builtin"}, publish...)},
		{"rootlesskit 1, its own ports", debian, append([]string{"--net=slirp4netns", "--port-driver=slirp4netns"}, publish...)},
		{"rootlesskit 1, IPv6, no loopback", debian, []string{"--net=slirp4netns", "--port-driver=none", "--ipv6", "--disable-host-loopback"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			has := func(word string) bool { return strings.Contains(strings.Join(row.args, " "), word) }
			b := newBed(t)
			greet(t, b.Far, ":5000")
			echo(t, b.Far, bed.FarAddr4+":5000")
			greet(t, b.Host, "127.0.0.1:5001")
			greet(t, b.Host, "[::1]:5001")
			resolver(t, b.Far, bed.FarAddr4+":53")
			detached := has("--detach-netns")
			args := []string{}
			for _, a := range row.args {
				if a != "--detach-netns" {
					args = append(args, a)
				}
			}
			k := startKit(t, b, row.program, detached, args...)
			oursRuns(t)
			if has("sandbox=true") {
				homeless(t, "slirp4netns")
			}
			net := "10.0.2."
			if has("--cidr") {
				net = "10.9.0."
			}
			k.configured(t, net+"100/24", has("1500"))
			k.reaches(t, bed.FarAddr4+":5000", bed.HostAddr4)
			k.asks(t, bed.FarAddr4+":5000", bed.HostAddr4)
			for _, network := range []string{"udp", "tcp"} {
				if a, err := resolve(t, k.inside, network, net+"3:53", 5); err != nil || a != answerAddr {
					t.Errorf("DNS over %s: %s, %v", network, a, err)
				}
			}
			if _, err := k.inside.Output(patience(t, limit), bed.Root, "ping", "-c1", "-W5", bed.FarAddr4); err != nil {
				t.Error(err)
			}
			if has("--disable-host-loopback") {
				// packets lead to nowhere
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				if c, err := k.inside.Dial(ctx, "tcp", net+"2:5001"); err == nil {
					t.Error("the host's loopback is reached")
					c.Close()
				}
				cancel()
			} else {
				k.reaches(t, net+"2:5001", "127.0.0.1")
			}
			if has("--ipv6") {
				k.ipv6(t, !has("--disable-host-loopback"))
			}
			k.ports(t, has("implicit"), has("8080"))
		})
	}
}

// configured looks at the interface.
func (k *kit) configured(t *testing.T, addr string, small bool) {
	t.Helper()
	out, err := k.inside.Output(patience(t, limit), bed.Root, "ip", "address", "show", "dev", "tap0")
	if err != nil {
		t.Fatal(err)
	}
	mtu := "mtu 65520 "
	if small {
		mtu = "mtu 1500 "
	}
	if !strings.Contains(out, " "+addr+" ") || !strings.Contains(out, mtu) {
		t.Errorf("tap0 lacks %s or %s: %s", addr, mtu, out)
	}
}

func (k *kit) reaches(t *testing.T, addr, from string) {
	t.Helper()
	if told, err := meet(t, k.inside, addr, 4<<20); err != nil || told != from {
		t.Errorf("TCP to %s: seen as %q, %v; want %s", addr, told, err, from)
	}
}

func (k *kit) asks(t *testing.T, addr, from string) {
	t.Helper()
	if told, err := ask(t, k.inside, addr); err != nil || told != from {
		t.Errorf("UDP to %s: seen as %q, %v; want %s", addr, told, err, from)
	}
}

// ipv6 waits for an address and a route, and uses them. The host's loopback is the default router's
// address.
func (k *kit) ipv6(t *testing.T, loopback bool) {
	t.Helper()
	var router string
	waitFor(t, "IPv6", func() bool {
		addrs, err := k.inside.Output(t.Context(), bed.Root, "ip", "-6", "-o", "address", "show", "dev", "tap0", "scope", "global", "-tentative")
		if err != nil || addrs == "" {
			return false
		}
		route, err := k.inside.Output(t.Context(), bed.Root, "ip", "-6", "-o", "route", "show", "default")
		f := strings.Fields(route)
		if err != nil || len(f) < 3 {
			return false
		}
		router = f[2]
		return true
	})
	// Not the far peer's other address: that is the gateway's, and may stand for the loopback.
	if err := k.Far.IP("addr add fd77::9/64 dev f0 nodad"); err != nil {
		t.Fatal(err)
	}
	k.reaches(t, "[fd77::9]:5000", bed.HostAddr6)
	if !loopback {
		return
	}
	if a, err := netip.ParseAddr(router); err == nil && a.IsLinkLocalUnicast() && strings.HasPrefix(router, "fe80") {
		router += "%tap0"
		if _, err := meet(t, k.inside, "[fd00::2]:5001", 1); err == nil {
			return
		}
	}
	if told, err := meet(t, k.inside, "["+router+"]:5001", 1<<20); err != nil || told != "::1" {
		t.Errorf("IPv6 loopback by %s: %q, %v", router, told, err)
	}
}

// ports listens inside, on ports that are forwarded as they are (auto), were published as others,
// or neither.
func (k *kit) ports(t *testing.T, auto, published bool) {
	t.Helper()
	greet(t, k.inside, "0.0.0.0:80")
	echo(t, k.inside, "0.0.0.0:81")
	switch {
	case auto:
		greet(t, k.inside, "0.0.0.0:8090")
		for _, from := range []struct {
			n          *bed.NS
			addr, seen string
		}{{k.Far, bed.HostAddr4, bed.FarAddr4}, {k.Host, "127.0.0.1", "127.0.0.1"}} {
			waitFor(t, "the port to be forwarded", func() bool {
				told, err := meet(t, from.n, from.addr+":8090", 1<<20)
				if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
					t.Fatal(err)
				}
				if err == nil && told != from.seen {
					t.Errorf("inside, %s is seen as %s", from.seen, told)
				}
				return err == nil
			})
		}
	case published:
		for _, from := range []struct {
			n    *bed.NS
			addr string
		}{{k.Far, bed.HostAddr4}, {k.Host, "127.0.0.1"}} {
			// rootlesskit runs its command while its port driver may still be at work.
			waitFor(t, "the published port at "+from.addr, func() bool {
				_, errTCP := meet(t, from.n, from.addr+":8080", 1<<20)
				_, errUDP := ask(t, from.n, from.addr+":8081")
				if err := errors.Join(errTCP, errUDP); err != nil {
					t.Logf("published ports at %s: %v", from.addr, err)
					return false
				}
				return true
			})
		}
	default:
		for _, port := range []string{":80", ":8080"} {
			if _, err := meet(t, k.Far, bed.HostAddr4+port, 1); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("port%s: %v, want refused", port, err)
			}
		}
	}
}

// TestRootlesskitKilled: pasta ends with the namespace, slirp4netns by SIGKILL;
// neither leaves anything, also when rootlesskit itself is killed.
func TestRootlesskitKilled(t *testing.T) {
	needsClients(t)
	for _, net := range []string{"pasta", "slirp4netns"} {
		t.Run(net, func(t *testing.T) {
			k := startKit(t, newBed(t), filepath.Join(tools, "rootlesskit"), false, "--net="+net, "--port-driver=none")
			usage, err := bed.Tree(k.proc.PID())
			if err != nil {
				t.Fatal(err)
			}
			unix.Kill(k.proc.PID(), unix.SIGKILL)
			k.inside.Close()
			<-k.proc.Done()
			// The child dies with its parent; slirp4netns is nobody's but rootlesskit's, and sees
			// the namespace end.
			allGone(t, usage.PIDs)
		})
	}
}
