// Package tapio carries frames between the translator and the guest: over a tap device (Tap), or in
// memory for tests (Pipe). Every frame begins with a virtio_net_hdr of frame.VnetLen bytes, and one
// frame may be a row of segments of up to 64 KiB; what a link cannot carry that way is segmented
// and its checksums are completed here, so that nobody above needs to know.
//
// The package does not look at what the frames say, beyond what segmentation needs; formats are in
// package frame.
package tapio

import (
	"errors"
	"fmt"
)

// Link carries frames to and from the guest.
//
// TryRead and Read share one reader at a time; a link with several queues is several Links. Write
// may be called by any number of goroutines at the same time, beside a read, and two frames never
// mix. Buffers are lent for the call and not written to by Write.
//
// Close may be called by anyone. It wakes a Read that waits, which returns os.ErrClosed like every
// call after it. A second Close returns os.ErrClosed. The device goes away when the last call under
// way has returned.
type Link interface {
	// Read waits for a frame and copies it to b, which has room for frame.MaxFrame bytes; a longer
	// frame is cut off. It returns the number of bytes with the virtio_net_hdr. ErrGone means that
	// the guest's side was removed, ErrWrite that a write has found the link of no use.
	Read(b []byte) (int, error)

	// TryRead is Read, but returns 0, nil when no frame is waiting.
	TryRead(b []byte) (int, error)

	// Write sends the frame b. It never waits: a frame that the link cannot take now, or will
	// never take, is lost and the error is ErrDropped (or one that wraps it). All other errors
	// mean that the link is of no use any more, which reading it then says as well.
	Write(b []byte) error

	// Close ends the link.
	Close() error
}

// Backpressure tells when a link that has dropped a frame for want of room takes frames again.
type Backpressure interface {
	// Full reports whether a long frame would be dropped now. Anyone may ask.
	Full() bool

	// OnRoom has f called whenever Full has become false. It is to be called before the first
	// Write; f is called by anyone and must not block.
	OnRoom(f func())
}

var (
	// ErrDropped is returned by Write for a frame that was lost: the interface is down, or the
	// queue is full.
	ErrDropped = errors.New("frame dropped")

	// ErrRefused is returned by Write for a frame that the link will not take, whenever it is
	// sent: its length or its virtio_net_hdr is impossible. It wraps ErrDropped.
	ErrRefused = fmt.Errorf("%w: malformed", ErrDropped)

	// ErrWrite is what such an error of a device wraps that is still there.
	ErrWrite = errors.New("write tap")

	// ErrGone is what Read and Write errors wrap when the guest's side of the link does not exist
	// any more: the interface was deleted.
	ErrGone = errors.New("device is gone")
)

// Features are what a link does with a frame whose virtio_net_hdr asks for something. What it does
// not do is done in software before the frame is sent; towards us, such frames do not come.
type Features uint8

// The features.
const (
	// VnetHeader: the link itself knows virtio_net_hdr. Without it there is none of the others.
	VnetHeader Features = 1 << iota
	// Csum: checksums may be left to the receiver.
	Csum
	// TSO: TCP segments over both IP versions may come in a row.
	TSO
	// TSOECN: the same with CWR in the first segment.
	TSOECN
	// USO: UDP datagrams over both IP versions may come in a row. Linux 6.2.
	USO

	allFeatures = VnetHeader | Csum | TSO | TSOECN | USO
)

// String lists the features by name, for logs.
func (f Features) String() string {
	s := ""
	for i, name := range [...]string{"vnet_hdr", "csum", "tso", "tso_ecn", "uso"} {
		if f&(1<<i) != 0 {
			if s != "" {
				s += ","
			}
			s += name
		}
	}
	if s == "" {
		return "none"
	}
	return s
}
