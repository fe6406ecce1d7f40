package frame

import "encoding/binary"

// TCP flags, the byte at offset 13 of the header.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// SYNOptionsLen is the length of what PutSYNOptions writes.
const SYNOptionsLen = 8

// TCPHeader is a view on a TCP header of at least TCPLen bytes.
type TCPHeader []byte

// Seq returns the sequence number.
func (h TCPHeader) Seq() uint32 { return binary.BigEndian.Uint32(h[4:]) }

// Ack returns the acknowledgement number.
func (h TCPHeader) Ack() uint32 { return binary.BigEndian.Uint32(h[8:]) }

// Flags returns the flags from FIN to CWR.
func (h TCPHeader) Flags() uint8 { return h[13] }

// Window returns the window field as it stands, not scaled.
func (h TCPHeader) Window() uint16 { return binary.BigEndian.Uint16(h[14:]) }

// TCPFields are the values of a TCP header that is written.
type TCPFields struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8
	Window           uint16
	Options          int    // bytes of options behind the header, a multiple of 4
	Sum              uint16 // the checksum field
}

// PutTCP writes a TCP header of TCPLen bytes to the beginning of b. Options are left to the caller.
func PutTCP(b []byte, t *TCPFields) {
	h := b[:TCPLen]
	binary.BigEndian.PutUint16(h, t.SrcPort)
	binary.BigEndian.PutUint16(h[2:], t.DstPort)
	binary.BigEndian.PutUint32(h[4:], t.Seq)
	binary.BigEndian.PutUint32(h[8:], t.Ack)
	h[12], h[13] = uint8((TCPLen+t.Options)/4)<<4, t.Flags
	binary.BigEndian.PutUint16(h[14:], t.Window)
	binary.BigEndian.PutUint16(h[16:], t.Sum)
	binary.BigEndian.PutUint16(h[18:], 0)
}

// PutSYNOptions writes the options MSS and window scale to the first SYNOptionsLen bytes of b.
func PutSYNOptions(b []byte, mss uint16, scale uint8) {
	_ = b[SYNOptionsLen-1]
	b[0], b[1] = 2, 4
	binary.BigEndian.PutUint16(b[2:], mss)
	b[4], b[5], b[6], b[7] = 1, 3, 3, scale
}

// SYNOptions are the options of a SYN that matter here.
type SYNOptions struct {
	MSS       uint16 // 0 if there was none
	Scale     uint8  // at most 14 (RFC 7323, 2.3)
	HaveScale bool
}

// ParseSYNOptions reads the options b, the bytes between TCP header and payload. It stops at an
// end-of-list option and at the first one whose length is wrong; what came before counts. Of an
// option that comes twice the first counts.
func ParseSYNOptions(b []byte) SYNOptions {
	var o SYNOptions
	for len(b) > 0 {
		switch b[0] {
		case 0:
			return o
		case 1:
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return o
		}
		switch v := b[2:b[1]]; b[0] {
		case 2:
			if len(v) != 2 {
				return o
			}
			if o.MSS == 0 {
				o.MSS = binary.BigEndian.Uint16(v)
			}
		case 3:
			if len(v) != 1 {
				return o
			}
			if !o.HaveScale {
				o.Scale, o.HaveScale = min(v[0], 14), true
			}
		}
		b = b[b[1]:]
	}
	return o
}
