package e2e

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"fusilli/tapio/frame"
	"fusilli/tests/bed"
)

// The ports of a hand-made guest's connections.
const (
	guestTCP = 40001
	guestUDP = 40002
)

// segment is what the hand-made guest has got.
type segment struct {
	flags    uint8
	seq, ack uint32
	data     []byte
}

// packet sends an IPv4 packet from the guest to the far peer, whose layer 4 header and payload are
// l4, with its checksum at the offset sum.
func (h *hypervisor) packet(proto uint8, l4 []byte, sum int) {
	h.t.Helper()
	ip := frame.IP{Proto: proto, TTL: 64, DF: true, Len: len(l4),
		Src: frame.AddrOf(netip.MustParseAddr(bed.HostAddr4)), Dst: frame.AddrOf(netip.MustParseAddr(bed.FarAddr4))}
	binary.BigEndian.PutUint16(l4[sum:], frame.Checksum(l4, frame.PseudoSum(&ip.Src, &ip.Dst, proto, len(l4))))
	b := binary.BigEndian.AppendUint32(nil, uint32(frame.EthLen+frame.IPv4Len+len(l4)))
	b = append(b, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 0x52, 0x54, 0, 0, 0, 1, 8, 0)
	b = append(b, make([]byte, frame.IPv4Len)...)
	frame.PutIP(b[4+frame.EthLen:], &ip)
	if _, err := h.Write(append(b, l4...)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hypervisor) tcp(to uint16, seq, ack uint32, flags uint8, data string) {
	h.t.Helper()
	b := make([]byte, frame.TCPLen, frame.TCPLen+len(data))
	binary.BigEndian.PutUint16(b, guestTCP)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13], b[14] = frame.TCPLen/4<<4, flags, 0xff
	h.packet(frame.ProtoTCP, append(b, data...), 16)
}

func (h *hypervisor) udp(to uint16, data string) {
	h.t.Helper()
	b := make([]byte, frame.UDPLen, frame.UDPLen+len(data))
	binary.BigEndian.PutUint16(b, guestUDP)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(frame.UDPLen+len(data)))
	h.packet(frame.ProtoUDP, append(b, data...), 6)
}

// next returns the layer 4 header and payload of the next packet of proto that is for port.
func (h *hypervisor) next(proto uint8, port uint16) []byte {
	h.t.Helper()
	h.SetReadDeadline(time.Now().Add(limit))
	for {
		var n uint32
		if err := binary.Read(h, binary.BigEndian, &n); err != nil {
			h.t.Fatalf("nothing for port %d: %v", port, err)
		}
		b := make([]byte, frame.VnetLen+int(n))
		if _, err := io.ReadFull(h, b[frame.VnetLen:]); err != nil {
			h.t.Fatal(err)
		}
		var p frame.Packet
		if frame.Parse(b, &p) == frame.OK && uint8(p.Proto) == proto && p.DstPort == port {
			return b[p.L4:p.End]
		}
	}
}

// until returns the next segment for which ok holds.
func (h *hypervisor) until(ok func(segment) bool) segment {
	h.t.Helper()
	for {
		b := frame.TCPHeader(h.next(frame.ProtoTCP, guestTCP))
		s := segment{b.Flags(), b.Seq(), b.Ack(), b[b[12]>>4*4:]}
		if s.flags&frame.RST != 0 {
			h.t.Fatal("the connection was reset")
		}
		if ok(s) {
			return s
		}
	}
}

// TestPasstFlowsOutliveTheirClient: a hypervisor that connects again, as with QEMU's reconnect,
// finds its guest's flows as they were. What was sent to it meanwhile comes then, as far as it is
// not lost by nature.
func TestPasstFlowsOutliveTheirClient(t *testing.T) {
	b := newBed(t, defaultBed)
	socket := filepath.Join(scratch(t), "socket")
	p := passt(t, b, nil, "--no-map-gw", "-s", socket)
	l, err := b.Far.Listen("tcp", bed.FarAddr4+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := b.Far.ListenPacket("udp", bed.FarAddr4+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	tcp, udp := uint16(l.Addr().(*net.TCPAddr).Port), uint16(u.LocalAddr().(*net.UDPAddr).Port)
	datagram := func(want string) net.Addr {
		t.Helper()
		got := make([]byte, 100)
		u.SetReadDeadline(time.Now().Add(limit))
		n, from, err := u.ReadFrom(got)
		if err != nil || string(got[:n]) != want {
			t.Fatalf("%q, %v, want %q", got[:n], err, want)
		}
		return from
	}

	h := plugIn(t, socket)
	seq := uint32(5000)
	h.tcp(tcp, seq, 0, frame.SYN, "")
	seq++
	ack := h.until(func(s segment) bool { return s.flags == frame.SYN|frame.ACK && s.ack == seq }).seq + 1
	h.tcp(tcp, seq, ack, frame.ACK|frame.PSH, "one")
	seq += 3
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * limit))
	read := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("the peer has got %q, %v, want %q", got, err, want)
		}
	}
	read("one")
	h.until(func(s segment) bool { return s.ack == seq })
	h.udp(udp, "one")
	from := datagram("one")

	h.Close()
	said(t, p, "Client connection closed", 1)
	if _, err := io.WriteString(c, "two"); err != nil {
		t.Fatal(err)
	}
	u.WriteTo([]byte("lost"), from)

	h = plugIn(t, socket)
	said(t, p, "accepted connection from PID ", 2)
	if s := h.until(func(s segment) bool { return len(s.data) > 0 }); s.seq != ack || !bytes.Equal(s.data, []byte("two")) {
		t.Fatalf("the guest has got %q at %d, want what was sent meanwhile", s.data, s.seq-ack)
	}
	ack += 3
	h.tcp(tcp, seq, ack, frame.ACK|frame.PSH, "three")
	seq += 5
	read("three")
	h.udp(udp, "two")
	if again := datagram("two"); again.String() != from.String() {
		t.Errorf("datagrams come from %v, and came from %v", again, from)
	}
	u.WriteTo([]byte("reply"), from)
	for got := ""; got != "reply"; { // the other is lost, unless passt was slow to look
		got = string(h.next(frame.ProtoUDP, guestUDP)[frame.UDPLen:])
	}

	// The end of both directions, with yet another client for the last of it.
	h.tcp(tcp, seq, ack, frame.ACK|frame.FIN, "")
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer: %v, want EOF", err)
	}
	h.Close()
	said(t, p, "Client connection closed", 2)
	c.Close()
	h = plugIn(t, socket)
	s := h.until(func(s segment) bool { return s.flags&frame.FIN != 0 })
	if s.seq != ack {
		t.Errorf("FIN at %d, want 0", s.seq-ack)
	}
	if s.ack != seq+1 { // the peer may end before its kernel has acknowledged the guest's end
		h.until(func(s segment) bool { return s.ack == seq+1 })
	}
	h.tcp(tcp, seq+1, ack+1, frame.ACK, "")
	h.Write(question())
	h.answered()
}
