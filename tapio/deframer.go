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
	// longFrame is the length from which it pays to receive a frame in a call of its own where it
	// is wanted, and save its copy.
	longFrame = 8 << 10
)

var errFrameSize = errors.New("bad frame size")

// deframer cuts a stream of bytes into frames, each preceded by its length in 32 bits, big-endian.
// It takes the bytes in pieces of any size. Its zero value is ready for use, by one goroutine.
type deframer struct {
	b    [cutterSize]byte
	r, w int // what is in b and was not handed out
	last int // length of the frame that was handed out last
}

// reset forgets a partial frame.
func (c *deframer) reset() { c.r, c.w, c.last = 0, 0, 0 }

// room returns where further bytes go, at least one; add tells how many there are. It is to be
// called only when next has nothing more, and what next returned is invalid then.
func (c *deframer) room() []byte {
	switch {
	case c.r == c.w:
		c.r, c.w = 0, 0
	case c.r > 0 && len(c.b)-c.w < prefixLen+maxStream:
		c.w = copy(c.b[:], c.b[c.r:c.w])
		c.r = 0
	}
	return c.b[c.w:]
}

func (c *deframer) add(n int) { c.w += n }

// next returns the next whole frame without its length, nil if there is none yet, or errFrameSize,
// after which no frame can be found any more.
func (c *deframer) next() ([]byte, error) {
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
	c.last = int(n)
	return p[prefixLen:end:end], nil
}

// A frame can be received elsewhere than in the cutter's buffer, when next has nothing more: lend
// gives a place for it, and settle says what has come there.

// lend returns how long the next frame is, if its length is there, or may be, since the one before
// it was; 0 if it is not worth a place of its own: it is short, or a part of it is here.
func (c *deframer) lend() int {
	n := c.last
	switch have := c.w - c.r; {
	case have > prefixLen:
		return 0
	case have == prefixLen:
		n = int(binary.BigEndian.Uint32(c.b[c.r:])) // next has checked it
	}
	if n < longFrame {
		return 0
	}
	return n
}

// move moves what has come of the next frame to the beginning of p, which is as long as lend has
// said, with the prefix. It returns how much that is, and where what comes behind the frame goes:
// the prefix of the one after it, or a part of that.
func (c *deframer) move(p []byte) (n int, behind []byte) {
	n = copy(p, c.b[c.r:c.w])
	c.r, c.w = 0, 0
	return n, c.b[:prefixLen]
}

// settle takes note that the first n bytes of p and of what is behind have come. It reports whether
// p is a whole frame, which counts as handed out; if not, it is for next to find.
func (c *deframer) settle(p []byte, n int) bool {
	if n >= len(p) && int(binary.BigEndian.Uint32(p)) == len(p)-prefixLen {
		c.w = n - len(p)
		c.last = len(p) - prefixLen
		return true
	}
	more := max(n-len(p), 0)
	n -= more
	copy(c.b[n:], c.b[:more])
	copy(c.b[:], p[:n])
	c.w = n + more
	return false
}
