package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fusilli/tests/bed"
)

// dockerScript is how Debian starts rootless Docker.
const dockerScript = "/usr/share/docker.io/contrib/dockerd-rootless.sh"

// docker is a rootless daemon.
type docker struct {
	*bed.Bed
	dir  string
	proc *bed.Process
}

// startDocker runs a daemon until the test ends, with an image "box".
func startDocker(t *testing.T, b *bed.Bed, network, ports string) *docker {
	t.Helper()
	dir, err := os.MkdirTemp(home, "docker")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := &docker{Bed: b, dir: dir}
	cmd := exec.Command("sh", dockerScript, "--data-root="+filepath.Join(dir, "data"), "-H", d.socket(), "--storage-driver=vfs")
	cmd.Env = append(clientEnv(home, "/run/user/65534"),
		"DOCKERD_ROOTLESS_ROOTLESSKIT_NET="+network, "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER="+ports)
	if d.proc, err = b.Host.Spawn(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.proc.Stop(limit)
		if t.Failed() {
			said := d.proc.Stderr()
			t.Logf("dockerd: ...%s", said[max(0, len(said)-6000):])
		}
		alone(t)
	})
	err = bed.Wait(patience(t, clientLimit), "Docker's daemon", func() (bool, error) {
		select {
		case <-d.proc.Done():
			return false, fmt.Errorf("ended with status %d", d.proc.Status())
		default:
		}
		c, err := net.Dial("unix", filepath.Join(dir, "socket"))
		if err != nil {
			return false, nil
		}
		c.Close()
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	d.must(t, "import", "/run/image.tar", "box")
	return d
}

func (d *docker) socket() string { return "unix://" + filepath.Join(d.dir, "socket") }

// do runs docker(1).
func (d *docker) do(t *testing.T, args ...string) outcome {
	t.Helper()
	return finish(t, d.Host, nil, append([]string{"docker", "-H", d.socket()}, args...)...)
}

// must is do for what has to succeed. It returns what is said on standard output.
func (d *docker) must(t *testing.T, args ...string) string {
	t.Helper()
	o := d.do(t, args...)
	if o.status != 0 {
		t.Fatalf("docker %s: status %d: %s%s", strings.Join(args, " "), o.status, o.out, o.errors)
	}
	return strings.TrimSpace(o.out)
}

// serves waits until http://addr/ can be had from n. It must be what a container serves.
func serves(t *testing.T, n *bed.NS, addr string) {
	t.Helper()
	err := bed.Wait(patience(t, limit), "a website at "+addr, func() (bool, error) {
		text, err := fetch(t, n, addr)
		if err == nil && text != "inside" {
			return false, fmt.Errorf("it says %q", text)
		}
		return err == nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRootlessDocker(t *testing.T) {
	needsClients(t)
	for _, row := range []struct{ name, net, ports string }{
		{"pasta", "pasta", "implicit"},
		{"slirp4netns", "slirp4netns", "builtin"},
		{"slirp4netns, its own ports", "slirp4netns", "slirp4netns"},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBed(t)
			website(t, b.Far, ":80", "far")
			resolver(t, b.Far, bed.FarAddr4+":53")
			d := startDocker(t, b, row.net, row.ports)
			oursRuns(t)

			t.Run("outwards", func(t *testing.T) {
				got := d.must(t, "run", "--rm", "box", "sh", "-c",
					"wget -qO- http://"+bed.FarAddr4+"/ && nslookup -type=a far.example.org "+bed.FarAddr4+" && nslookup -type=a www.example.org && ping -c 1 -W 5 "+bed.FarAddr4)
				for _, want := range []string{"far " + bed.HostAddr4, "Name:\tfar.example.org\nAddress: " + answerAddr, "Name:\twww.example.org\nAddress: " + answerAddr, " 0% packet loss"} {
					if !strings.Contains(got, want) {
						t.Errorf("%s lacks %q", got, want)
					}
				}
			})
			web := []string{"sh", "-c", "exec httpd -f -p 80 -h /www"}
			t.Run("published", func(t *testing.T) {
				d.must(t, append([]string{"run", "-d", "--rm", "--name=web", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "box"}, web...)...)
				serves(t, b.Host, "127.0.0.1:8080")
				serves(t, b.Far, bed.HostAddr4+":8080")
				serves(t, b.Host, "127.0.0.1:8081")
				// Refused, or accepted and then reset by the container's own refusal.
				if text, err := fetch(t, b.Far, bed.HostAddr4+":8081"); err == nil {
					t.Errorf("what is published on the loopback is seen from outside: %s", text)
				}
				d.must(t, "kill", "web")
				// Whoever comes next has the port.
				bind(t, b.Host, "0.0.0.0:8080")
			})
			if row.ports == "slirp4netns" {
				return // it differs in how ports are published
			}
			t.Run("among each other", func(t *testing.T) {
				d.must(t, "network", "create", "web")
				d.must(t, append([]string{"run", "-d", "--rm", "--name=server", "--network=web", "box"}, web...)...)
				if got := d.must(t, "run", "--rm", "--network=web", "box", "wget", "-qO-", "http://server/"); got != "inside" {
					t.Errorf("%q", got)
				}
				d.must(t, "kill", "server")
			})
			t.Run("build", func(t *testing.T) {
				context := scratch(t)
				file := "FROM box\nRUN wget -O /downloaded http://" + bed.FarAddr4 + "/\nCMD [\"cat\", \"/downloaded\"]\n"
				if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(file), 0o644); err != nil {
					t.Fatal(err)
				}
				build := exec.CommandContext(patience(t, clientLimit), "docker", "-H", d.socket(), "build", "-t", "built", context)
				build.Env = append(clientEnv(home, "/run/user/65534"), "DOCKER_BUILDKIT=0")
				p, err := b.Host.Spawn(bed.Nobody, build)
				if err != nil {
					t.Fatal(err)
				}
				if status := p.Status(); status != 0 {
					t.Fatalf("status %d: %s", status, p.Stderr())
				}
				if got := d.must(t, "run", "--rm", "built"); got != "far "+bed.HostAddr4 {
					t.Errorf("downloaded %q", got)
				}
			})
			t.Run("again and again", func(t *testing.T) {
				before := d.residue(t)
				for range 20 {
					d.must(t, "run", "--rm", "-p", "8082:80", "box", "true")
				}
				err := bed.Wait(patience(t, limit), "nothing to be left", func() (bool, error) { return d.residue(t) <= before, nil })
				if err != nil {
					t.Errorf("%v: %s before, %s after", err, before, d.residue(t))
				}
				if left := d.must(t, "ps", "-aq"); left != "" {
					t.Errorf("containers %s", left)
				}
				bind(t, b.Host, "0.0.0.0:8082")
			})
		})
	}
}

// residue is what the translators have in use, comparable.
func (d *docker) residue(t *testing.T) string {
	t.Helper()
	pids, err := bed.Alive("pasta", "slirp4netns")
	if err != nil {
		t.Fatal(err)
	}
	fds := 0
	for _, pid := range pids {
		u, err := bed.Tree(pid)
		if err != nil {
			t.Fatal(err)
		}
		fds += u.FDs
	}
	return fmt.Sprintf("%3d processes, %5d descriptors", len(pids), fds)
}

// bind waits until a port can be listened on.
func bind(t *testing.T, n *bed.NS, addr string) {
	t.Helper()
	err := bed.Wait(patience(t, limit), addr+" to be free", func() (bool, error) {
		l, err := n.Listen("tcp", addr)
		if err != nil {
			return false, nil
		}
		return true, l.Close()
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
