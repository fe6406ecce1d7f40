package tapio

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// packetPair returns a link over packets, and the socket at its other end.
func packetPair(t *testing.T) (*Packets, int) {
	t.Helper()
	fd, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPackets(fd[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		unix.Close(fd[1])
	})
	return p, fd[1]
}

func TestPackets(t *testing.T) {
	p, other := packetPair(t)
	b := make([]byte, frame.MaxFrame)
	if n, err := p.TryRead(b); n != 0 || err != nil {
		t.Errorf("TryRead = %d, %v, and nothing was sent", n, err)
	}
	// One of no length is none, and no end.
	for _, size := range []int{0, 60, 0, 0, 1514} {
		if _, err := unix.Write(other, pattern(size)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{60, 1514} {
		n, err := p.Read(b)
		if err != nil || !bytes.Equal(b[frame.VnetLen:n], pattern(want)) || !bytes.Equal(b[:frame.VnetLen], make([]byte, frame.VnetLen)) {
			t.Errorf("Read = %d, %v, want %d", n, err, want)
		}
	}
	// A row goes as so many packets, complete with their checksums.
	const mss, size = 1000, 2500
	if err := p.Write(row(remote4, guest4, true, &frame.TCPFields{SrcPort: 1, DstPort: 2}, mss, pattern(size))); err != nil {
		t.Fatal(err)
	}
	var data []byte
	for range 3 {
		n, err := unix.Read(other, b[frame.VnetLen:])
		if err != nil {
			t.Fatal(err)
		}
		clear(b[:frame.VnetLen])
		var pkt frame.Packet
		if why := frame.Parse(b[:frame.VnetLen+n], &pkt); why != frame.OK {
			t.Fatalf("%d bytes: %v", n, why)
		}
		data = append(data, b[pkt.Payload:pkt.End]...)
	}
	if !bytes.Equal(data, pattern(size)) {
		t.Errorf("%d bytes in packets, want %d", len(data), size)
	}
	// What the other side does not take is lost.
	err := p.Write(numbered(1))
	for err == nil {
		err = p.Write(numbered(1))
	}
	if !errors.Is(err, ErrDropped) {
		t.Errorf("Write = %v", err)
	}
}

// The end of the other side is one of reading, whoever notices it first.
func TestPacketsEnd(t *testing.T) {
	b := make([]byte, frame.MaxFrame)
	for _, written := range []bool{false, true} {
		p, other := packetPair(t)
		got := make(chan error)
		go func() {
			_, err := p.Read(b)
			got <- err
		}()
		unix.Shutdown(other, unix.SHUT_RDWR)
		if written {
			if err := p.Write(numbered(1)); err == nil {
				t.Error("written, and nobody reads")
			}
		}
		if err := <-got; !errors.Is(err, ErrClientGone) {
			t.Errorf("Read = %v", err)
		}
		if _, err := p.TryRead(b); !errors.Is(err, ErrClientGone) {
			t.Errorf("TryRead = %v", err)
		}
		p.Close()
		if _, err := p.Read(b); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read after Close = %v", err)
		}
	}
}
