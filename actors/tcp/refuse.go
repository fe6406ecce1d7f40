package tcp

import (
	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// Refuse writes to out the reset that answers a segment of a connection that does not exist (RFC
// 9293, section 3.10.7.1), and returns its length; 0 if there is to be no answer. in is the frame
// and pkt what was found in it.
func Refuse(env *flow.Env, in []byte, pkt *frame.Packet, out []byte) int {
	tcp := frame.TCPHeader(in[pkt.L4:pkt.End])
	if tcp.Flags()&frame.RST != 0 {
		return 0
	}
	seq, ack, fl := uint32(0), tcp.Seq()+uint32(pkt.End-pkt.Payload), uint8(frame.RST|frame.ACK)
	if tcp.Flags()&(frame.SYN|frame.FIN) != 0 {
		ack++
	}
	if tcp.Flags()&frame.ACK != 0 {
		seq, ack, fl = tcp.Ack(), 0, frame.RST
	}
	k := flow.Key{Guest: pkt.Src, Remote: pkt.Dst, GuestPort: pkt.SrcPort, RemotePort: pkt.DstPort}
	var h header
	h.init(env, &k)
	h.put(out, env.GuestMAC(), seq, ack, fl, 0, 0, 0, defaultMSS)
	n := h.len
	if n < minLen {
		clear(out[n:minLen])
		n = minLen
	}
	return n
}
