// Package e2e tests the program as users run it: our binary, as an unprivileged user,
// connects a namespace to a host with a remote peer, and real sockets and tools talk
// through it. The networks are those of package bed.
//
// FUSILLI_BIN names another binary to test, FUSILLI_ARGS more options for it, and
// FUSILLI_MIB the size of the transfers: enough to run the same tests on upstream's pasta.
package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"fusilli/internal/process"
	"fusilli/internal/sandbox"
	"fusilli/tests/bed"
)

// limit is how long anything may take that takes a moment.
const limit = 30 * time.Second

// program is the program under test.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if text, ok := os.LookupEnv(refuseVariable); ok {
		return refused(text)
	}
	if text, ok := os.LookupEnv(injectVariable); ok {
		return injected(text)
	}
	if path, ok := os.LookupEnv(takeoverVariable); ok {
		return attack(path)
	}
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	var env []string
	if bed.Outside() && os.Getenv("FUSILLI_BIN") == "" {
		dir, err := os.MkdirTemp("", "fusilli-e2e")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "pasta")
		if err := build(path); err != nil {
			return fail(err)
		}
		env = append(env, "FUSILLI_BIN="+path)
	}
	if bed.Outside() && os.Getenv(process.FilterVariable) == "" {
		// A call that the filter forbids shows where it was made: the program dies with its stacks.
		env = append(env, process.FilterVariable+"="+string(sandbox.Trap))
	}
	inside, status, err := bed.Isolate(env...)
	if err != nil {
		return fail(err)
	}
	if !inside {
		return status
	}
	program = os.Getenv("FUSILLI_BIN")
	if os.Getenv("FUSILLI_ARGS") == "" { // upstream's program may look for itself beside itself
		if program, err = bed.Provide(program, "pasta"); err != nil {
			return fail(err)
		}
	}
	return m.Run()
}

// build makes the program, with the race detector if the tests have it.
func build(path string) error {
	args := []string{"build", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "fusilli")...)
	if !raceEnabled {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
}

// extra is more options for the program.
func extra() []string { return strings.Fields(os.Getenv("FUSILLI_ARGS")) }

// sized returns n bytes of a transfer, or what FUSILLI_MIB says.
func sized(n int) int {
	if mib, err := strconv.Atoi(os.Getenv("FUSILLI_MIB")); err == nil {
		return min(n, mib<<20)
	}
	return n
}

// patience ends when the test has taken far too long for d to be a matter of load.
func patience(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func newBed(t *testing.T, cfg bed.Config) *bed.Bed {
	t.Helper()
	b, err := bed.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// connection is a target namespace connected by a running translator.
type connection struct {
	*bed.Bed
	target *bed.Target
	proc   *bed.Process
}

// connect starts the program in the foreground with --config-net, --no-map-gw (the far peer is the
// gateway) and args, and waits until
// it says that it is ready. At the end of the test it must still run, have said nothing,
// and end with status 0 when told to.
func connect(t *testing.T, b *bed.Bed, args ...string) *connection {
	t.Helper()
	return attach(t, b, append([]string{"--config-net", "--no-map-gw", "-q"}, args...)...)
}

// attach is connect without options but those of the foreground.
func attach(t *testing.T, b *bed.Bed, args ...string) *connection {
	t.Helper()
	ctx := patience(t, limit)
	c := &connection{Bed: b}
	var err error
	if c.target, err = b.Target(ctx); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(scratch(t), "pid")
	args = append([]string{"-f", "-P", pidFile}, append(extra(), args...)...)
	cmd := exec.Command(program, append(args, strconv.Itoa(c.target.PID))...)
	if c.proc, err = b.Host.Spawn(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.end(t) })
	err = bed.Wait(ctx, "the PID file", func() (bool, error) {
		select {
		case <-c.proc.Done():
			return false, fmt.Errorf("%s %v ended with status %d: %s", program, args, c.proc.Status(), c.proc.Stderr())
		default:
		}
		text, err := os.ReadFile(pidFile)
		return err == nil && strings.HasSuffix(string(text), "\n"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// end stops the translator, unless the test has.
func (c *connection) end(t *testing.T) {
	t.Helper()
	select {
	case <-c.proc.Done():
	default:
		if status := c.proc.Stop(limit); status != 0 {
			t.Errorf("status %d after SIGTERM, want 0", status)
		}
	}
	if said := c.proc.Stderr(); said != "" {
		t.Logf("standard error: %s", said)
		if faulty(said) {
			t.Error("the translator has a fault")
		}
	}
}

// faulty reports whether what a program has said shows a fault: a data race, a panic, or a system
// call that its filter forbids.
func faulty(said string) bool {
	for _, mark := range []string{"DATA RACE", "panic", "SIGSYS"} {
		if strings.Contains(said, mark) {
			return true
		}
	}
	return false
}

// usage is what the translator has in use.
func (c *connection) usage(t *testing.T) bed.Usage {
	t.Helper()
	u, err := bed.Tree(c.proc.PID())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// serving has what serves end with the test.
func serving(t *testing.T) func(io.Closer, error) {
	return func(c io.Closer, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// scratch makes a directory that every user may write to.
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

// families names the IP versions and the addresses of the far peer.
var families = []struct {
	name string
	far  string
}{
	{"IPv4", bed.FarAddr4},
	{"IPv6", bed.FarAddr6},
}

var (
	defaultBed = bed.Config{}
	lossyBed   = bed.Config{Link: &bed.LinkConfig{Rate: 500e6, Delay: time.Millisecond, Loss: 0.01}}
)

// waitFor waits for cond, which must come true within the limit.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	if err := bed.Wait(patience(t, limit), what, func() (bool, error) { return cond(), nil }); err != nil {
		t.Fatal(err)
	}
}

// sizedCount is n, less where FUSILLI_MIB asks for small transfers.
func sizedCount(n int) int {
	if os.Getenv("FUSILLI_MIB") != "" {
		return n / 10
	}
	return n
}
