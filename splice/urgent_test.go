package splice

import (
	"bytes"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/sock"
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

// TestUrgentDataDoesNotStall: what telnet and rlogin send as urgent arrives in its place, and what
// follows it as well, in single requests and amid a bulk transfer.
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

// TestUrgentByteBeforeTheEndIsNotLost: splice(2) stops before an urgent byte, and what it says then
// looks like the end if the peer has sent that too. The byte may be there before the watch has told
// of it.
func TestUrgentByteBeforeTheEndIsNotLost(t *testing.T) {
	for _, family := range loopbacks {
		t.Run(family.name, func(t *testing.T) {
			l := listen(t, family.addr)
			c := dial(t, address(l))
			a := must[*net.TCPConn](t)(l.AcceptTCP())
			defer a.Close()
			must[int](t)(c.Write(noise(100)))
			sendUrgent(t, c, []byte{1})
			must[int](t)(c.Write(noise(50)))
			c.CloseWrite()
			raw := must[syscall.RawConn](t)(a.SyscallConn())
			raw.Control(func(fd uintptr) {
				sock.PrepareStream(int(fd))
				for end := time.Now().Add(patience); sock.Poll(int(fd), unix.POLLRDHUP) == 0; {
					if time.Now().After(end) {
						t.Fatal("the end does not arrive")
					}
				}
				p := &pipes{size: pipeCapacity()}
				defer p.end()
				s, src := stream{bulk: true}, end{fd: int(fd), readable: true, hup: true}
				got := 0
				for !src.eof {
					n, e := s.read(&src, p)
					if e != 0 {
						t.Fatal(e)
					}
					got += n
					s.drop(p)
					s.bulk = true
				}
				if got != 151 {
					t.Errorf("the end comes after %d bytes, want 151", got)
				}
			})
		})
	}
}
