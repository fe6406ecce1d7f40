package tapio

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// A device that takes no frame any more, although it is still there, ends the reader, who may be
// waiting or not.
func TestFailedWriteEndsTheReader(t *testing.T) {
	for _, waits := range []bool{true, false} {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[1])
		q := &queue{name: "eth0", features: VnetHeader}
		if err := q.use(p[0]); err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		if err := unix.Shutdown(p[1], unix.SHUT_RD); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, frame.MaxFrame)
		got := make(chan error, 1)
		read := func() {
			_, err := q.Read(b)
			got <- err
		}
		if waits {
			go read()
		}
		wrote := q.Write(numbered(1))
		if !waits {
			read()
		}
		const text = `write tap "eth0": broken pipe`
		if err := <-got; !errors.Is(err, ErrWrite) || err.Error() != text || wrote == nil || wrote.Error() != text {
			t.Errorf("Write = %v, Read = %v", wrote, err)
		}
		if _, err := q.TryRead(b); !errors.Is(err, ErrWrite) {
			t.Errorf("TryRead = %v", err)
		}
		if err := q.Write(numbered(2)); !errors.Is(err, ErrWrite) {
			t.Errorf("second Write = %v", err)
		}
		q.Close()
		if _, err := q.Read(b); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read after Close = %v", err)
		}
	}
}
