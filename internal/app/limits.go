package app

import (
	"runtime/debug"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
)

const (
	// flowMemory is what a flow takes beside its data: heap and stacks, and what the collector
	// needs to be at ease.
	flowMemory = 6 << 10
	// baseMemory is what the program takes without flows, and leaves room for its garbage.
	baseMemory = 64 << 20
)

// flowLimit bounds the flows of a process that may have so many open files to most: there are to be
// some files left for connections that are being accepted, and for what is kept ready. Ports that
// are listened on may leave fewer; then flows find none, and give way to each other likewise.
func flowLimit(files, most int) *flow.Limit {
	return flow.NewFileLimit(most, files-min(files/4, 512))
}

// limitHeap has the garbage collector work harder, rather than let the heap grow, when the program
// takes what data of memory bytes and that many flows may need. It is no limit beyond which
// anything fails.
func limitHeap(limit *flow.Limit, memory int) {
	debug.SetMemoryLimit(int64(memory) + int64(limit.Max())*flowMemory + baseMemory)
}

// openFiles is the number of files that the process may have open.
func openFiles() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 1 << 10 // what systems begin with
	}
	return int(min(lim.Cur, 1<<30))
}
