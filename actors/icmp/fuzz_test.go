package icmp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// checker is a link that looks at what the guest would get.
type checker struct {
	tapio.Link
	t *testing.T
	k *flow.Key
}

func (l *checker) Write(b []byte) error {
	ip, sum := b[frame.L3Off:], uint32(0)
	n, hlen := int(binary.BigEndian.Uint16(ip[2:])), frame.IPv4Len
	if l.k.V6() {
		n, hlen = int(binary.BigEndian.Uint16(ip[4:]))+frame.IPv6Len, frame.IPv6Len
		src := frame.Addr(ip[8:24])
		sum = frame.PseudoSum(&src, &l.k.Guest, frame.ProtoICMPv6, n-hlen)
	} else if frame.Checksum(ip[:hlen], 0) != 0 {
		l.t.Errorf("IP header % x", ip[:hlen])
	}
	if n > len(ip) || frame.Checksum(ip[hlen:n], sum) != 0 {
		l.t.Fatalf("message of %d bytes: % x", n, ip[:min(len(ip), 64)])
	}
	icmp := ip[hlen:n]
	reply := !l.k.V6() && icmp[0] == echoReply4 || l.k.V6() && icmp[0] == echoReply6
	at := 4
	if !reply {
		at = frame.ICMPLen + hlen + 4
	}
	// An error of the type of a reply may have either.
	if id := binary.BigEndian.Uint16(icmp[at:]); id != ident && !reply {
		l.t.Errorf("identifier %#x", id)
	}
	return nil
}

// FuzzFromHost: whatever a socket and its error queue say, the guest gets well-formed messages
// about its own requests.
func FuzzFromHost(f *testing.F) {
	f.Add([]byte{0, 0, 3, 13, 192, 0, 8, 0, 1, 2, 3, 4, 0, 1})
	f.Add([]byte{1, 2, 2, 0, 192, 0, 128, 0, 1, 2, 3, 4, 0, 1, 9, 9, 9})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 1, 9})
	f.Add([]byte{3, 0, 0, 0, 0, 0, 129, 0, 1, 2, 3, 4, 0, 1, 9})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 6 {
			return
		}
		fam := families[in[0]&1]
		k := flow.Key{Guest: frame.AddrOf(fam.guest), Remote: frame.AddrOf(fam.remote), GuestPort: ident, Proto: frame.ProtoICMP}
		env := &flow.Env{Log: zap.NewNop(), OurMAC: ourMAC, MTU: 1500, Link: &checker{t: t, k: &k}}
		c := &conn{env: env, port: flow.NewPort(k), host: fam.loopback, v6: k.V6(), last: -1, fd: -1}
		if c.v6 {
			c.pseudo = frame.PseudoSum(&k.Remote, &k.Guest, frame.ProtoICMPv6, 0)
		}
		buf := env.Buffer()
		defer env.PutBuffer(buf)
		if in[0]&2 != 0 {
			c.reply(buf, copy(buf[flow.Headroom:], in[6:]), in[1])
			return
		}
		r := sock.Report{Origin: 2 + in[0]&1, Type: in[2], Code: in[3], Info: uint32(in[1]) << 8}
		switch from := in[4:6]; {
		case from[0] < 64:
			r.From = fam.loopback
		case c.v6:
			r.From = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: from[1]})
		default:
			r.From = netip.AddrFrom4([4]byte{from[0], from[1], 0, 1})
		}
		c.tell(buf, &r, buf[quoteAt:quoteAt+copy(buf[quoteAt:], in[6:])])
	})
}
