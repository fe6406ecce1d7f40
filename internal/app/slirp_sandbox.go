package app

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"fusilli/config"
	"fusilli/internal/process"
)

// enterForSandbox puts this process, with its PID and all descriptors, in the user namespace that t
// says to join, where that gives it the right to change its root directory (--enable-sandbox) which
// it has not yet: to a user that is root in there. A process with several threads cannot enter one,
// and Go's have several from the beginning, so nsenter(1) does, which executes us again. Where that
// is not to be had, or the user is not root there, the process stays where it is; only the
// translator is inside then.
//
// It reports whether the process is in that namespace.
func enterForSandbox(t *config.Target) (inside bool) {
	if t.UserNS != config.JoinUserNS {
		return false
	}
	if sameFile("/proc/self/ns/user", t.UserNSPath) {
		return true
	}
	if privileged() || !rootIn(t.UserNSPath) {
		return false
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return false
	}
	self, err := exec.LookPath(os.Args[0])
	if err != nil {
		return false
	}
	argv := []string{nsenter, "--user=" + t.UserNSPath, "--preserve-credentials", "--", self}
	unix.Exec(nsenter, append(argv, os.Args[1:]...), os.Environ()) // or all stays as it is
	return false
}

// stayInside has the launcher's namespace be the one that the translator works in.
func stayInside(s *process.Spec) { s.UserNS, s.KeepUserNS = "", true }

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// privileged reports whether this process has CAP_SYS_ADMIN in its user namespace, or whether that
// cannot be known.
func privileged() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	return unix.Capget(&h, &d[0]) != nil || d[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

var userNSOf = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^/proc/[0-9]+/ns/user$`) })

// rootIn reports whether the user of this process is root in the user namespace path, as far as its
// name tells whose map to look at.
func rootIn(path string) bool {
	if !userNSOf().MatchString(path) {
		return false
	}
	text, err := os.ReadFile(strings.TrimSuffix(path, "ns/user") + "uid_map")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, size int64
		if n, _ := fmt.Sscan(line, &inside, &outside, &size); n == 3 && inside == 0 && outside == int64(os.Geteuid()) {
			return true
		}
	}
	return false
}
