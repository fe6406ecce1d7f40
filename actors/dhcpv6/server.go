package dhcpv6

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"fusilli/internal/dnsname"
	"fusilli/internal/logging"
	"fusilli/tapio/frame"
)

// ServerPort is the UDP port requests are sent to; replies go to clientPort.
const (
	ServerPort = 547
	clientPort = 546
)

const (
	maxClientID  = 128 // bytes (RFC 8415, 11.1)
	duidLen      = 14
	maxResolvers = 3
	maxIAs       = 8 // answered; a client has one or two

	// maxReply is a message that fits the smallest MTU of IPv6.
	maxReply = 1280 - frame.IPv6Len - frame.UDPLen
	// maxSearch is what the search list may take of it, in bytes.
	maxSearch = 512
	infinite  = 0xffffffff * time.Second

	hopLimit = 255
)

// Flags of the client's FQDN option (RFC 4704, 4.1).
const (
	fqdnServer   = 0x01 // S: the client wants the server to update DNS
	fqdnOverride = 0x02 // O: it does not
)

const notOnLink = "Prefix not appropriate for link."

// ReplyLen is the room a reply needs.
const ReplyLen = frame.L3Off + 1280

// Errors of Answer.
var (
	ErrMalformed = errors.New("malformed DHCPv6 message")
	// ErrIgnored is for what is in order but wants no reply, or not from us.
	ErrIgnored = errors.New("DHCPv6 message of no concern")
)

// epoch is when the time in a DUID begins (RFC 8415, 11.2).
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Config is what the guest is told.
type Config struct {
	MAC       frame.MAC    // ours
	LinkLocal netip.Addr   // our own address
	Guest     netip.Addr   // assigned
	Resolvers []netip.Addr // the first three are told
	Search    []string     // search list, as far as there is room
	FQDN      string       // empty: not told
	Start     time.Time    // makes our identifier differ from that of another time
	Log       *zap.Logger
}

// Server answers DHCPv6 requests. It does not change once it is made, so any number of goroutines
// may use it.
type Server struct {
	mac              frame.MAC
	linkLocal, guest frame.Addr
	duid             []byte
	id               dhcpv6.Option
	told             []dhcpv6.Option // resolvers and search list
	fqdn             []byte          // on the wire; nil: not told

	log, limited *zap.Logger
}

// New returns a server that tells what c says. c's addresses are IPv6 ones.
func New(c *Config) *Server {
	duid := &dhcpv6.DUIDLLT{
		HWType: iana.HWTypeEthernet, Time: uint32(c.Start.Sub(epoch) / time.Second), LinkLayerAddr: c.MAC[:],
	}
	s := &Server{
		mac: c.MAC, linkLocal: c.LinkLocal.As16(), guest: c.Guest.As16(),
		duid: duid.ToBytes(), id: dhcpv6.OptServerID(duid),
		log: c.Log, limited: logging.Limit(c.Log),
	}
	var ips []net.IP
	for _, a := range c.Resolvers[:min(len(c.Resolvers), maxResolvers)] {
		ips = append(ips, a.AsSlice())
	}
	if len(ips) > 0 {
		s.told = append(s.told, dhcpv6.OptDNS(ips...))
	}
	var search []byte
	for _, name := range c.Search {
		if b, err := dnsname.Append(search, name); err == nil && len(b) <= maxSearch {
			search = b
		}
	}
	if len(search) > 0 {
		s.told = append(s.told, raw(dhcpv6.OptionDomainSearchList, search))
	}
	if name, err := dnsname.Append(nil, c.FQDN); err == nil {
		s.fqdn = name
	}
	return s
}

// Answer writes the reply to the datagram in, parsed as p and sent to ServerPort, to out, which has
// room for ReplyLen bytes, and returns its length with virtio_net_hdr. It is ErrMalformed or
// ErrIgnored that there is none.
func (s *Server) Answer(p *frame.Packet, in, out []byte) (int, error) {
	if p.Kind != frame.UDP || !p.V6 || p.GSO != 0 || p.End > len(in) || len(out) < ReplyLen ||
		int(binary.BigEndian.Uint16(in[p.L4+4:])) != p.End-p.L4 {
		return 0, ErrMalformed
	}
	src := frame.Src(in)
	if src[0]&1 != 0 {
		return 0, ErrMalformed
	}
	if !frame.IsMulticast(&p.Dst) {
		return 0, ErrIgnored
	}
	q, err := parse(in[p.Payload:p.End])
	if err != nil {
		return 0, err
	}
	m, err := s.reply(q)
	if err != nil {
		return 0, err
	}
	b := m.ToBytes()
	if len(b) > maxReply {
		return 0, ErrMalformed // a request that asks for so much is none of a client
	}

	n := frame.UDPLen + copy(out[frame.L3Off+frame.IPv6Len+frame.UDPLen:], b)
	frame.PutVnet(out, frame.Vnet{})
	frame.PutEth(out, src, s.mac, frame.EtherIPv6)
	frame.PutIPv6(out[frame.L3Off:], &frame.IP{
		Src: s.linkLocal, Dst: p.Src, Proto: frame.ProtoUDP, TTL: hopLimit, FlowLabel: q.label(), Len: n,
	})
	u := out[frame.L3Off+frame.IPv6Len:][:n]
	frame.PutUDP(u, ServerPort, clientPort, n-frame.UDPLen, 0)
	sum := frame.Checksum(u, frame.PseudoSum(&s.linkLocal, &p.Src, frame.ProtoUDP, n))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], sum)
	return frame.L3Off + frame.IPv6Len + n, nil
}

// reply decides what to say to q.
func (s *Server) reply(q *query) (*dhcpv6.Message, error) {
	ours := string(q.serverID) == string(s.duid)
	kind, line := dhcpv6.MessageTypeReply, ""
	var check, fits bool // whether the addresses the client has are looked at; whether q is for us
	switch q.kind {
	case dhcpv6.MessageTypeSolicit:
		kind, line = dhcpv6.MessageTypeAdvertise, "DHCPv6: received SOLICIT, sending ADVERTISE"
		fits = q.serverID == nil
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew:
		line = "DHCPv6: received REQUEST/RENEW/CONFIRM, sending REPLY"
		fits, check = ours, true
	case dhcpv6.MessageTypeConfirm:
		line = "DHCPv6: received REQUEST/RENEW/CONFIRM, sending REPLY"
		fits, check = q.serverID == nil, true
	case dhcpv6.MessageTypeRebind:
		line = "DHCPv6: received REBIND, sending REPLY"
		fits = q.serverID == nil || ours
	case dhcpv6.MessageTypeInformationRequest:
		line = "DHCPv6: received INFORMATION_REQUEST, sending REPLY"
		fits = (q.serverID == nil || ours) && !q.wantsAddress()
	}
	if !fits {
		return nil, ErrIgnored
	}
	m := &dhcpv6.Message{MessageType: kind, TransactionID: q.xid}
	m.AddOption(s.id)
	if check {
		if ia, bad := q.elsewhere(s.guest); ia != nil {
			s.sayNotOnLink(bad)
			m.AddOption(ia.refuse(iana.StatusNotOnLink, notOnLink))
			m.AddOption(raw(dhcpv6.OptionClientID, q.clientID))
			return m, nil
		}
	}
	s.say(line)
	s.identities(m, q)
	m.AddOption(raw(dhcpv6.OptionClientID, q.clientID))
	for _, o := range s.told {
		m.AddOption(o)
	}
	if s.fqdn != nil {
		flags := byte(0)
		if q.fqdnFlags&fqdnServer != 0 {
			flags = fqdnOverride
		}
		m.AddOption(raw(dhcpv6.OptionFQDN, append([]byte{flags}, s.fqdn...)))
	}
	return m, nil
}

// identities adds what becomes of the identity associations of q to m: the address for the first,
// and for all others that there is nothing.
func (s *Server) identities(m *dhcpv6.Message, q *query) {
	na := &dhcpv6.OptIANA{T1: infinite, T2: infinite}
	na.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: s.guest[:], PreferredLifetime: infinite, ValidLifetime: infinite})
	given := -1
	for i, ia := range q.ias {
		if ia.kind == dhcpv6.OptionIANA {
			na.IaId, given = ia.id, i
			break
		}
	}
	m.AddOption(na)
	for i := range q.ias {
		switch ia := &q.ias[i]; {
		case i == given:
		case ia.kind == dhcpv6.OptionIAPD:
			m.AddOption(ia.refuse(iana.StatusNoPrefixAvail, "No prefixes to delegate."))
		default:
			m.AddOption(ia.refuse(iana.StatusNoAddrsAvail, "No more addresses."))
		}
	}
}

func raw(code dhcpv6.OptionCode, data []byte) dhcpv6.Option {
	return &dhcpv6.OptionGeneric{OptionCode: code, OptionData: data}
}

func (s *Server) say(line string) {
	if e := s.limited.Check(zapcore.InfoLevel, line); e != nil {
		e.Write()
	}
}

// sayNotOnLink logs that a client has brought the address a. The text differs from one address to
// the next, so that another one, the same for all, decides whether there have been too many.
func (s *Server) sayNotOnLink(a netip.Addr) {
	if e := s.limited.Check(zapcore.InfoLevel, "DHCPv6: sending REPLY with NotOnLink"); e != nil {
		s.log.Info(fmt.Sprintf("DHCPv6: requested address %s not on link", a))
		e.Write()
	}
}
