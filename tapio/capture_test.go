package tapio

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

var _ Link = (*captured)(nil)

// capture makes c record the frame b.
func capture(c *Capture, b []byte) { c.add(b, func() error { return nil }) }

// captureAt is capture at another time.
func captureAt(c *Capture, at time.Time, b []byte) {
	p := c.prepare(b)
	defer p.release()
	if c.claim(p.size()) {
		c.place(p, at)
	}
}

// readCapture reads a capture with gopacket and returns its packets, each behind a virtio_net_hdr
// without meaning.
func readCapture(t *testing.T, file []byte) [][]byte {
	t.Helper()
	r, err := pcapgo.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if r.LinkType() != layers.LinkTypeEthernet || r.Snaplen() != captureSnap {
		t.Errorf("link type %v, snap length %d", r.LinkType(), r.Snaplen())
	}
	var all [][]byte
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if info.Length != len(data) || info.Timestamp.Year() < 2000 {
			t.Errorf("packet %d: %+v with %d bytes", len(all), info, len(data))
		}
		all = append(all, append(make([]byte, frame.VnetLen), data...))
	}
}

func TestCaptureHoldsWhatTheGuestSees(t *testing.T) {
	fields := &frame.TCPFields{SrcPort: 80, DstPort: 4000, Seq: 1000, Ack: 7, Flags: frame.ACK, Window: 9}
	tests := []struct {
		name  string
		frame []byte
		sizes []int // of the payloads
	}{
		{"IPv4 TCP in a row", row(remote4, guest4, false, fields, 1000, pattern(2500)), []int{1000, 1000, 500}},
		{"IPv6 TCP in a row", row(remote6, guest6, false, fields, 1440, pattern(1441)), []int{1440, 1}},
		{"UDP in a row", row(remote6, guest6, true, fields, 100, pattern(250)), []int{100, 100, 50}},
		{"one segment", row(remote4, guest4, false, fields, 0, pattern(777)), []int{777}},
		{"one datagram", row(remote4, guest4, true, fields, 0, pattern(60000)), []int{60000}},
	}
	for _, tt := range tests {
		for _, dir := range []string{"to the guest", "from the guest"} {
			t.Run(tt.name+" "+dir, func(t *testing.T) {
				var file bytes.Buffer
				c := NewCapture(&file, 0, func(err error) { t.Error(err) })
				ours, theirs := Pipe(PipeOptions{})
				link := c.Link(ours)
				was := bytes.Clone(tt.frame)
				var err error
				if dir == "to the guest" {
					err = link.Write(tt.frame)
				} else if err = theirs.Write(tt.frame); err == nil {
					b := make([]byte, frame.MaxFrame)
					var n int
					n, err = link.Read(b)
					if !bytes.Equal(b[:n], was) {
						t.Error("the frame itself was changed")
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(tt.frame, was) {
					t.Error("the frame was changed")
				}
				link.Close()
				theirs.Close()
				if lost := c.Close(); lost != 0 {
					t.Errorf("%d frames lost", lost)
				}
				got := readCapture(t, file.Bytes())
				if len(got) != len(tt.sizes) {
					t.Fatalf("%d packets, want %d", len(got), len(tt.sizes))
				}
				var payload []byte
				for i, p := range got {
					pkt := decode(t, p) // and checksums
					data := pkt.TransportLayer().LayerPayload()
					if len(data) != tt.sizes[i] {
						t.Errorf("packet %d has %d bytes, want %d", i, len(data), tt.sizes[i])
					}
					payload = append(payload, data...)
				}
				if !bytes.Equal(payload, pattern(len(payload))) {
					t.Error("payload differs")
				}
			})
		}
	}
}

// The header of a capture, as libpcap has it: in the machine's byte order, with microseconds.
func TestCaptureBegins(t *testing.T) {
	var file bytes.Buffer
	NewCapture(&file, 0, func(err error) { t.Error(err) }).Close()
	var h struct {
		Magic        uint32
		Major, Minor uint16
		Zone         int32
		Figures      uint32
		Snap, Link   uint32
	}
	if _, err := binary.Decode(file.Bytes(), binary.NativeEndian, &h); err != nil || file.Len() != 24 {
		t.Fatalf("%d bytes, %v", file.Len(), err)
	}
	if h.Magic != 0xa1b2c3d4 || h.Major != 2 || h.Minor != 4 || h.Zone != 0 || h.Figures != 0 || h.Snap != 65535 || h.Link != 1 {
		t.Errorf("%+v", h)
	}
}

// The time of a packet is that of its frame, to the microsecond.
func TestCaptureTellsTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var file bytes.Buffer
		c := NewCapture(&file, 0, func(err error) { t.Error(err) })
		start := time.Now()
		for _, after := range []time.Duration{0, 1500 * time.Millisecond, 1234567 * time.Microsecond} {
			time.Sleep(after)
			capture(c, numbered(1))
		}
		c.Close()
		r, err := pcapgo.NewReader(&file)
		if err != nil {
			t.Fatal(err)
		}
		for _, after := range []time.Duration{0, 1500 * time.Millisecond, 2734567 * time.Microsecond} {
			_, info, err := r.ReadPacketData()
			if want := start.Add(after).Truncate(time.Microsecond); err != nil || !info.Timestamp.Equal(want) {
				t.Errorf("%v, want %v; %v", info.Timestamp, want, err)
			}
		}
	})
}

// TestCaptureGoesWithTheClock: packets bear the time of day, to be found beside other logs; where
// the clock is set back they do too, and stay in the order in which they came.
func TestCaptureGoesWithTheClock(t *testing.T) {
	var file bytes.Buffer
	c := NewCapture(&file, 0, func(err error) { t.Error(err) })
	start := time.Now()
	jumps := []time.Duration{0, time.Hour, -24 * time.Hour, 1500 * time.Microsecond}
	for i, by := range jumps {
		// Without a monotonic reading, as the clock would give it then.
		captureAt(c, start.Round(0).Add(by), numbered(i))
	}
	c.Close()
	r, err := pcapgo.NewReader(bytes.NewReader(file.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	for i, by := range jumps {
		_, info, err := r.ReadPacketData()
		if want := start.Add(by).Truncate(time.Microsecond); err != nil || !info.Timestamp.Equal(want) {
			t.Errorf("packet %d: %v, want %v; %v", i, info.Timestamp, want, err)
		}
	}
	for i, p := range readCapture(t, file.Bytes()) {
		if number(p) != i {
			t.Errorf("packet %d is %d", i, number(p))
		}
	}
}

// TestCaptureIntoAPipeIsWhole: a program that reads the capture while it is made, in its own time
// and in pieces, gets all of it, though the pipe takes a part of each write only.
func TestCaptureIntoAPipeIsWhole(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 4096) })
	const n = 50
	go func() {
		c := NewCapture(w, 0, func(err error) { t.Error(err) })
		for i := range n {
			capture(c, numbered(i))
			capture(c, append(make([]byte, frame.VnetLen), pattern(60001)...))
		}
		if lost := c.Close(); lost != 0 {
			t.Errorf("%d frames lost", lost)
		}
		w.Close()
	}()
	got, err := io.ReadAll(iotest.OneByteReader(bufio.NewReaderSize(r, 1500)))
	if err != nil {
		t.Fatal(err)
	}
	all := readCapture(t, got)
	if len(all) != 2*n {
		t.Fatalf("%d packets, want %d", len(all), 2*n)
	}
	for i := range n {
		if number(all[2*i]) != i || !bytes.Equal(all[2*i+1][frame.VnetLen:], pattern(60001)) {
			t.Errorf("packets %d and %d differ", 2*i, 2*i+1)
		}
	}
}

func TestCaptureLeavesOutWhatWasNotSent(t *testing.T) {
	var file bytes.Buffer
	c := NewCapture(&file, 0, func(err error) { t.Error(err) })
	a, b := Pipe(PipeOptions{Queue: 1})
	link := c.Link(a)
	for i := range 3 {
		link.Write(numbered(i))
	}
	if n, err := link.TryRead(make([]byte, frame.MaxFrame)); n != 0 || err != nil {
		t.Errorf("TryRead of nothing = %d, %v", n, err)
	}
	link.Close()
	b.Close()
	c.Close()
	if got := readCapture(t, file.Bytes()); len(got) != 1 || number(got[0]) != 0 {
		t.Errorf("%d packets, want the first only", len(got))
	}
}

// A frame whose header does not fit it is recorded as it is.
func TestCaptureOfMalformedFrame(t *testing.T) {
	var file bytes.Buffer
	c := NewCapture(&file, 0, func(err error) { t.Error(err) })
	b := numbered(7)
	frame.PutVnet(b, frame.Vnet{Flags: frame.NeedsCsum, GSOType: 77, CsumStart: 60000})
	capture(c, b)
	c.Close()
	if got := readCapture(t, file.Bytes()); len(got) != 1 || !bytes.Equal(got[0][frame.VnetLen:], b[frame.VnetLen:]) {
		t.Errorf("got % x", got)
	}
}

// slowFile takes nothing until it is let go.
type slowFile struct {
	bytes.Buffer
	free chan struct{}
}

func (f *slowFile) Write(b []byte) (int, error) {
	<-f.free
	return f.Buffer.Write(b)
}

func TestSlowFileHoldsUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := &slowFile{free: make(chan struct{})}
		var failures []error
		c := NewCapture(file, 0, func(err error) { failures = append(failures, err) })
		synctest.Wait() // the writer has the header
		b := make([]byte, 60000)
		binary.BigEndian.PutUint32(b[frame.L3Off:], 7)
		const more = 5
		fit := captureSize / (len(b) - frame.VnetLen + recordLen)
		start := time.Now()
		for range fit + more {
			capture(c, b)
		}
		if took := time.Since(start); took != captureWait {
			t.Errorf("held up for %v, want %v", took, captureWait)
		}
		close(file.free)
		synctest.Wait()
		capture(c, b)
		if lost := c.Close(); lost != more {
			t.Errorf("%d frames lost, want %d", lost, more)
		}
		if len(failures) != 1 || !errors.Is(failures[0], ErrCaptureStuck) {
			t.Errorf("failures %v", failures)
		}
		if got := readCapture(t, file.Bytes()); len(got) != fit+1 {
			t.Errorf("%d packets, want %d", len(got), fit+1)
		}
	})
}

type brokenFile struct{}

func (brokenFile) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestBrokenFileEndsTheCapture(t *testing.T) {
	var mu sync.Mutex
	var failures []error
	c := NewCapture(brokenFile{}, 0, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, err)
	})
	for range 1000 {
		capture(c, make([]byte, 60000))
	}
	lost := c.Close()
	if len(failures) != 1 || !errors.Is(failures[0], io.ErrShortWrite) || lost == 0 {
		t.Errorf("%d lost, failures %v", lost, failures)
	}
}

// TestShortSegmentsStayInOnePacket: a row that would become mostly headers is one packet, with a
// good checksum, and costs about what a frame costs.
func TestShortSegmentsStayInOnePacket(t *testing.T) {
	fields := &frame.TCPFields{SrcPort: 80, DstPort: 4000, Seq: 1000, Ack: 7, Flags: frame.ACK | frame.PSH, Window: 9}
	for _, tt := range []struct {
		name       string
		frame      []byte
		packets, n int // number, and payload of the first
	}{
		{"the most segments", row(remote4, guest4, false, fields, 10, pattern(10*captureSegments)), captureSegments, 10},
		{"one more", row(remote4, guest4, false, fields, 10, pattern(10*captureSegments+1)), 1, 10*captureSegments + 1},
		{"bytes", row(remote4, guest4, false, fields, 1, pattern(60000)), 1, 60000},
		{"bytes over IPv6", row(remote6, guest6, false, fields, 1, pattern(65400)), 1, 65400},
		{"datagrams of a byte", row(remote6, guest6, true, fields, 1, pattern(60000)), 1, 60000},
		{"MTU of 576", row(remote4, guest4, false, fields, 524, pattern(65495)), 125, 524},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var file bytes.Buffer
			c := NewCapture(&file, 0, func(err error) { t.Error(err) })
			capture(c, tt.frame)
			c.Close()
			if file.Len() > len(tt.frame)+len(tt.frame)/4+200*captureSegments/2 {
				t.Errorf("a frame of %d bytes takes %d", len(tt.frame), file.Len())
			}
			got := readCapture(t, file.Bytes())
			if len(got) != tt.packets {
				t.Fatalf("%d packets, want %d", len(got), tt.packets)
			}
			if n := len(decode(t, got[0]).TransportLayer().LayerPayload()); n != tt.n {
				t.Errorf("%d bytes, want %d", n, tt.n)
			}
		})
	}
}

// TestCaptureEndsAtItsSize: the last packet that fits is the last one; what the link carries stays
// as it is.
func TestCaptureEndsAtItsSize(t *testing.T) {
	size := recordLen + len(numbered(0)) - frame.VnetLen
	for _, tt := range []struct {
		name  string
		limit int
		want  int
	}{
		{"no limit", 0, 20},
		{"not even the header", 10, 0},
		{"one packet", captureHeader + size, 1},
		{"almost two", captureHeader + 2*size - 1, 1},
		{"all but one", captureHeader + 19*size, 19},
		{"all", captureHeader + 20*size, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var file bytes.Buffer
			var failures []error
			c := NewCapture(&file, int64(tt.limit), func(err error) { failures = append(failures, err) })
			ours, theirs := Pipe(PipeOptions{Queue: 20})
			link := c.Link(ours)
			for i := range 20 {
				if err := link.Write(numbered(i)); err != nil {
					t.Fatal(err)
				}
			}
			for range 20 {
				if _, err := theirs.Read(make([]byte, frame.MaxFrame)); err != nil {
					t.Fatal(err)
				}
			}
			link.Close()
			theirs.Close()
			if lost := c.Close(); lost != 0 {
				t.Errorf("%d frames lost", lost)
			}
			if got := readCapture(t, file.Bytes()); len(got) != tt.want {
				t.Errorf("%d packets, want %d", len(got), tt.want)
			}
			if full := len(failures) == 1 && errors.Is(failures[0], ErrCaptureFull); full != (tt.want < 20) || len(failures) > 1 {
				t.Errorf("failures %v", failures)
			}
		})
	}
}

// TestSlowFileLetsOthersPass: a frame that waits for room holds no lock that others need.
func TestSlowFileLetsOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := &slowFile{free: make(chan struct{})}
		c := NewCapture(file, 0, func(err error) {})
		synctest.Wait()
		b := make([]byte, 60000)
		for range captureSize / (len(b) - frame.VnetLen + recordLen) {
			capture(c, b)
		}
		var waiting sync.WaitGroup
		start := time.Now()
		for range 8 {
			waiting.Go(func() { capture(c, b) })
		}
		synctest.Wait()
		if !c.order.TryLock() {
			t.Fatal("the lock is held while a frame waits")
		}
		c.order.Unlock()
		waiting.Wait()
		if took := time.Since(start); took != captureWait {
			t.Errorf("held up for %v, want %v", took, captureWait)
		}
		close(file.free)
		if lost := c.Close(); lost != 8 {
			t.Errorf("%d frames lost, want 8", lost)
		}
	})
}

// BenchmarkCapture is what frames cost that are captured: a usual row, and what a hostile guest may
// send.
func BenchmarkCapture(b *testing.B) {
	fields := &frame.TCPFields{SrcPort: 80, DstPort: 4000, Seq: 1000, Ack: 7, Flags: frame.ACK, Window: 9}
	for _, size := range []int{1, 8, 524, 1460, 0} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			in := row(remote4, guest4, false, fields, size, pattern(65000))
			c := NewCapture(io.Discard, 0, func(err error) {})
			defer c.Close()
			b.ReportAllocs()
			for b.Loop() {
				capture(c, in)
			}
		})
	}
}
