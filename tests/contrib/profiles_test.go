// Package contrib checks what is delivered beside the program, with the tools it is made for.
package contrib

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compile runs a compiler of profiles, which the set-up of the tests installs.
func compile(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path = "/usr/sbin/" + name; exec.Command("test", "-x", path).Run() != nil {
			t.Fatalf("%s is not installed", name)
		}
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

func TestAppArmorProfile(t *testing.T) {
	const profile = "../../contrib/apparmor/usr.bin.passt"
	if out, err := compile(t, "apparmor_parser", "-Q", "-K", profile); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	text, err := os.ReadFile(profile)
	if err != nil {
		t.Fatal(err)
	}
	// The program runs itself again under its own profile, and nothing else does.
	inherit := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "#") && strings.HasSuffix(line, " rix,") {
			inherit++
		}
	}
	if inherit != 1 {
		t.Errorf("%d rules execute a program under this profile, want 1", inherit)
	}
}

func TestSELinuxModule(t *testing.T) {
	const source = "../../contrib/selinux/passt.te"
	if out, err := compile(t, "checkmodule", "-M", "-m", "-o", filepath.Join(t.TempDir(), "passt.mod"), source); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "execute_no_trans;"); n != 1 {
		t.Errorf("%d rules execute a program in the same domain, want 1", n)
	}
	if !strings.Contains(string(text), "allow passt_t passt_exec_t:file execute_no_trans;") {
		t.Error("the program may not run itself")
	}
}
