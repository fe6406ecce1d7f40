// Package clients puts the program in the place of pasta and slirp4netns, and runs what calls
// those: rootlesskit, Docker, Podman, and the command lines that they are known to use. Everything
// is as "make install" leaves it, and runs as an unprivileged user in the networks of package bed.
//
// The tests of slirp4netns's own behaviour, and of Podman's command lines, take seconds and always
// run. With FUSILLI_CLIENTS=all (make test-clients) the clients themselves are run too; what they
// need is installed by setup.sh in this directory.
package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// limit is how long anything may take that takes a moment; clientLimit is for what starts daemons.
const (
	limit       = 30 * time.Second
	clientLimit = 2 * time.Minute
)

// Variables by which the run outside tells the run inside the bed what it has made.
const (
	// directory with what was installed, and tools; set, nothing is made
	rootVar  = "FUSILLI_CLIENTS_ROOT"
	wholeVar = "FUSILLI_CLIENTS" // "all": run the clients themselves
)

// Where things are once TestMain is through.
var (
	ours   string // our slirp4netns, the script
	theirs = "/usr/bin/slirp4netns"
	pasta  string // our pasta
	path   string // PATH with both of ours, then the tools, first
	tools  string
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "clients:", err)
		return 1
	}
	var env []string
	if bed.Outside() && os.Getenv(rootVar) == "" {
		dir, err := os.MkdirTemp("", "fusilli-clients")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(dir)
		if err := provide(dir); err != nil {
			return fail(err)
		}
		env = append(env, rootVar+"="+dir)
	}
	inside, status, err := bed.Isolate(env...)
	if err != nil {
		return fail(err)
	}
	if !inside {
		return status
	}
	dir := os.Getenv(rootVar)
	tools = filepath.Join(dir, "tools")
	pasta = filepath.Join(dir, "root/usr/bin/pasta")
	ours = filepath.Join(dir, "root/usr/libexec/fusilli/slirp4netns")
	path = strings.Join([]string{filepath.Dir(pasta), filepath.Dir(ours), tools, "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"}, ":")
	if err := resolvers(); err != nil {
		return fail(err)
	}
	if whole() {
		if err := settle(); err != nil {
			return fail(err)
		}
	}
	return m.Run()
}

// whole reports whether the clients themselves are to be run.
func whole() bool { return os.Getenv(wholeVar) == "all" }

// provide installs the program below dir and builds the tools.
func provide(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, sub := range []string{"build", "tools"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	guide, err := os.ReadFile("../../contrib/README.md")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "guide.md"), guide, 0o644)
	}
	if err != nil {
		return err
	}
	steps := []*exec.Cmd{exec.Command("make", "-s", "-C", "../..", "install", "VERSION=test", "OUT="+filepath.Join(dir, "build"),
		"PREFIX=/usr", "DESTDIR="+filepath.Join(dir, "root"))}
	if whole() {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "tools"),
			"github.com/rootless-containers/rootlesskit/v2/cmd/rootlesskit",
			"github.com/rootless-containers/rootlesskit/v2/cmd/rootlesskit-docker-proxy")
		build.Dir = "tools"
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		// a directory
		build3 := exec.Command("go", "build", "-o", filepath.Join(dir, "tools", "3")+"/",
			"github.com/rootless-containers/rootlesskit/v3/cmd/rootlesskit")
		build3.Dir, build3.Env = build.Dir, build.Env
		dist := exec.Command("make", "-s", "-C", "../..", "dist", "VERSION=0.test", "DIST="+filepath.Join(dir, "dist"))
		steps = append(steps, build, build3, dist)
	}
	for _, cmd := range steps {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
	}
	return nil
}

// user is the name of the unprivileged user: bed.Nobody's.
const user = "nobody"

// home is that user's directory, in memory.
const home = "/home/" + user

// resolvers adds the far peer's IPv6 address to those in the isolated /etc/resolv.conf.
func resolvers() error {
	f, err := os.OpenFile("/etc/resolv.conf", os.O_WRONLY|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // on this machine there is none, and none to cover
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("nameserver " + bed.FarAddr6 + "\n")
	return err
}

// settle makes the isolated file system one that rootless containers can live in: the unprivileged
// user has subordinate users and groups, and a home. Nothing of this is seen outside.
func settle() error {
	sh := exec.Command("sh", "-euc", `
cp -a /etc /run/etc 2>/dev/null || [ -s /run/etc/passwd ]
mount --bind /run/etc /etc
sed -i '/^nobody:/s,:[^:]*:[^:]*$,:`+home+`:/bin/sh,' /etc/passwd
for f in /etc/subuid /etc/subgid; do echo nobody:100000:65536 >$f; done
mount -t tmpfs tmpfs /home
mount -t tmpfs tmpfs /usr/local
cp -a "$`+rootVar+`"/root/usr/. /usr/local/
mkdir -p `+home+` /run/user/65534
chown nobody:nogroup `+home+` /run/user/65534
chmod 700 /run/user/65534
# Runtimes refuse a mixture of cgroup hierarchies.
if [ -d /sys/fs/cgroup/unified ]; then umount -R /sys/fs/cgroup/unified; fi
mkdir -p /run/image/bin
cp "$(command -v busybox)" /run/image/bin/busybox
for a in sh ip wget nc nslookup sleep cat echo httpd ping true ls tr seq; do ln -s busybox /run/image/bin/$a; done
mkdir /run/image/etc /run/image/tmp /run/image/proc /run/image/www
echo root:x:0:0:root:/:/bin/sh >/run/image/etc/passwd
echo inside >/run/image/www/index.html
tar -C /run/image -cf /run/image.tar .
`)
	if out, err := sh.CombinedOutput(); err != nil {
		return fmt.Errorf("prepare the file system: %w: %s", err, out)
	}
	return nil
}

// needsClients skips a test that runs clients where they were not asked for.
func needsClients(t *testing.T) {
	t.Helper()
	if !whole() {
		t.Skip("make test-clients runs this")
	}
}

// patience ends when the test has taken far too long for d to be a matter of load.
func patience(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func newBed(t *testing.T) *bed.Bed {
	t.Helper()
	b, err := bed.New(bed.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// scratch makes a directory of the unprivileged user's.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "scratch")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// waitFor waits for cond, which must come true within the limit.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	if err := bed.Wait(patience(t, limit), what, func() (bool, error) { return cond(), nil }); err != nil {
		t.Fatal(err)
	}
}

// outcome is what is left of a program that has ended.
type outcome struct {
	status      int
	out, errors string
}

// finish runs argv in n as the unprivileged user, to its end. The files are descriptors 3 and on.
func finish(t *testing.T, n *bed.NS, files []*os.File, argv ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(patience(t, clientLimit), argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &errs, files
	cmd.Env = clientEnv(home, "/run/user/65534")
	cmd.WaitDelay = limit
	if err := n.Start(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v: %s", argv, err, &errs)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// clientEnv is the environment of a client.
func clientEnv(home, runtime string) []string {
	return []string{"PATH=" + path, "HOME=" + home, "USER=" + user, "LOGNAME=" + user, "XDG_RUNTIME_DIR=" + runtime, "LANG=C.UTF-8"}
}

// allGone waits until none of the processes is left.
func allGone(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		waitFor(t, fmt.Sprintf("process %d to end", pid), func() bool {
			_, err := bed.Tree(pid)
			return err != nil
		})
	}
}

// pipe returns both ends of a pipe that is closed with the test.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}
