package tcp

import (
	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// FindOpening moves r to the first SYN that opens a connection, and reports whether there is one. A
// guest that has reset a connection, or seen it end, may use its ports again at once; what opens
// the next one is often read together with what has ended this.
func FindOpening(r *flow.Run) bool {
	var v flow.View
	for at := *r; r.Next(&v); at = *r {
		if Opens(frame.TCPHeader(v.Frame[v.L4:v.End])) {
			*r = at
			return true
		}
	}
	return false
}
