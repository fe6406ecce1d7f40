package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	zaptest "go.uber.org/zap/zaptest/observer"

	"fusilli/config"
	"fusilli/internal/logging"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// segment is a TCP segment with two bytes of payload.
func segment(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, frame.MinFrame+100)
	ip := frame.IP{Src: frame.Addr{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}, Dst: frame.Addr{10: 0xff, 11: 0xff, 12: 198, 13: 51, 14: 100, 15: 1},
		Proto: frame.ProtoTCP, TTL: 64, Len: frame.TCPLen + 2}
	frame.PutEth(b, frame.MAC{2}, frame.MAC{2, 1}, frame.EtherIPv4)
	l4 := frame.L3Off + frame.PutIP(b[frame.L3Off:], &ip)
	frame.PutTCP(b[l4:], &frame.TCPFields{SrcPort: 4000, DstPort: 80, Flags: frame.ACK | frame.PSH})
	return b[:l4+frame.TCPLen+2]
}

func TestObservedLink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pcap")
	cfg := &config.Config{Capture: path, Log: config.Log{Stats: 1e9}}
	core, logs := zaptest.New(logging.TraceLevel)
	ours, theirs := tapio.Pipe(tapio.PipeOptions{})
	o := observe(cfg, ours, zap.New(core))
	b := segment(t)
	if err := o.link.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Write(make([]byte, frame.MinFrame)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, frame.MaxFrame)
	if _, err := o.link.Read(buf); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing
		if _, err := o.link.TryRead(buf); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []uint64{2, 1} {
		if c := o.counted.counts()[i]; c.load() != want {
			t.Errorf("%s is %d, want %d", c.name, c.load(), want)
		}
	}
	o.start(nil)
	o.link.Close()
	theirs.Close()
	o.close()
	var got []string
	for _, e := range logs.All() {
		got = append(got, e.Message)
	}
	want := strings.Join([]string{
		"Saving packet capture to " + path,
		"to the guest: TCP [192.0.2.1]:4000 -> [198.51.100.1]:80, 2 bytes of payload, PSH+ACK",
		"from the guest: TCP [192.0.2.1]:4000 -> [198.51.100.1]:80, 2 bytes of payload, PSH+ACK",
		"from the guest: 60 bytes, ethertype",
	}, "\n")
	if strings.Join(got, "\n") != want {
		t.Errorf("log:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() < 24+3*16 {
		t.Errorf("capture: %v, %v", st, err)
	}
}

func TestUnobservedLinkIsTheLink(t *testing.T) {
	ours, theirs := tapio.Pipe(tapio.PipeOptions{})
	defer ours.Close()
	defer theirs.Close()
	core, logs := zaptest.New(zapcore.DebugLevel)
	o := observe(&config.Config{}, ours, zap.New(core))
	if o.link != tapio.Link(ours) {
		t.Error("the link is wrapped")
	}
	o.close()
	// A file that cannot be made costs the capture only.
	o = observe(&config.Config{Capture: "/nonexistent/pcap"}, ours, zap.New(core))
	o.close()
	if o.link != tapio.Link(ours) || logs.Len() != 1 || logs.All()[0].Message != "Couldn't open pcap file /nonexistent/pcap" {
		t.Errorf("log %+v", logs.All())
	}
}
