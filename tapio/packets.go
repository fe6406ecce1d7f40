package tapio

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// Packets is a link over a connected UNIX SOCK_SEQPACKET socket, each packet a frame: the transport
// that User Mode Linux has for BESS. The other side knows no offloads, and a frame that its queue
// has no room for is lost, as with a tap. It is a one-off: Read returns ErrClientGone when the
// other side has closed.
type Packets struct{ queue }

// NewPackets returns the link to the one at the other end of fd, which it takes over.
func NewPackets(fd int) (*Packets, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer) // less will do
	p := new(Packets)
	p.name, p.vnetSkip = "socket", frame.VnetLen
	return p, p.use(fd)
}

// Read implements Link.
func (p *Packets) Read(b []byte) (int, error) { return p.take(b, p.queue.Read) }

// TryRead implements Link.
func (p *Packets) TryRead(b []byte) (int, error) { return p.take(b, p.queue.TryRead) }

func (p *Packets) take(b []byte, read func([]byte) (int, error)) (int, error) {
	for {
		n, err := read(b)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, io.EOF):
			if p.hungUp() {
				return 0, ErrClientGone
			}
			// A packet of no length looks the same.
		case closedByPeer(err):
			return 0, ErrClientGone
		default:
			return 0, err
		}
	}
}

// closedByPeer reports whether err, of a read or of the write that has made reads fail, is that the
// other side has closed.
func closedByPeer(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// hungUp reports whether the other side has closed.
func (p *Packets) hungUp() bool {
	if !p.enter() {
		return true
	}
	defer p.leave()
	f := [1]unix.PollFd{{Fd: int32(p.fd)}}
	n, err := unix.Poll(f[:], 0)
	return err == nil && n > 0 && f[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}
