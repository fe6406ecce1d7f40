package tapio

import (
	"encoding/binary"

	"fusilli/tapio/frame"
)

// maxHeader is room for the headers of the longest kind that split writes: IPv6 and TCP with
// options.
const maxHeader = frame.L3Off + frame.IPv6Len + 60

// segmenter turns one frame into those a link without some of the features can carry: a row of TCP
// segments or UDP datagrams becomes single ones, and checksums are completed unless the link does
// that itself. It does in software what the kernel does for a tap (linux/virtio_net.h).
//
// It is a value with one user: reset, then next until that returns 0.
type segmenter struct {
	in      []byte
	l4, hdr int // offsets in in: layer 4 header, payload
	size    int // payload bytes in each frame
	off     int // payload bytes sent
	n       int // frames sent
	partial bool
	v6, udp bool
	row     bool // in has segments; else only a checksum to complete
	done    bool
	v       frame.Vnet
	addrs   uint32 // sum of the addresses and the protocol
}

// reset starts on the frame in, which is kept and read until the last next. With partial, the
// checksums of the frames are left to the link, as in's was. It returns ErrRefused for a frame
// whose headers do not fit what its virtio_net_hdr says.
func (s *segmenter) reset(in []byte, partial bool) error {
	*s = segmenter{in: in, partial: partial}
	if len(in) < frame.L3Off || len(in) > frame.MaxFrame {
		return ErrRefused
	}
	s.v = frame.GetVnet(in)
	s.row = s.v.GSOType != frame.GSONone
	if s.v.Flags&frame.NeedsCsum == 0 {
		if s.row {
			return ErrRefused
		}
		return nil
	}
	s.l4 = frame.VnetLen + int(s.v.CsumStart)
	if s.l4 < frame.L3Off || s.l4+int(s.v.CsumOffset)+2 > len(in) {
		return ErrRefused
	}
	s.udp = s.v.CsumOffset == 6 // UDP has it there, TCP at 16, ICMPv6 at 2
	if !s.row {
		return nil
	}

	ip := in[frame.L3Off:]
	s.v6 = binary.BigEndian.Uint16(in[frame.VnetLen+12:]) == frame.EtherIPv6
	proto := uint8(frame.ProtoTCP)
	switch s.v.GSOType {
	case frame.GSOTCPv4, frame.GSOTCPv4 | frame.GSOECN:
		if s.v6 {
			return ErrRefused
		}
	case frame.GSOTCPv6, frame.GSOTCPv6 | frame.GSOECN:
		if !s.v6 {
			return ErrRefused
		}
	case frame.GSOUDP:
		proto = frame.ProtoUDP
	default:
		return ErrRefused
	}
	s.udp = proto == frame.ProtoUDP
	if s.v6 {
		// No extension headers: the actors send none.
		if s.l4 != frame.L3Off+frame.IPv6Len || ip[6] != proto {
			return ErrRefused
		}
		s.addrs = frame.Sum(ip[8:40], uint32(proto))
	} else {
		if s.l4 < frame.L3Off+frame.IPv4Len || s.l4 != frame.L3Off+int(ip[0]&15)*4 || ip[9] != proto {
			return ErrRefused
		}
		s.addrs = frame.Sum(ip[12:20], uint32(proto))
	}
	// A short row is padded as any frame is: the padding belongs to no segment.
	end := frame.L3Off + int(binary.BigEndian.Uint16(ip[2:]))
	if s.v6 {
		end = frame.L3Off + frame.IPv6Len + int(binary.BigEndian.Uint16(ip[4:]))
	}
	if end > len(in) {
		return ErrRefused
	}
	in = in[:end]
	s.in = in
	hlen := frame.UDPLen
	if !s.udp {
		if end < s.l4+frame.TCPLen {
			return ErrRefused
		}
		hlen = int(in[s.l4+12]>>4) * 4
		if hlen < frame.TCPLen {
			return ErrRefused
		}
	}
	s.hdr = s.l4 + hlen
	s.size = int(s.v.GSOSize)
	if s.hdr > len(in) || s.size == 0 {
		return ErrRefused
	}
	return nil
}

// next writes the next frame to out, which has room for frame.MaxFrame bytes, and returns its
// length with the virtio_net_hdr and padding; 0 when there is none left.
func (s *segmenter) next(out []byte) int {
	n, data := s.split(out)
	if n == 0 {
		return 0
	}
	return frame.Pad(out, n+copy(out[n:], data))
}

// split is next without copying: it writes the headers of the next frame to hdr, which has room for
// maxHeader bytes, and returns their length with the virtio_net_hdr and what comes behind them, a
// part of the frame given to reset. Nothing is padded.
func (s *segmenter) split(hdr []byte) (n int, data []byte) {
	if s.done {
		return 0, nil
	}
	if !s.row {
		s.done = true
		n := frame.L3Off
		if s.v.Flags&frame.NeedsCsum != 0 && !s.partial {
			n = s.l4 + int(s.v.CsumOffset) + 2
			if n > len(hdr) {
				return 0, nil // nobody's header is that long
			}
		}
		copy(hdr, s.in[:n])
		if n > frame.L3Off {
			// The field holds the sum of the pseudo-header, so it is summed like the rest.
			s.putSum(hdr[s.l4:n], frame.Checksum(s.in[s.l4:], 0))
			frame.PutVnet(hdr, frame.Vnet{})
		}
		return n, s.in[n:]
	}

	payload := s.in[s.hdr:]
	piece := payload[s.off:min(s.off+s.size, len(payload))]
	first := s.off == 0
	s.off += len(piece)
	s.done = s.off == len(payload)
	copy(hdr, s.in[:s.hdr])

	ip, l4 := hdr[frame.L3Off:s.hdr], hdr[s.l4:s.hdr]
	length := len(l4) + len(piece)
	if s.v6 {
		frame.SetIPv6Len(ip, length)
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(s.l4-frame.L3Off+length))
		id := binary.BigEndian.Uint16(ip[4:]) + uint16(s.n)
		binary.BigEndian.PutUint16(ip[4:], id)
		h := ip[:s.l4-frame.L3Off]
		h[10], h[11] = 0, 0
		binary.BigEndian.PutUint16(h[10:], frame.Checksum(h, 0))
	}
	if s.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(length))
	} else {
		seq := binary.BigEndian.Uint32(l4[4:]) + uint32(s.off-len(piece))
		binary.BigEndian.PutUint32(l4[4:], seq)
		if !s.done {
			l4[13] &^= frame.FIN | frame.PSH
		}
		if !first {
			l4[13] &^= frame.CWR
		}
	}
	s.n++

	s.putSum(l4, frame.Fold(s.addrs+uint32(length)))
	v := frame.Vnet{}
	if s.partial {
		v = frame.Vnet{Flags: frame.NeedsCsum, CsumStart: s.v.CsumStart, CsumOffset: s.sumOffset()}
	} else {
		s.putSum(l4, frame.Checksum(piece, frame.Sum(l4, 0)))
	}
	frame.PutVnet(hdr, v)
	return s.hdr, piece
}

func (s *segmenter) sumOffset() uint16 {
	switch {
	case !s.row:
		return s.v.CsumOffset
	case s.udp:
		return 6
	}
	return 16
}

// putSum writes sum to the checksum field of the layer 4 header l4.
func (s *segmenter) putSum(l4 []byte, sum uint16) {
	if sum == 0 && s.udp {
		sum = 0xffff // RFC 768: 0 would say that there is none
	}
	binary.BigEndian.PutUint16(l4[s.sumOffset():], sum)
}
