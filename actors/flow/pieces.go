package flow

import (
	"encoding/binary"
	"math/rand/v2"

	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// Write sends the frame b, a row or one packet, to the guest. With Fragment, a packet that is
// longer than MTU goes as fragments of it (RFC 791, RFC 8200, section 4.5), as a router would send
// it: only its sender could have made smaller ones, and it was told that the way is wide enough. b
// is lent for the call, and its checksum may be completed. Errors are those of tapio.Link.
func (e *Env) Write(b []byte) error {
	if !e.Fragment || len(b)-frame.L3Off <= e.MTU || b[1] != frame.GSONone {
		return e.Link.Write(b)
	}
	return e.writePieces(b)
}

// Oversize reports whether packets of n bytes go as fragments: then they cannot go in rows.
func (e *Env) Oversize(n int) bool { return e.Fragment && n > e.MTU }

func (e *Env) writePieces(b []byte) error {
	complete(b)
	hlen, head := frame.IPv4Len, 0
	v6 := binary.BigEndian.Uint16(b[frame.VnetLen+12:]) == frame.EtherIPv6
	if v6 {
		hlen, head = frame.IPv6Len, 8
	}
	ip, data := b[frame.L3Off:frame.L3Off+hlen], b[frame.L3Off+hlen:]
	most := (e.MTU - hlen - head) &^ 7
	if most <= 0 {
		return tapio.ErrRefused
	}
	out := e.Buffer()
	defer e.PutBuffer(out)
	copy(out[:], b[:frame.L3Off+hlen])
	at := frame.L3Off + hlen
	h := out[frame.L3Off:at]
	id := rand.Uint32()
	if v6 {
		h[6] = 44
		out[at], out[at+1] = ip[6], 0
		binary.BigEndian.PutUint32(out[at+4:], id)
	} else {
		binary.BigEndian.PutUint16(h[4:], uint16(id))
	}
	for off := 0; off < len(data); off += most {
		n := min(most, len(data)-off)
		place := uint16(off) // in units of 8 bytes, above three bits
		last := off+n == len(data)
		if v6 {
			frame.SetIPv6Len(h, head+n)
			if !last {
				place |= 1
			}
			binary.BigEndian.PutUint16(out[at+2:], place)
		} else {
			place >>= 3
			if !last {
				place |= 0x2000
			}
			binary.BigEndian.PutUint16(h[2:], uint16(hlen+n))
			binary.BigEndian.PutUint16(h[6:], place)
			h[10], h[11] = 0, 0
			binary.BigEndian.PutUint16(h[10:], frame.Checksum(h, 0))
		}
		end := at + head + copy(out[at+head:], data[off:off+n])
		if err := e.Link.Write(out[:frame.Pad(out[:], end)]); err != nil {
			return err // without it the others are of no use
		}
	}
	return nil
}

// complete adds up the checksum in b that was left to the link.
func complete(b []byte) {
	v := frame.GetVnet(b)
	if v.Flags&frame.NeedsCsum == 0 {
		return
	}
	l4 := b[frame.VnetLen+int(v.CsumStart):]
	sum := frame.Checksum(l4, 0) // the field holds the sum of the pseudo-header
	if sum == 0 {
		sum = 0xffff // RFC 768
	}
	binary.BigEndian.PutUint16(l4[v.CsumOffset:], sum)
	frame.PutVnet(b, frame.Vnet{})
}
