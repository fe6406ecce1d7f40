// Package cli tests the command line of the program as its users and clients see it: options,
// messages, exit statuses and what becomes of a namespace.
//
// The scripts in testdata are those of testscript; there is one for each topic, and
// commands_test.go has the commands they can use besides testscript's own. Each runs on a host with
// a remote peer of its own, see package bed, as an unprivileged user. compare_test.go runs the same
// command lines with another implementation where there is one.
package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"fusilli/tests/bed"
)

// limit is how long anything may take that takes a moment.
const limit = 30 * time.Second

// bin is the directory with the program, under all its names.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "cli:", err)
		return 1
	}
	var env []string
	if bed.Outside() {
		dir, err := os.MkdirTemp("", "fusilli-cli")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "passt")
		cmd := exec.Command("go", "build", "-ldflags", "-X main.version=2026_01_02.abcdef0", "-o", path, "fusilli")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fail(fmt.Errorf("go build: %w: %s", err, out))
		}
		env = append(env, "FUSILLI_CLI_BIN="+path)
	}
	inside, status, err := bed.Isolate(env...)
	if err != nil {
		return fail(err)
	}
	if !inside {
		return status
	}
	if err := install(os.Getenv("FUSILLI_CLI_BIN")); err != nil {
		return fail(err)
	}
	return m.Run()
}

// install puts the program where everybody can run it, under each of its names and one that is
// none.
func install(path string) error {
	program, err := bed.Provide(path, "passt")
	if err != nil {
		return err
	}
	bin = filepath.Dir(program)
	for _, name := range []string{"pasta", "passt.avx2", "pasta.avx2", "slirp", "qrap", "pesto"} {
		if err := os.Symlink("passt", filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	return nil
}

func TestScripts(t *testing.T) {
	root := "/run/cli"
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		WorkdirRoot:         root, // not below a directory that only root may enter
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                commands,
		Setup:               setup,
		Condition: func(c string) (bool, error) {
			if c == "root" { // not only in a user namespace
				return canBeNobody(), nil
			}
			return false, fmt.Errorf("no condition %q", c)
		},
	})
}

// bedKey is where a script's bed is among its values.
type bedKey struct{}

// setup gives a script its bed, and its directory to everybody.
func setup(e *testscript.Env) error {
	b, err := bed.New(bed.Config{})
	if err != nil {
		return err
	}
	e.Defer(b.Close)
	e.Values[bedKey{}] = b
	e.Setenv("PATH", bin+":/usr/sbin:/usr/bin:/sbin:/bin") // all of them open to everybody
	e.Setenv("BIN", bin)
	e.Setenv("SHELL", "/bin/sh")
	e.Setenv("HOST4", bed.HostAddr4)
	e.Setenv("HOST6", bed.HostAddr6)
	e.Setenv("FAR4", bed.FarAddr4)
	e.Setenv("FAR6", bed.FarAddr6)
	return os.Chmod(e.WorkDir, 0o777)
}

// patience ends when something has taken far too long for it to be a matter of load.
func patience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), limit)
}
