package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/config"
	"fusilli/internal/logging"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// observer is what watches the frames of a guest's link for the user: a capture, a trace, a count.
// What was not asked for costs nothing: the link is used as it is.
type observer struct {
	link tapio.Link // to be used instead of the guest's

	cfg     *config.Config
	log     *zap.Logger
	file    *os.File // of the capture, or nil
	capture *tapio.Capture
	counted *counted // nil without --stats
	parts   sync.WaitGroup
	end     context.CancelFunc
}

// observe begins what cfg asks for on link, nil if there is none. A capture that cannot be begun is
// not missed by anybody else.
func observe(cfg *config.Config, link tapio.Link, log *zap.Logger) *observer {
	o := &observer{link: link, cfg: cfg, log: log}
	if link == nil {
		return o
	}
	if cfg.Log.Stats > 0 {
		o.counted = &counted{Link: o.link}
		o.link = o.counted
	}
	if log.Core().Enabled(logging.TraceLevel) {
		o.link = &traced{o.link, log}
	}
	if cfg.Capture != "" {
		o.begin(cfg.Capture)
	}
	return o
}

func (o *observer) begin(path string) {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		o.log.Error("Couldn't open pcap file "+path, zap.Error(err))
		return
	}
	o.log.Info("Saving packet capture to " + path)
	o.file = os.NewFile(uintptr(fd), path)
	o.capture = tapio.NewCapture(o.file, o.cfg.CaptureSize, func(err error) {
		if errors.Is(err, tapio.ErrCaptureFull) {
			o.log.Warn(fmt.Sprintf("Packet capture ends, its file has reached the %d bytes of --pcap-size", o.cfg.CaptureSize))
			return
		}
		o.log.Error("Packet capture is incomplete", zap.Error(err))
	})
	o.link = o.capture.Link(o.link)
}

// start begins the table of --stats, with what else is counted.
func (o *observer) start(others []count) {
	if o.cfg.Log.Stats <= 0 {
		return
	}
	if o.counted != nil {
		others = append(o.counted.counts(), others...)
	}
	others = append(others, levels()...)
	ctx, end := context.WithCancel(context.Background())
	o.end = end
	o.parts.Go(func() { printStats(ctx, os.Stderr, o.cfg.Log.Stats, others) })
}

// close ends all of it, once the link carries nothing more.
func (o *observer) close() {
	if o.end != nil {
		o.end()
		o.parts.Wait()
	}
	if o.capture == nil {
		return
	}
	if lost := o.capture.Close(); lost > 0 {
		o.log.Warn("Frames are missing in the packet capture", zap.Uint64("frames", lost))
	}
	o.file.Sync() // nobody to report a failure to, and it may not be a regular file
	if err := o.file.Close(); err != nil {
		o.log.Warn("Packet capture is incomplete", zap.Error(err))
	}
}

// counted is a Link that counts frames.
type counted struct {
	tapio.Link
	in, out atomic.Uint64 // from and to the guest
}

// counts names what is counted.
func (l *counted) counts() []count {
	return []count{{name: "tap-in", load: l.in.Load}, {name: "tapout", load: l.out.Load}}
}

// Read implements tapio.Link.
func (l *counted) Read(b []byte) (int, error) { return l.came(l.Link.Read(b)) }

// TryRead implements tapio.Link.
func (l *counted) TryRead(b []byte) (int, error) { return l.came(l.Link.TryRead(b)) }

func (l *counted) came(n int, err error) (int, error) {
	if n > 0 {
		l.in.Add(1)
	}
	return n, err
}

// Write implements tapio.Link.
func (l *counted) Write(b []byte) error {
	err := l.Link.Write(b)
	if err == nil {
		l.out.Add(1)
	}
	return err
}

// traced is a Link that logs a line for each frame.
type traced struct {
	tapio.Link
	log *zap.Logger
}

// Read implements tapio.Link.
func (l *traced) Read(b []byte) (int, error) { return l.came(b, l.Link.Read) }

// TryRead implements tapio.Link.
func (l *traced) TryRead(b []byte) (int, error) { return l.came(b, l.Link.TryRead) }

func (l *traced) came(b []byte, read func([]byte) (int, error)) (int, error) {
	n, err := read(b)
	if n > 0 {
		l.log.Log(logging.TraceLevel, "from the guest: "+describe(b[:n]))
	}
	return n, err
}

// Write implements tapio.Link.
func (l *traced) Write(b []byte) error {
	err := l.Link.Write(b)
	text := "to the guest: " + describe(b)
	if err != nil {
		text += ": " + err.Error()
	}
	l.log.Log(logging.TraceLevel, text)
	return err
}

// describe says in one line what a frame is.
func describe(b []byte) string {
	var p frame.Packet
	if r := frame.Parse(b, &p); r != frame.OK {
		return fmt.Sprintf("%d bytes, %s", len(b)-frame.VnetLen, r)
	}
	src, dst := netip.AddrFrom16(p.Src).Unmap(), netip.AddrFrom16(p.Dst).Unmap()
	text := ""
	switch p.Kind {
	case frame.TCP, frame.UDP:
		name := "TCP"
		if p.Kind == frame.UDP {
			name = "UDP"
		}
		text = fmt.Sprintf("%s [%s]:%d -> [%s]:%d, %d bytes of payload", name, src, p.SrcPort, dst, p.DstPort, p.End-p.Payload)
		if p.Kind == frame.TCP {
			text += ", " + flags(b[p.L4+13])
		}
		if p.GSO > 0 {
			text += fmt.Sprintf(" in segments of %d", p.GSO)
		}
	case frame.ICMPEcho, frame.ICMPv6Echo:
		text = fmt.Sprintf("echo request %d [%s] -> [%s], %d bytes of payload", p.SrcPort, src, dst, p.End-p.Payload)
	case frame.NDP:
		text = fmt.Sprintf("NDP [%s] -> [%s]", src, dst)
	case frame.ARP:
		text = "ARP"
	default:
		text = fmt.Sprintf("%d bytes", len(b)-frame.VnetLen)
	}
	return text
}

// flags names the flags of a TCP segment.
func flags(b byte) string {
	text := ""
	for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if b&(1<<i) != 0 {
			if text != "" {
				text += "+"
			}
			text += name
		}
	}
	return text
}
