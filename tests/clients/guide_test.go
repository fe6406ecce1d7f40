package clients

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"fusilli/tests/bed"
)

// commands are the blocks of the guide about one client.
func commands(t *testing.T, client string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(os.Getenv(rootVar), "guide.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```sh "+client+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("the guide says nothing about %s", client)
	}
	return blocks
}

// reader runs commands as somebody who has read the guide and has installed the program: what is
// below /usr/local comes first. more goes before that.
func reader(t *testing.T, b *bed.Bed, dir, more, block string) *bed.Process {
	t.Helper()
	cmd := exec.Command("sh", "-euc", block)
	cmd.Env = append(clientEnv(dir, dir), "PATH="+more+"/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/share/docker.io/contrib")
	p, err := b.Host.Spawn(bed.Nobody, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// homeDir makes a home of the unprivileged user's.
func homeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(home, "guide")
	if err == nil {
		err = os.Chown(dir, 65534, 65534)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestGuideSlirp4netns(t *testing.T) {
	needsClients(t)
	b := newBed(t)
	for _, block := range commands(t, "slirp4netns") {
		if p := reader(t, b, homeDir(t), "", block+"\n[ \"$(readlink -f ~/bin/slirp4netns)\" = /usr/local/libexec/fusilli/slirp4netns ]"); p.Status() != 0 {
			t.Errorf("%s: status %d: %s", block, p.Status(), p.Stderr())
		}
	}
}

func TestGuideRootlesskit(t *testing.T) {
	needsClients(t)
	b := newBed(t)
	for _, block := range commands(t, "rootlesskit") {
		block = strings.TrimSpace(block)
		if p := reader(t, b, homeDir(t), tools+":", block+" | grep -q 10.0.2.100/24"); p.Status() != 0 {
			t.Errorf("%s: status %d: %s", block, p.Status(), p.Stderr())
		}
		alone(t)
	}
}

func TestGuideDocker(t *testing.T) {
	needsClients(t)
	for _, block := range commands(t, "docker") {
		func() {
			b, dir := newBed(t), homeDir(t)
			p := reader(t, b, dir, tools+":", strings.Replace(block, "dockerd-rootless.sh", "exec dockerd-rootless.sh --storage-driver=vfs", 1))
			defer alone(t)
			defer p.Stop(limit)
			err := bed.Wait(patience(t, clientLimit), "Docker's daemon", func() (bool, error) {
				select {
				case <-p.Done():
					return false, fmt.Errorf("ended with status %d: %s", p.Status(), p.Stderr())
				default:
				}
				c, err := net.Dial("unix", filepath.Join(dir, "docker.sock"))
				if err == nil {
					c.Close()
				}
				return err == nil, nil
			})
			if err != nil {
				t.Errorf("%s: %v", block, err)
				return
			}
			runs(t, "/usr/local/bin/passt")
		}()
	}
}

func TestGuidePodman(t *testing.T) {
	needsClients(t)
	b, dir := newBed(t), homeDir(t)
	for _, block := range commands(t, "podman") {
		if p := reader(t, b, dir, "", block); p.Status() != 0 {
			t.Fatalf("%s: status %d: %s", block, p.Status(), p.Stderr())
		}
	}
	const options = "podman --cgroup-manager=cgroupfs --events-backend=file --runtime=runc --storage-driver=vfs "
	p := reader(t, b, dir, "", options+"import -q /run/image.tar box && "+
		options+"run -d --name=box --network=slirp4netns box sleep 1000")
	if p.Status() != 0 {
		t.Fatalf("status %d: %s", p.Status(), p.Stderr())
	}
	runs(t, "/usr/local/bin/passt")
	if p := reader(t, b, dir, "", options+"rm -f -t 0 box"); p.Status() != 0 {
		t.Errorf("status %d: %s", p.Status(), p.Stderr())
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := bed.Wait(ctx, "slirp4netns to end", func() (bool, error) {
		pids, err := bed.Alive("slirp4netns")
		return len(pids) == 0, err
	}); err != nil {
		t.Error(err)
	}
}
