package tapio

import (
	"encoding/binary"
	"errors"

	"fusilli/tapio/frame"
)

const (
	prefixLen = 4 // of the length that precedes a frame on a stream
	// minStream and maxStream are the lengths a frame on a stream may have: a bare Ethernet header,
	// and what the longest packet takes whose length IPv4 can say.
	minStream, maxStream = frame.EthLen, 65535
	// cutterSize is more than what the socket of a client with default limits holds. A call that
	// empties it is cheap, and so is finding the bytes in a near cache again.
	cutterSize = 256 << 10
)

var errFrameSize = errors.New("bad frame size")

// cutter cuts a stream of bytes into frames, each preceded by its length in 32 bits, big-endian. It
// takes the bytes in pieces of any size. Its zero value is ready for use, by one goroutine.
type cutter struct {
	b    [cutterSize]byte
	r, w int // what is in b and was not handed out
}

// reset forgets a partial frame.
func (c *cutter) reset() { c.r, c.w = 0, 0 }

// room returns where further bytes go, at least one; add tells how many there are. It is to be called
// only when next has nothing more, and what next returned is invalid then.
func (c *cutter) room() []byte {
	switch {
	case c.r == c.w:
		c.r, c.w = 0, 0
	case c.r > 0 && len(c.b)-c.w < prefixLen+maxStream:
		c.w = copy(c.b[:], c.b[c.r:c.w])
		c.r = 0
	}
	return c.b[c.w:]
}

func (c *cutter) add(n int) { c.w += n }

// next returns the next whole frame without its length, nil if there is none yet, or errFrameSize,
// after which no frame can be found any more.
func (c *cutter) next() ([]byte, error) {
	p := c.b[c.r:c.w]
	if len(p) < prefixLen {
		return nil, nil
	}
	n := binary.BigEndian.Uint32(p)
	if n < minStream || n > maxStream {
		return nil, errFrameSize
	}
	end := prefixLen + int(n)
	if len(p) < end {
		return nil, nil
	}
	c.r += end
	return p[prefixLen:end:end], nil
}
