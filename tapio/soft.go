package tapio

import (
	"sync"

	"fusilli/tapio/frame"
)

// NeedsSoft reports whether the frame b asks for something that is not among have.
func NeedsSoft(b []byte, have Features) bool {
	if b[0]&frame.NeedsCsum == 0 && b[1] == frame.GSONone {
		return false
	}
	if have&(VnetHeader|Csum) != VnetHeader|Csum {
		return true
	}
	switch b[1] {
	case frame.GSONone:
		return false
	case frame.GSOTCPv4, frame.GSOTCPv6:
		return have&TSO == 0
	case frame.GSOTCPv4 | frame.GSOECN, frame.GSOTCPv6 | frame.GSOECN:
		return have&TSOECN == 0
	case frame.GSOUDP:
		return have&USO == 0
	}
	return true
}

// softState is what sending one frame in software needs.
type softState struct {
	s   segmenter
	out [frame.MaxFrame]byte
}

var softPool = sync.Pool{New: func() any { return new(softState) }}

// WriteSoft sends b with write, as one frame or more that a link with the features have can carry.
// It stops at the first that fails.
func WriteSoft(b []byte, have Features, write func([]byte) error) error {
	st := softPool.Get().(*softState)
	defer softPool.Put(st)
	if err := st.s.reset(b, have&(VnetHeader|Csum) == VnetHeader|Csum); err != nil {
		return err
	}
	for {
		n := st.s.next(st.out[:])
		if n == 0 {
			break
		}
		if err := write(st.out[:n]); err != nil {
			st.s.in = nil
			return err
		}
	}
	st.s.in = nil
	return nil
}
