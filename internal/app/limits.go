package app

import (
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
)

// flowLimit bounds the flows of a process that may have so many open files: there are to be some left for
// connections that are being accepted, and for what is kept ready. Ports that are listened on may leave
// fewer; then flows find none, and give way to each other likewise.
func flowLimit(files int) *flow.Limit {
	return flow.NewFileLimit(flow.MaxFlows, files-min(files/4, 512))
}

// openFiles is the number of files that the process may have open.
func openFiles() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 1 << 10 // what systems begin with
	}
	return int(min(lim.Cur, 1<<30))
}
