package tapio

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
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

// packets reads a capture with gopacket and returns its packets, each behind a virtio_net_hdr
// without meaning.
func packets(t *testing.T, file []byte) [][]byte {
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
				c := NewCapture(&file, func(err error) { t.Error(err) })
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
				got := packets(t, file.Bytes())
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
	NewCapture(&file, func(err error) { t.Error(err) }).Close()
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
		c := NewCapture(&file, func(err error) { t.Error(err) })
		start := time.Now()
		for _, after := range []time.Duration{0, 1500 * time.Millisecond, 1234567 * time.Microsecond} {
			time.Sleep(after)
			c.add(numbered(1))
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

// TestCaptureGoesWithTheClock: packets bear the time of day, to be found beside other logs; where the clock is set
// back they do too, and stay in the order in which they came.
func TestCaptureGoesWithTheClock(t *testing.T) {
	var file bytes.Buffer
	c := NewCapture(&file, func(err error) { t.Error(err) })
	start := time.Now()
	jumps := []time.Duration{0, time.Hour, -24 * time.Hour, 1500 * time.Microsecond}
	for i, by := range jumps {
		// Without a monotonic reading, as the clock would give it then.
		c.record(start.Round(0).Add(by), numbered(i)[frame.VnetLen:])
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
	for i, p := range packets(t, file.Bytes()) {
		if number(p) != i {
			t.Errorf("packet %d is %d", i, number(p))
		}
	}
}

// TestCaptureIntoAPipeIsWhole: a program that reads the capture while it is made, in its own time and in pieces,
// gets all of it, though the pipe takes a part of each write only.
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
		c := NewCapture(w, func(err error) { t.Error(err) })
		for i := range n {
			c.record(time.Now(), numbered(i)[frame.VnetLen:])
			c.record(time.Now(), pattern(60001))
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
	all := packets(t, got)
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
	c := NewCapture(&file, func(err error) { t.Error(err) })
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
	if got := packets(t, file.Bytes()); len(got) != 1 || number(got[0]) != 0 {
		t.Errorf("%d packets, want the first only", len(got))
	}
}

// A frame whose header does not fit it is recorded as it is.
func TestCaptureOfMalformedFrame(t *testing.T) {
	var file bytes.Buffer
	c := NewCapture(&file, func(err error) { t.Error(err) })
	b := numbered(7)
	frame.PutVnet(b, frame.Vnet{Flags: frame.NeedsCsum, GSOType: 77, CsumStart: 60000})
	c.add(b)
	c.Close()
	if got := packets(t, file.Bytes()); len(got) != 1 || !bytes.Equal(got[0][frame.VnetLen:], b[frame.VnetLen:]) {
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
		c := NewCapture(file, func(err error) { failures = append(failures, err) })
		synctest.Wait() // the writer has the header
		b := make([]byte, 60000)
		binary.BigEndian.PutUint32(b[frame.L3Off:], 7)
		const more = 5
		fit := captureSize / (len(b) - frame.VnetLen + recordLen)
		start := time.Now()
		for range fit + more {
			c.add(b)
		}
		if took := time.Since(start); took != captureWait {
			t.Errorf("held up for %v, want %v", took, captureWait)
		}
		close(file.free)
		synctest.Wait()
		c.add(b)
		if lost := c.Close(); lost != more {
			t.Errorf("%d frames lost, want %d", lost, more)
		}
		if len(failures) != 1 || !errors.Is(failures[0], ErrCaptureStuck) {
			t.Errorf("failures %v", failures)
		}
		if got := packets(t, file.Bytes()); len(got) != fit+1 {
			t.Errorf("%d packets, want %d", len(got), fit+1)
		}
	})
}

type brokenFile struct{}

func (brokenFile) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestBrokenFileEndsTheCapture(t *testing.T) {
	var mu sync.Mutex
	var failures []error
	c := NewCapture(brokenFile{}, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, err)
	})
	for range 1000 {
		c.add(make([]byte, 60000))
	}
	lost := c.Close()
	if len(failures) != 1 || !errors.Is(failures[0], io.ErrShortWrite) || lost == 0 {
		t.Errorf("%d lost, failures %v", lost, failures)
	}
}
