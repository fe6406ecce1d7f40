package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstalled: what "make install" leaves, as programs call it.
func TestInstalled(t *testing.T) {
	t.Parallel()
	root := filepath.Dir(filepath.Dir(filepath.Dir(pasta)))
	for _, row := range []struct{ name, want string }{
		{"usr/bin/passt", "passt "}, {"usr/bin/passt.avx2", "passt "}, {"usr/bin/pasta", "pasta "}, {"usr/bin/pasta.avx2", "pasta "}, {"usr/bin/pesto", "pesto "},
		{"usr/libexec/fusilli/slirp4netns", "slirp4netns version 1.2."},
	} {
		out, err := exec.Command(filepath.Join(root, row.name), "--version").Output()
		if err != nil || !strings.HasPrefix(string(out), row.want) || !strings.Contains(string(out), "test") {
			t.Errorf("%s --version: %v: %s", row.name, err, out)
		}
	}
	for _, name := range []string{"man/man1/passt.1", "man/man1/pasta.1", "man/man1/qrap.1", "man/man1/pesto.1", "fusilli/apparmor/usr.bin.passt",
		"fusilli/selinux/passt.te", "fusilli/clients.md"} {
		if st, err := os.Stat(filepath.Join(root, "usr/share", name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// sh runs a script in dir, which must succeed, and returns what it says.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.CommandContext(patience(t, clientLimit), "sh", "-euc", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// TestPackages: "make dist" has made them before the isolation. Each is installed in an empty root,
// where nothing else is.
func TestPackages(t *testing.T) {
	needsClients(t)
	dist := filepath.Join(os.Getenv(rootVar), "dist")
	sh(t, dist, "sha256sum --check --strict SHA256SUMS && test $(wc -l <SHA256SUMS) -eq 21")
	for _, arch := range []string{"386", "amd64", "arm", "arm64", "ppc64le", "riscv64", "s390x"} {
		list := sh(t, dist, "tar -tzf *-linux-"+arch+".tar.gz")
		for _, want := range []string{"bin/passt\n", "bin/pasta\n", "libexec/fusilli/slirp4netns\n", "share/man/man1/pasta.1"} {
			if !strings.Contains(list, want) {
				t.Errorf("%s: no %s in %s", arch, want, list)
			}
		}
	}
	for _, row := range []struct{ name, install string }{
		{"deb", `mkdir -p root/var/lib/dpkg/updates root/var/lib/dpkg/info; : >root/var/lib/dpkg/status
			dpkg --root=$PWD/root --force-not-root --force-bad-path --log=/dev/null -i *_amd64.deb
			test -s root/var/lib/dpkg/info/fusilli.list`},
		{"rpm", `rpm --root=$PWD/root --initdb
			rpm --root=$PWD/root --nodeps -i *x86_64.rpm
			rpm --root=$PWD/root -q fusilli`},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := scratch(t)
			sh(t, dir, "cp "+dist+"/* . && mkdir root && "+row.install)
			for _, name := range []string{"passt", "pasta", "pasta.avx2", "pesto"} {
				if out := sh(t, dir, "chroot root /usr/bin/"+name+" --version"); !strings.Contains(out, "test") {
					t.Errorf("%s: %s", name, out)
				}
			}
			// There is no shell for the script, but what it executes.
			if out := sh(t, dir, "chroot root /usr/libexec/fusilli/program/slirp4netns --version"); !strings.Contains(out, "slirp4netns version") {
				t.Errorf("slirp4netns: %s", out)
			}
			sh(t, dir, "test -s root/usr/share/man/man1/passt.1* && test -s root/usr/share/man/man1/pasta.1* && test -s root/usr/share/fusilli/apparmor/usr.bin.passt")
		})
	}
}
