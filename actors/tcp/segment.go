package tcp

import (
	"encoding/binary"
	"errors"

	"fusilli/actors/flow"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

const (
	ethAt  = frame.VnetLen
	ipAt   = ethAt + frame.EthLen
	tcpLen = frame.TCPLen
	minLen = frame.VnetLen + 60 // shorter frames are padded
)

// Opens reports whether the segment, from its header on, asks for a new connection.
func Opens(tcp frame.TCPHeader) bool {
	return tcp.Flags()&(frame.SYN|frame.ACK|frame.RST|frame.FIN) == frame.SYN
}

// maxSegment returns the longest payload that fits one IP packet behind headers without options.
func maxSegment(v6 bool) int {
	if v6 {
		return 65535 - tcpLen
	}
	return 65535 - 20 - tcpLen
}

// header is the part of a flow's frames that stays the same, laid out as it is sent, and what is
// needed to finish it.
type header struct {
	b      [frame.VnetLen + frame.EthLen + 40 + tcpLen]byte
	len    int
	l4     int
	v6     bool
	gso    uint8
	ipSum  uint32 // sum of the IPv4 header without its length
	pseudo uint32 // sum of the pseudo-header without the length
}

// init fills h for frames from k's remote end to its guest end. Over IPv6 they have no flow label:
// there is one way from us to the guest.
func (h *header) init(env *flow.Env, k *flow.Key) {
	h.v6 = k.V6()
	h.from(env.OurMAC)
	ip := h.b[ipAt:]
	if h.v6 {
		binary.BigEndian.PutUint16(h.b[ethAt+12:], 0x86dd)
		ip[0] = 0x60
		ip[6], ip[7] = 6, 255
		copy(ip[8:24], k.Remote[:])
		copy(ip[24:40], k.Guest[:])
		h.l4 = ipAt + 40
		h.gso = frame.GSOTCPv6
		h.pseudo = frame.PseudoSum(&k.Remote, &k.Guest, 6, 0)
	} else {
		binary.BigEndian.PutUint16(h.b[ethAt+12:], 0x0800)
		ip[0] = 0x45
		ip[6] = 0x40 // don't fragment
		ip[8], ip[9] = 255, 6
		copy(ip[12:16], k.Remote[12:])
		copy(ip[16:20], k.Guest[12:])
		h.l4 = ipAt + 20
		h.gso = frame.GSOTCPv4
		h.ipSum = frame.Sum(ip[:20], 0)
		h.pseudo = frame.PseudoSum(&k.Remote, &k.Guest, 6, 0)
	}
	h.len = h.l4 + tcpLen
	tcp := h.b[h.l4:]
	binary.BigEndian.PutUint16(tcp[0:], k.RemotePort)
	binary.BigEndian.PutUint16(tcp[2:], k.GuestPort)
	tcp[12] = tcpLen / 4 << 4
	h.b[0] = frame.NeedsCsum
	binary.LittleEndian.PutUint16(h.b[6:], uint16(h.l4-frame.VnetLen))
	binary.LittleEndian.PutUint16(h.b[8:], 16)
}

// from has the frames that are put from now on come from mac.
func (h *header) from(mac frame.MAC) { copy(h.b[ethAt+6:], mac[:]) }

// put writes the header of a segment with n bytes of payload and opt bytes of options to b and
// leaves the rest of b alone. b must be at least h.len+opt long.
func (h *header) put(b []byte, mac frame.MAC, seq, ack uint32, flags uint8, wnd uint16, opt, n, mss int) {
	copy(b, h.b[:h.len])
	copy(b[ethAt:], mac[:])
	l4len := tcpLen + opt + n
	ip := b[ipAt:]
	if h.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(l4len))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(20+l4len))
		binary.BigEndian.PutUint16(ip[10:], ^frame.Fold(h.ipSum+uint32(20+l4len)))
	}
	tcp := b[h.l4:]
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12] = uint8(tcpLen+opt) / 4 << 4
	tcp[13] = flags
	binary.BigEndian.PutUint16(tcp[14:], wnd)
	binary.BigEndian.PutUint16(tcp[16:], frame.Fold(h.pseudo+uint32(l4len)))
	if n > mss {
		b[1] = h.gso
		binary.LittleEndian.PutUint16(b[2:], uint16(h.len+opt-frame.VnetLen))
		binary.LittleEndian.PutUint16(b[4:], uint16(mss))
	}
}

// ackNo is the acknowledgement number that tells the guest what was taken from it. Data that is
// held is among that: were it not, a guest whose peer does not read for long would see no progress
// and give up, where a closed window has it wait.
func (c *conn) ackNo() uint32 {
	a := c.rcvNxt - uint32(c.pending)
	if c.guestFIN && (!c.finDone && c.finAgain < finRepeats || c.pending > 0) {
		a--
	}
	return a
}

// wnd returns the window field for the acknowledgement number ack, and notes both as sent.
func (c *conn) wnd(ack uint32) uint16 {
	c.ackNow, c.ackDue, c.ackBy = false, false, 0
	c.ackSent = ack
	w := c.rcvEdge - ack
	if seqLT(c.rcvEdge, ack) {
		w = 0
	}
	return uint16(min(w>>c.scale, 65535))
}

// to returns the Ethernet address that frames go to. While nothing is answered, each second
// repetition goes to the guest's own: the station that the last segment has come from may be there
// no more.
func (c *conn) to() frame.MAC {
	if c.retries >= 2 && c.retries%2 == 0 {
		return c.env.GuestMAC()
	}
	return c.env.To(c.station)
}

// send writes the segment whose payload of n bytes lies in buf at flow.Headroom. It reports
// whether the link took it.
func (c *conn) send(buf *[flow.BufferSize]byte, seq uint32, flags uint8, n int) bool {
	ack := c.ackNo()
	w := c.wnd(ack)
	b := buf[flow.Headroom-c.hdr.len:]
	c.hdr.put(b, c.to(), seq, ack, flags|frame.ACK, w, 0, n, c.mss)
	return c.write(b, c.hdr.len+n)
}

// write hands the frame of n bytes at the start of b to the link, padded to the shortest length
// Ethernet has. It reports whether the link took it.
func (c *conn) write(b []byte, n int) bool {
	if n < minLen {
		clear(b[n:minLen])
		n = minLen
	}
	err := c.env.Link.Write(b[:n])
	if err != nil && errors.Is(err, tapio.ErrDropped) {
		c.env.Counters.LinkDropped.Add(1)
	}
	return err == nil
}

// flags sends a segment without payload.
func (c *conn) flags(seq uint32, flags uint8) bool {
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	return c.send(buf, seq, flags, 0)
}

func (c *conn) sendAck() { c.flags(c.sndNxt, 0) }

// sendProbe sends a segment the guest must answer: its sequence number is one already acknowledged
// (RFC 1122, section 4.2.3.6).
func (c *conn) sendProbe() { c.flags(c.sndUna-1, 0) }

// sendRST resets the guest's end.
func (c *conn) sendRST() {
	if c.state != connecting {
		c.flags(c.sndNxt, frame.RST)
		return
	}
	// The guest is in SYN-SENT: what makes a reset acceptable is its ACK.
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	c.hdr.put(buf[:], c.to(), 0, c.rcvNxt, frame.RST|frame.ACK, 0, 0, 0, c.mss)
	c.write(buf[:], c.hdr.len)
}

// sendSYN sends our SYN, or SYN,ACK if the guest was first, with the options MSS and, unless the
// guest does not know it, window scale.
func (c *conn) sendSYN() {
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	mss := maxSegment(c.hdr.v6)
	if c.env.MTU > 0 {
		mss = min(mss, c.env.MTU-(c.hdr.l4-ipAt)-tcpLen)
	}
	o := buf[c.hdr.len:]
	frame.PutSYNOptions(o, uint16(mss), c.scale)
	opt := frame.SYNOptionsLen
	if c.scale == 0 {
		opt = 4 // the guest does not know window scaling
	}
	fl := uint8(frame.SYN | frame.ACK)
	if c.state == synSent {
		fl = frame.SYN // and 0 for the acknowledgement number
	}
	c.hdr.put(buf[:], c.to(), c.sndUna, c.rcvNxt, fl, c.first, opt, 0, c.mss)
	c.write(buf[:], c.hdr.len+opt)
}
