package tapio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

var (
	_ Link         = (*Stream)(nil)
	_ Backpressure = (*Stream)(nil)
)

const streamPatience = 20 * time.Second

// listening is a stream that waits for clients.
type listening struct {
	*Stream
	path string
	logs *observer.ObservedLogs
	room chan struct{} // filled by OnRoom

	connected chan struct{} // filled by OnConnect
}

func newListening(t testing.TB, o StreamOptions) *listening {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	l := &listening{path: filepath.Join(t.TempDir(), "s"), logs: logs, room: make(chan struct{}, 1), connected: make(chan struct{}, 1)}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: l.path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	o.Log = zap.New(core)
	if l.Stream, err = ListenStream(fd, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.OnRoom(func() {
		select {
		case l.room <- struct{}{}:
		default:
		}
	})
	l.OnConnect(func() {
		select {
		case l.connected <- struct{}{}:
		default:
		}
	})
	if _, err := l.TryRead(make([]byte, frame.MaxFrame)); err != nil { // starts it
		t.Fatal(err)
	}
	return l
}

func (l *listening) dial(t testing.TB) *net.UnixConn {
	t.Helper()
	var c *net.UnixConn
	until(t, "connection", func() (ok bool) {
		var err error
		c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: l.path, Net: "unix"})
		if err != nil && !errors.Is(err, unix.EAGAIN) { // the backlog is full
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// logged waits until a line begins with text so many times.
func (l *listening) logged(t testing.TB, text string, times int) {
	t.Helper()
	until(t, text, func() bool {
		n := 0
		for _, e := range l.logs.All() {
			if strings.HasPrefix(e.Message, text) {
				n++
			}
		}
		return n >= times
	})
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(streamPatience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, streamPatience)
		}
	}
}

// read reads one frame, which is to be b behind an empty virtio_net_hdr.
func read(t testing.TB, l Link, b []byte) {
	t.Helper()
	buf := make([]byte, frame.MaxFrame)
	n, err := l.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf[:n], append(make([]byte, frame.VnetLen), b...)) {
		t.Fatalf("read %d bytes that are not the frame of %d", n, len(b))
	}
}

// receive takes one frame off the client's end.
func receive(t testing.TB, c net.Conn) []byte {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(streamPatience))
	var p [prefixLen]byte
	if _, err := io.ReadFull(c, p[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(p[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStreamDribble(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	frames := [][]byte{pattern(14), pattern(60), pattern(333), pattern(1514)}
	go func() {
		for _, f := range frames {
			for _, b := range prefixed(f) {
				c.Write([]byte{b})
			}
		}
		for _, f := range frames { // and all in one
			c.Write(prefixed(f))
		}
		c.Write(prefixed(pattern(65535)))
	}()
	for range 2 {
		for _, f := range frames {
			read(t, l, f)
		}
	}
	read(t, l, pattern(65535))
	l.logged(t, "accepted connection from PID ", 1)
}

// TestStreamSegments compares what arrives with what the segmenter makes in one place.
func TestStreamSegments(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	until(t, "client", func() bool { return !l.Full() })
	tcp := &frame.TCPFields{SrcPort: 80, DstPort: 5000, Seq: 1, Ack: 2, Flags: frame.ACK | frame.PSH | frame.FIN, Window: 500}
	single := row(remote4, guest4, false, tcp, 0, pattern(100))
	plain := bytes.Clone(single)
	frame.PutVnet(plain, frame.Vnet{})
	for name, in := range map[string][]byte{
		"row of TCP over IPv4":        row(remote4, guest4, false, tcp, 1460, pattern(64000)),
		"row of TCP over IPv6":        row(remote6, guest6, false, tcp, 1440, pattern(64000)),
		"row of more than one batch":  row(remote4, guest4, false, tcp, 64, pattern(65000)),
		"row of odd segments":         row(remote4, guest4, false, tcp, 533, pattern(9001)),
		"row of UDP":                  row(remote6, guest6, true, tcp, 1200, pattern(60001)),
		"short one without checksum":  row(remote4, guest4, false, tcp, 0, nil),
		"single one without checksum": single,
		"finished one":                plain,
	} {
		t.Run(name, func(t *testing.T) {
			if err := l.Write(in); err != nil {
				t.Fatal(err)
			}
			var s segmenter
			if err := s.reset(in, false); err != nil {
				t.Fatal(err)
			}
			out := make([]byte, frame.MaxFrame)
			for i := 0; ; i++ {
				n := s.next(out)
				if n == 0 {
					break
				}
				if got := receive(t, c); !bytes.Equal(got, out[frame.VnetLen:n]) {
					t.Fatalf("frame %d of %d bytes differs from that of %d", i, len(got), n-frame.VnetLen)
				}
			}
		})
	}
	if err := l.Write(append(make([]byte, frame.VnetLen), pattern(65536)...)); !errors.Is(err, ErrRefused) {
		t.Errorf("Write of a frame that is too long = %v", err)
	}
	if err := l.Write([]byte{1, 2}); !errors.Is(err, ErrRefused) {
		t.Errorf("Write of a frame that is too short = %v", err)
	}
}

func TestStreamShortFramesArePadded(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	until(t, "client", func() bool { return !l.Full() })
	f := append(make([]byte, frame.VnetLen), pattern(14)...)
	if err := l.Write(f); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, c); !bytes.Equal(got, append(pattern(14), make([]byte, 46)...)) {
		t.Errorf("got % x", got)
	}
}

func TestStreamHostileClients(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"length 0":     {0, 0, 0, 0},
		"length 13":    {0, 0, 0, 13, 1, 2, 3},
		"length 65536": {0, 1, 0, 0},
		"length -1":    {255, 255, 255, 255},
		"behind a frame": append(prefixed(pattern(60)),
			'G', 'E', 'T', ' ', '/', ' ', 'H'),
	} {
		t.Run(name, func(t *testing.T) {
			l := newListening(t, StreamOptions{})
			c := l.dial(t)
			c.Write(bytes)
			if len(bytes) > 60 {
				read(t, l, pattern(60))
			}
			go func() {
				c.SetReadDeadline(time.Now().Add(streamPatience))
				io.Copy(io.Discard, c) // until it is closed
				d := l.dial(t)
				d.Write(prefixed(pattern(99)))
			}()
			read(t, l, pattern(99)) // the next client is not harmed
			l.logged(t, "Bad frame size from guest, resetting connection", 1)
			l.logged(t, "Client connection closed", 1)
		})
	}
}

func TestStreamPartialFrameIsForgotten(t *testing.T) {
	for cut := range 30 {
		l := newListening(t, StreamOptions{})
		c := l.dial(t)
		c.Write(prefixed(pattern(60)))
		c.Write(prefixed(pattern(60))[:cut])
		c.Close()
		d := l.dial(t) // before the first one's end was seen
		d.Write(prefixed(pattern(77)))
		read(t, l, pattern(60))
		read(t, l, pattern(77))
		l.Close()
	}
}

func TestStreamSecondClient(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	l.logged(t, "accepted connection from PID ", 1)
	d := l.dial(t)
	l.logged(t, "discarding connection from PID ", 1)
	d.SetReadDeadline(time.Now().Add(streamPatience))
	if _, err := d.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("second client: %v", err)
	}
	c.Write(prefixed(pattern(60)))
	read(t, l, pattern(60))
}

// TestStreamReset: a client that goes without having read all is one whose connection was reset.
// The next one is served all the same.
func TestStreamReset(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	<-l.connected
	if err := l.Write(numbered(1)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	d := l.dial(t)
	d.Write(prefixed(pattern(77)))
	read(t, l, pattern(77))
	l.logged(t, "Receive error on guest connection, reset", 1)
	l.logged(t, "Client connection closed", 1)
}

// TestStreamWithoutDescriptors: a client that comes when there is no descriptor for it waits for
// one.
func TestStreamWithoutDescriptors(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(c), "client")
	defer f.Close()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	back := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &lim) }
	defer back()
	// The lowest number that is free is given out; those from the limit on are not.
	none := lim
	for none.Cur = 0; ; none.Cur++ {
		if _, err := unix.FcntlInt(uintptr(none.Cur), unix.F_GETFD, 0); err != nil {
			break
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(c, &unix.SockaddrUnix{Name: l.path}); err != nil {
		t.Fatal(err)
	}
	l.logged(t, "No client can be accepted at present", 1)
	back()
	<-l.connected
	if _, err := f.Write(prefixed(pattern(99))); err != nil {
		t.Fatal(err)
	}
	read(t, l, pattern(99))
}

// TestStreamBuffers: a client's socket has buffers as large as they may be, and nobody inherits it.
func TestStreamBuffers(t *testing.T) {
	l := newListening(t, StreamOptions{})
	l.dial(t)
	<-l.connected
	fd := int(l.cur.Load().fd)
	other, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	for _, o := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		unix.SetsockoptInt(other, unix.SOL_SOCKET, o, 1<<30)
		want, err := unix.GetsockoptInt(other, unix.SOL_SOCKET, o)
		got, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o)
		if err != nil || err2 != nil || got != want {
			t.Errorf("option %d is %d, want %d; %v, %v", o, got, want, err, err2)
		}
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags != unix.FD_CLOEXEC {
		t.Errorf("flags %x, %v", flags, err)
	}
}

func TestStreamOneOff(t *testing.T) {
	l := newListening(t, StreamOptions{OneOff: true})
	c := l.dial(t)
	c.Write(prefixed(pattern(60)))
	c.Close()
	read(t, l, pattern(60))
	buf := make([]byte, frame.MaxFrame)
	for range 2 {
		if _, err := l.Read(buf); err != ErrClientGone {
			t.Errorf("Read = %v", err)
		}
		if _, err := l.TryRead(buf); err != ErrClientGone {
			t.Errorf("TryRead = %v", err)
		}
	}
}

func TestStreamOfAConnection(t *testing.T) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStream(p[0], StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := os.NewFile(uintptr(p[1]), "other end")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.Write(prefixed(pattern(60)))
	read(t, s, pattern(60))
	if err := s.Write(numbered(3)); err != nil {
		t.Error(err)
	}
	if b := receive(t, c); !bytes.Equal(b, numbered(3)[frame.VnetLen:]) {
		t.Errorf("got % x", b)
	}
	c.Close()
	if _, err := s.Read(make([]byte, frame.MaxFrame)); err != ErrClientGone {
		t.Errorf("Read = %v", err)
	}
	if err := s.Write(numbered(3)); !errors.Is(err, ErrDropped) {
		t.Errorf("Write = %v", err)
	}
}

// TestStreamWithoutClient: nothing is sent to nobody, and the next client gets what comes then.
func TestStreamWithoutClient(t *testing.T) {
	l := newListening(t, StreamOptions{})
	for i := range 3 {
		if err := l.Write(numbered(i)); !errors.Is(err, ErrDropped) || !l.Full() {
			t.Errorf("Write to nobody = %v", err)
		}
		c := l.dial(t)
		<-l.connected
		<-l.room
		if err := l.Write(numbered(10 + i)); err != nil || l.Full() {
			t.Error(err)
		}
		if got := receive(t, c); !bytes.Equal(got, numbered(10 + i)[frame.VnetLen:]) {
			t.Errorf("client %d got % x", i, got)
		}
		c.Close()
		done := make(chan struct{})
		go func() { // notices the end
			defer close(done)
			until(t, "end", func() bool { l.TryRead(make([]byte, frame.MaxFrame)); return l.Full() })
		}()
		<-done
	}
}

// TestStreamSlowReader: a client that does not read costs nothing but frames of its own, and when
// it reads again it gets whole frames in the order in which they were taken, and senders hear of
// it.
func TestStreamSlowReader(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	<-l.room
	tcp := &frame.TCPFields{SrcPort: 80, DstPort: 5000, Flags: frame.ACK, Window: 500}
	long := row(remote4, guest4, false, tcp, 1460, pattern(60000))
	sent := 0
	for l.Write(long) == nil {
		sent++
	}
	if sent == 0 || !l.Full() {
		t.Fatalf("%d rows were taken, full %v", sent, l.Full())
	}
	short := 0
	for ; short < 2*backlog && l.Write(numbered(short)) == nil; short++ {
	}
	if short < backlog/2 || short > 2*backlog-1 {
		t.Errorf("%d short frames were taken", short)
	}
	// Endless frames are one more way not to read.
	c.Write([]byte{0, 0, 255, 255, 1})
	if n, err := l.TryRead(make([]byte, frame.MaxFrame)); n != 0 || err != nil {
		t.Errorf("TryRead = %d, %v", n, err)
	}
	for range sent {
		for left := 60000; left > 0; left -= 1460 {
			if f := receive(t, c); len(f) != 54+min(left, 1460) {
				t.Fatalf("frame of %d bytes, %d left", len(f), left)
			}
		}
	}
	for i := range short {
		if f := receive(t, c); !bytes.Equal(f, numbered(i)[frame.VnetLen:]) {
			t.Fatalf("short frame %d: % x", i, f)
		}
	}
	<-l.room
	until(t, "room", func() bool { return !l.Full() })
	if err := l.Write(long); err != nil {
		t.Error(err)
	}
}

// TestStreamManyWriters: frames of writers side by side are all there, unmixed, in each one's
// order, though the socket is full all the time.
func TestStreamManyWriters(t *testing.T) {
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	<-l.room
	const writers, each = 4, 600
	tcp := &frame.TCPFields{Flags: frame.ACK, Window: 500}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				size := 1 + (i*7919+w)%9000
				if i%5 == 0 {
					size = 40000
				}
				p := pattern(size)
				p[0] = byte(w)
				f := *tcp
				f.SrcPort, f.DstPort, f.Seq = uint16(1+w), 5000, uint32(i)
				b := row(remote4, guest4, false, &f, 1<<14, p)
				for {
					err := l.Write(b)
					if err == nil {
						break
					}
					if !errors.Is(err, ErrDropped) {
						t.Error(err)
						return
					}
					time.Sleep(100 * time.Microsecond)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var next [writers]int // message expected
	var offs [writers]int // bytes of it that have come
	for total := 0; total < writers*each; {
		f := receive(t, c)
		var pkt frame.Packet
		if why := frame.Parse(append(make([]byte, frame.VnetLen), f...), &pkt); why != frame.OK {
			t.Fatalf("frame is no packet: %v", why)
		}
		w := int(pkt.SrcPort) - 1
		i := next[w]
		size := 1 + (i*7919+w)%9000
		if i%5 == 0 {
			size = 40000
		}
		if seq := binary.BigEndian.Uint32(f[38:]); seq != uint32(i+offs[w]) {
			t.Fatalf("writer %d message %d: sequence number %d at offset %d", w, i, seq, offs[w])
		}
		offs[w] += pkt.End - pkt.Payload
		if offs[w] > size {
			t.Fatalf("writer %d message %d: %d bytes of %d", w, i, offs[w], size)
		}
		if offs[w] == size {
			next[w]++
			offs[w] = 0
			total++
		}
	}
	<-done
}

func TestStreamClose(t *testing.T) {
	for name, connect := range map[string]bool{"without client": false, "with client": true} {
		t.Run(name, func(t *testing.T) {
			l := newListening(t, StreamOptions{})
			if connect {
				l.dial(t)
				until(t, "client", func() bool { return !l.Full() })
			}
			got := make(chan error)
			go func() {
				_, err := l.Read(make([]byte, frame.MaxFrame))
				got <- err
			}()
			l.Close()
			if err := <-got; !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read = %v", err)
			}
			if _, err := l.TryRead(make([]byte, frame.MaxFrame)); !errors.Is(err, os.ErrClosed) {
				t.Errorf("TryRead = %v", err)
			}
			if err := l.Write(numbered(0)); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Write = %v", err)
			}
			if err := l.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Close = %v", err)
			}
			if _, err := net.Dial("unix", l.path); err == nil {
				t.Error("the socket still listens")
			}
		})
	}
}

func TestStreamAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l := newListening(t, StreamOptions{})
	c := l.dial(t)
	until(t, "client", func() bool { return !l.Full() })
	go io.Copy(io.Discard, c)
	tcp := &frame.TCPFields{SrcPort: 80, DstPort: 5000, Flags: frame.ACK, Window: 500}
	long := row(remote4, guest4, false, tcp, 1460, pattern(60000))
	if n := testing.AllocsPerRun(100, func() {
		if err := l.Write(long); err != nil && !errors.Is(err, ErrDropped) {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("Write allocates %v times", n)
	}
	out, buf := prefixed(pattern(1514)), make([]byte, frame.MaxFrame)
	fd, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		fd.Write(func(fd uintptr) bool { unix.Write(int(fd), out); return true })
		for {
			if n, err := l.TryRead(buf); n != 0 || err != nil {
				return
			}
		}
	}); n > 1 { // the closure
		t.Errorf("TryRead allocates %v times", n-1)
	}
}

func BenchmarkStreamWrite(b *testing.B) {
	for _, bm := range []struct {
		name string
		size int
	}{{"1460", 1460}, {"65480", 65480}} {
		b.Run(bm.name, func(b *testing.B) {
			l := newListening(b, StreamOptions{})
			c := l.dial(b)
			<-l.room
			go io.Copy(io.Discard, c)
			tcp := &frame.TCPFields{SrcPort: 80, DstPort: 5000, Flags: frame.ACK, Window: 500}
			size := bm.size
			if size > 60000 {
				size = 0
			}
			long := row(remote4, guest4, false, tcp, size, pattern(65480-65480%bm.size))
			b.SetBytes(int64(len(long)))
			for b.Loop() {
				for l.Write(long) != nil {
					<-l.room
				}
			}
		})
	}
}
