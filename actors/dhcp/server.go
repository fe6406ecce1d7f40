package dhcp

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"fusilli/internal/logging"
	"fusilli/tapio/frame"
)

// ServerPort is the UDP port requests are sent to; replies go to clientPort.
const (
	ServerPort = 67
	clientPort = 68
)

// The fixed part of a message (RFC 2131, 2): offsets, and its length with the magic number in front
// of the options.
const (
	offOp     = 0
	offFlags  = 10
	offYiaddr = 16
	offChaddr = 28
	offMagic  = 236
	fixedLen  = 240

	opRequest, opReply = 1, 2
	flagBroadcast      = 0x8000
)

// The area of the options, in bytes without the end option: at most what a message of 576 bytes has
// room for, and with the end option at least the 60 bytes that BOOTP had for its own (RFC 951).
const (
	maxOptions = 307
	minOptions = 60
)

// ReplyLen is the room a reply needs.
const ReplyLen = frame.L3Off + frame.IPv4Len + frame.UDPLen + fixedLen + maxOptions + 1

// Message types (RFC 2132, 9.6).
const (
	discover = 1
	offer    = 2
	request  = 3
	ack      = 5
)

// Errors of Answer.
var (
	ErrMalformed = errors.New("malformed DHCP message")
	// ErrIgnored is for what is in order but wants no reply.
	ErrIgnored = errors.New("DHCP message of no concern")
)

// Config is what the guest is told.
type Config struct {
	MAC       frame.MAC    // ours
	Guest     netip.Addr   // assigned
	PrefixLen int          // of Guest, in bits
	Gateway   netip.Addr   // the router, and our own address
	MTU       int          // bytes of IP packet; 0: not told
	Resolvers []netip.Addr // the first three are told
	Search    []string     // search list
	Hostname  string       // empty: not told
	FQDN      string       // empty: not told
	Log       *zap.Logger
}

// Server answers DHCP requests. It does not change once it is made, so any number of goroutines may
// use it.
type Server struct {
	mac     frame.MAC
	guest   [4]byte
	gateway [4]byte
	options []option // ascending by code, without those that depend on the request

	log, limited *zap.Logger
}

// New returns a server that tells what c says. c's addresses are IPv4 ones.
func New(c *Config) *Server {
	return &Server{
		mac: c.MAC, guest: c.Guest.As4(), gateway: c.Gateway.As4(), options: options(c),
		log: c.Log, limited: logging.Limit(c.Log),
	}
}

// query is what a request says that decides about the reply.
type query struct {
	kind  uint8  // message type; 0: BOOTP
	rapid bool   // the client takes an ACK for a DISCOVER
	asked []byte // options asked for, in order; aliases the message
}

// Answer writes the reply to the datagram in, parsed as p and sent to ServerPort, to out, which has
// room for ReplyLen bytes, and returns its length with virtio_net_hdr. It is ErrMalformed or
// ErrIgnored that there is none. Nothing is allocated, but for log lines.
func (s *Server) Answer(p *frame.Packet, in, out []byte) (int, error) {
	if p.Kind != frame.UDP || p.V6 || p.GSO != 0 || p.End > len(in) || len(out) < ReplyLen ||
		int(binary.BigEndian.Uint16(in[p.L4+4:])) != p.End-p.L4 {
		return 0, ErrMalformed
	}
	m := in[p.Payload:p.End]
	src := frame.Src(in)
	if len(m) < fixedLen || m[offOp] != opRequest || src[0]&1 != 0 {
		return 0, ErrMalformed
	}
	q, err := parse(m[fixedLen:])
	if err != nil {
		return 0, err
	}
	kind, line := uint8(ack), ""
	switch {
	case q.kind == discover && q.rapid:
		line = "DHCP: ack to discover (Rapid Commit)"
	case q.kind == discover:
		kind, line = offer, "DHCP: offer to discover"
	case q.kind == request:
		line = "DHCP: ack to request"
	case q.kind == 0:
		line = "BOOTP: ack to request"
	default:
		return 0, ErrIgnored
	}
	s.say(line, frame.MAC(m[offChaddr:]))

	dst := s.guest
	if binary.BigEndian.Uint16(m[offFlags:])&flagBroadcast != 0 {
		dst = [4]byte{255, 255, 255, 255}
	}
	r := out[frame.L3Off+frame.IPv4Len+frame.UDPLen:]
	clear(r[:fixedLen])
	copy(r, m[:8]) // with hardware type and length and transaction
	r[offOp], r[3] = opReply, 0
	copy(r[offFlags:offYiaddr], m[offFlags:]) // with the client's address
	copy(r[offYiaddr:], s.guest[:])
	copy(r[24:44], m[24:]) // relay and client's hardware address
	copy(r[offMagic:fixedLen], m[offMagic:])
	n := fixedLen + s.put(r[fixedLen:], kind, &q)

	frame.PutVnet(out, frame.Vnet{})
	frame.PutEth(out, src, s.mac, frame.EtherIPv4)
	frame.PutIPv4(out[frame.L3Off:], &frame.IP{
		Src: frame.Addr4(s.gateway), Dst: frame.Addr4(dst), Proto: frame.ProtoUDP, TTL: 255, DF: true, Len: frame.UDPLen + n,
	})
	frame.PutUDP(out[frame.L3Off+frame.IPv4Len:], ServerPort, clientPort, n, 0)
	return frame.L3Off + frame.IPv4Len + frame.UDPLen + n, nil
}

// say logs what is done for the client with the address chaddr.
func (s *Server) say(line string, chaddr frame.MAC) {
	// One decision for both lines: the second is not the same for all clients.
	if e := s.limited.Check(zapcore.InfoLevel, line); e != nil {
		e.Write()
		s.log.Info("    from " + chaddr.String())
	}
}
