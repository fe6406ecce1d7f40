//go:build 386 || amd64 || arm || ppc64le || s390x

package sandbox

import "golang.org/x/sys/unix"

// pollCall is a call that younger architectures do not have: ppoll does.
func pollCall() call {
	return call{name: "poll", nr: unix.SYS_POLL, modes: both, phases: always, why: "look whether a descriptor is ready"}
}
