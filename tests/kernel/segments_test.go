package kernel

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// TestShortestSegments: with a peer that takes segments of one byte only, the kernel cuts a stream
// into longer ones, though not much longer. What is below frame.MinTCPSegment comes from no kernel.
func TestShortestSegments(t *testing.T) {
	n := namespace(t)
	var tap *tapio.Tap
	if err := n.Do(func() (err error) { tap, err = tapio.OpenTap("tap0", tapio.TapOptions{}); return err }); err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if tap.Features()&tapio.TSO == 0 {
		t.Skip("this kernel's tap takes no rows of segments")
	}
	const peerMAC = "02:00:00:00:00:09"
	if err := n.IP("link set tap0 up\naddr add 192.0.2.1/24 dev tap0\nneigh add 192.0.2.9 lladdr " + peerMAC + " dev tap0"); err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := n.Dial(t.Context(), "tcp", "192.0.2.9:80")
		if err != nil {
			return // the test has ended
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		for {
			if _, err := c.Write(make([]byte, 60000)); err != nil {
				return
			}
		}
	}()

	var next uint32
	shortest, rows := 65536, 0
	b, out := make([]byte, frame.MaxFrame), make([]byte, frame.MaxFrame)
	for deadline := time.Now().Add(20 * time.Second); rows < 50 && time.Now().Before(deadline); {
		size, err := tap.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		var p frame.Packet
		if frame.Parse(b[:size], &p) != frame.OK || p.Kind != frame.TCP {
			continue
		}
		if p.GSO > 0 {
			shortest = min(shortest, int(p.GSO))
			rows++
		}
		h := b[p.L4:]
		seq := binary.BigEndian.Uint32(h[4:])
		f := frame.TCPFields{SrcPort: p.DstPort, DstPort: p.SrcPort, Seq: 1, Flags: frame.ACK, Window: 65535}
		var options []byte
		if h[13]&frame.SYN != 0 {
			f.Seq, f.Flags, next = 0, frame.SYN|frame.ACK, seq+1
			// MSS 1, SACK permitted, timestamps, window scale.
			options = []byte{2, 4, 0, 1, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 10}
			copy(options[12:16], tsval(h))
		} else {
			if seq == next {
				next += uint32(p.End - p.Payload)
			}
			options = append([]byte{1, 1, 8, 10, 0, 0, 0, 1}, tsval(h)...)
		}
		f.Ack, f.Options = next, len(options)
		ip := frame.IP{Src: p.Dst, Dst: p.Src, Proto: frame.ProtoTCP, TTL: 64, Len: frame.TCPLen + len(options)}
		mac, _ := net.ParseMAC(peerMAC)
		frame.PutVnet(out, frame.Vnet{})
		frame.PutEth(out, frame.Src(b), frame.MAC(mac), frame.EtherIPv4)
		at := frame.L3Off + frame.PutIP(out[frame.L3Off:], &ip)
		frame.PutTCP(out[at:], &f)
		end := at + frame.TCPLen + copy(out[at+frame.TCPLen:], options)
		binary.BigEndian.PutUint16(out[at+16:], frame.Checksum(out[at:end], frame.PseudoSum(&ip.Src, &ip.Dst, frame.ProtoTCP, ip.Len)))
		if err := tap.Write(out[:end]); err != nil && !errors.Is(err, tapio.ErrDropped) {
			t.Fatal(err)
		}
	}
	t.Logf("%d rows, the shortest segment has %d bytes", rows, shortest)
	if rows == 0 {
		t.Fatal("no row of segments came")
	}
	if shortest < frame.MinTCPSegment {
		t.Errorf("segments of %d bytes, the least should be %d", shortest, frame.MinTCPSegment)
	}
}

// tsval returns the timestamp in the TCP header h, as Linux puts it.
func tsval(h []byte) []byte {
	for o := h[frame.TCPLen : int(h[12]>>4)*4]; len(o) >= 10; o = o[1:] {
		if o[0] == 8 && o[1] == 10 {
			return o[2:6]
		}
	}
	return make([]byte, 4)
}

// TestMostDatagrams: one call makes no more datagrams than frame.MaxUDPSegments.
func TestMostDatagrams(t *testing.T) {
	n := namespace(t)
	pc, err := n.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	c, err := n.Dial(t.Context(), "udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := unix.SetsockoptInt(fd(t, c.(*net.UDPConn)), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1); err != nil {
		t.Skipf("this kernel cannot: %v", err)
	}
	if _, err := c.Write(make([]byte, 64)); err != nil {
		t.Errorf("64 datagrams: %v", err)
	}
	if _, err := c.Write(make([]byte, frame.MaxUDPSegments+1)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%d datagrams: %v, want EINVAL", frame.MaxUDPSegments+1, err)
	}
}
