package tcp

import (
	"encoding/binary"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// Refuse writes to out the answer to a segment of a connection that does not exist and returns its
// length; 0 if there is to be none. in is the frame and pkt what was found in it.
//
// The answer is a reset (RFC 9293, section 3.10.7.1); but an acknowledgement if the connection has
// ended well a moment ago, for a guest that did not get the last one, and none to one of the
// guest's that comes late.
func Refuse(env *flow.Env, in []byte, pkt *frame.Packet, out []byte) int {
	tcp := frame.TCPHeader(in[pkt.L4:pkt.End])
	if tcp.Flags()&frame.RST != 0 {
		return 0
	}
	k := flow.Key{Guest: pkt.Src, Remote: pkt.Dst, GuestPort: pkt.SrcPort, RemotePort: pkt.DstPort, Proto: frame.ProtoTCP}
	n := uint32(pkt.End - pkt.Payload)
	if tcp.Flags()&(frame.SYN|frame.FIN) != 0 {
		n++
	}
	seq, ack, fl, wnd := uint32(0), tcp.Seq()+n, uint8(frame.RST|frame.ACK), uint16(0)
	if tcp.Flags()&frame.ACK != 0 {
		seq, ack, fl = tcp.Ack(), 0, frame.RST
	}
	if s, a, ok := env.Ended.Find(&k); ok && tcp.Flags()&(frame.SYN|frame.ACK) == frame.ACK && old(tcp.Seq()+n, a) {
		if n == 0 {
			return 0
		}
		seq, ack, fl, wnd = s, a, frame.ACK, 65535
	}
	var h header
	h.init(env, &k)
	h.from(env.SourceMAC(&k.Remote))
	h.put(out, frame.Src(in), seq, ack, fl, wnd, 0, 0, defaultMSS)
	if h.v6 { // the answer to one packet is of that one's flow (RFC 6437)
		binary.BigEndian.PutUint32(out[ipAt:], 6<<28|pkt.FlowLabel)
	}
	if h.len < minLen {
		clear(out[h.len:minLen])
		return minLen
	}
	return h.len
}

// old reports whether a segment that ends at end has nothing new for who expects next.
func old(end, next uint32) bool { return next-end <= maxWindow }
