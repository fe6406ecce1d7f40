package splice

import (
	"bytes"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// sendUrgent has c send b, whose last byte is urgent.
func sendUrgent(t *testing.T, c *net.TCPConn, b []byte) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Send(int(fd), b, unix.MSG_OOB|unix.MSG_DONTWAIT)
		return sent != unix.EAGAIN
	})
	if err != nil || sent != nil {
		t.Fatal(err, sent)
	}
}

// TestUrgentDataDoesNotStall: what telnet and rlogin send as urgent arrives in its place, and what follows
// it as well, in single requests and amid a bulk transfer.
func TestUrgentDataDoesNotStall(t *testing.T) {
	eachEnd(t, func(t *testing.T, s *Splicer, near, far *net.TCPConn) {
		got := make([]byte, 300)
		data := noise(300)
		for range 3 {
			near.Write(data[:100])
			sendUrgent(t, near, data[100:150])
			near.Write(data[150:])
			if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("got %x, %v, want %x", got, err, data)
			}
		}
		bulk := noise(8 << 20)
		go func() {
			near.Write(bulk[:4<<20])
			sendUrgent(t, near, bulk[4<<20:4<<20+100])
			near.Write(bulk[4<<20+100:])
			near.CloseWrite()
		}()
		all, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(all, bulk) {
			t.Errorf("%d of %d bytes, or others than were sent: %v", len(all), len(bulk), err)
		}
	})
}
