package process

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/internal/sandbox"
)

// User is a numeric user and group, as seen in the namespace of the launcher.
type User struct {
	UID, GID int
}

// nobody is whom the real root becomes.
var nobody = User{UID: 65534, GID: 65534}

// identityMap is /proc/self/uid_map of the initial user namespace.
const identityMap = "0 0 4294967295"

// selectUser returns whom to run as, and whether that is a change.
func selectUser(runAs *User, log *zap.Logger) (User, bool) {
	self := User{UID: os.Geteuid(), GID: os.Getegid()}
	switch {
	case runAs != nil:
		return *runAs, *runAs != self
	case self.UID != 0 || !inInitialUserNS():
		return self, false
	}
	log.Warn("Started as root, will change to nobody.")
	return nobody, true
}

// inInitialUserNS tells by the identity map; a namespace with that very map has the same
// rights over users, so that nothing is lost by taking it for the initial one.
func inInitialUserNS() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(text)), " ") == identityMap
}

// become switches the whole process to u for good, and gives up all other groups.
func become(u User) error {
	if err := syscall.Setgroups(nil); err != nil && !errors.Is(err, unix.EPERM) {
		return Failf("Can't drop groups: %s", Reason(err))
	}
	if err := syscall.Setresgid(u.GID, u.GID, u.GID); err != nil {
		return cannotChange("GID", u.GID, err)
	}
	if err := syscall.Setresuid(u.UID, u.UID, u.UID); err != nil {
		return cannotChange("UID", u.UID, err)
	}
	return sandbox.Hide() // the change has made it as the system wants
}

// cannotChange says why a process cannot become another user.
func cannotChange(what string, id int, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return Failf("Can't set %s to %d: %s: only root may run as another user", what, id, Reason(err))
	case errors.Is(err, unix.EINVAL):
		return Failf("Can't set %s to %d: %s: this user namespace has no such number", what, id, Reason(err))
	}
	return Failf("Can't set %s to %d: %s", what, id, Reason(err))
}
