package clients

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fusilli/tests/bed"
)

// TestInsideContainer runs pasta and passt as programs of a rootless container of Podman's, which
// has the capabilities, the filter of system calls and the masked /proc that containers have:
// either they are confined as anywhere else, or they say what is refused and do not run.
func TestInsideContainer(t *testing.T) {
	needsClients(t)
	b := newBed(t)
	website(t, b.Far, ":80", "far")
	dir, err := os.MkdirTemp(home, "container")
	if err == nil {
		err = os.Chown(dir, 65534, 65534)
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (status int, out, says string) {
		t.Helper()
		cmd := podman(b, dir, args...)
		var stdout bytes.Buffer
		cmd.Stdout = &stdout
		p, err := b.Host.Spawn(bed.Nobody, cmd)
		if err != nil {
			t.Fatal(err)
		}
		status = p.Status()
		return status, stdout.String(), p.Stderr()
	}
	if status, _, says := run("import", "/run/image.tar", "box"); status != 0 {
		t.Fatalf("import: status %d: %s", status, says)
	}
	passt := filepath.Join(filepath.Dir(pasta), "passt")
	base := []string{"run", "--rm", "--network=slirp4netns", "--device=/dev/net/tun",
		"-v", passt + ":/bin/pasta:ro", "-v", passt + ":/bin/passt:ro"}
	fetch := []string{"pasta", "-d", "--config-net", "--", "wget", "-qO-", "http://" + bed.FarAddr4 + "/"}
	guest := []string{"sh", "-c", "passt -P /tmp/pid -s /tmp/socket && cat /proc/$(cat /tmp/pid)/status"}
	const confined, refused = `confined {"root": "pivot_root"`, "Couldn't create user namespace: Operation not permitted"
	// What Docker's profile denies to a container without CAP_SYS_ADMIN, of what we need.
	profile := filepath.Join(dir, "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
		{"names": ["unshare", "mount", "umount2", "setns", "pivot_root"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
		{"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
		 "args": [{"index": 0, "value": 268435456, "valueTwo": 268435456, "op": "SCMP_CMP_MASKED_EQ"}]}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name    string
		options []string
		argv    []string
		status  int
		out     string
		says    string
	}{
		{"pasta, as Podman's containers are", nil, fetch, 0, "far ", confined},
		// one is the container's
		{"passt, as Podman's containers are", nil, guest, 0, "Seccomp_filters:\t3\n", ""},
		{"pasta, as Docker's containers are", []string{"--security-opt=seccomp=" + profile}, fetch, 1, "", refused},
		{"passt, as Docker's containers are", []string{"--security-opt=seccomp=" + profile}, guest, 1, "", refused},
		{"pasta, all privileges", []string{"--privileged"}, fetch, 0, "far ", confined},
	} {
		t.Run(row.name, func(t *testing.T) {
			status, out, says := run(append(append(append(append([]string{}, base...), row.options...), "box"), row.argv...)...)
			if status != row.status || !strings.Contains(out, row.out) || !strings.Contains(says, row.says) {
				t.Errorf("status %d, output %q, says %q; want %d, %q, %q", status, out, says, row.status, row.out, row.says)
			}
		})
	}
}
