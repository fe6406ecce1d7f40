package actors

import (
	"fusilli/actors/flow"
	"fusilli/actors/frag"
	"fusilli/tapio/frame"
)

// divide divides memory, the ceiling of what flows can make us hold, in bytes; 0:
// flow.DefaultMemory. Two thirds are slabs, for frames between reader and actors. The rest is for
// incomplete datagrams and for held, what flows keep for longer.
func divide(memory int) (slabs, datagrams, held int) {
	if memory == 0 {
		memory = flow.DefaultMemory
	}
	rest := memory / 3
	slabs = (memory - rest) / flow.SlabSize
	// of which each has a buffer for the longest
	datagrams = min(frag.MaxDatagrams, rest/8/frame.MaxFrame)
	return slabs, datagrams, rest - datagrams*frame.MaxFrame
}
