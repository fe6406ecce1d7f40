package dhcpv6

import (
	"encoding/binary"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"fusilli/tapio/frame"
)

// query is what a request says that decides about the reply. Its slices alias the message.
type query struct {
	kind      dhcpv6.MessageType
	xid       dhcpv6.TransactionID
	clientID  []byte
	serverID  []byte // nil: none
	ias       []identity
	fqdnFlags byte
}

// identity is an identity association (RFC 8415, 4.2).
type identity struct {
	kind    dhcpv6.OptionCode // OptionIANA, OptionIATA or OptionIAPD
	id      [4]byte
	options []byte // whole
}

// Lengths of the fixed parts, in bytes (RFC 8415, 8 and 21).
const (
	headerLen = 4 // message
	optionLen = 4
	iaLen     = 12 // IA_NA and IA_PD: identifier, T1 and T2
	iataLen   = 4
	addrLen   = 24 // IA address: address and two lifetimes
)

// parse reads the message b. What it knows nothing of is skipped, as long as it has a length.
func parse(b []byte) (*query, error) {
	if len(b) < headerLen {
		return nil, ErrMalformed
	}
	q := &query{kind: dhcpv6.MessageType(b[0]), xid: dhcpv6.TransactionID(b[1:4])}
	for b = b[headerLen:]; len(b) > 0; {
		code, data, rest, ok := option(b)
		if !ok {
			return nil, ErrMalformed
		}
		b = rest
		switch code {
		case dhcpv6.OptionClientID:
			if len(data) == 0 || len(data) > maxClientID || q.clientID != nil {
				return nil, ErrMalformed
			}
			q.clientID = data
		case dhcpv6.OptionServerID:
			if len(data) != duidLen || q.serverID != nil {
				return nil, ErrMalformed
			}
			q.serverID = data
		case dhcpv6.OptionIANA, dhcpv6.OptionIATA, dhcpv6.OptionIAPD:
			n := iaLen
			if code == dhcpv6.OptionIATA {
				n = iataLen
			}
			if len(data) < n || !whole(data[n:]) {
				return nil, ErrMalformed
			}
			if len(q.ias) < maxIAs {
				q.ias = append(q.ias, identity{code, [4]byte(data), data[n:]})
			}
		case dhcpv6.OptionFQDN:
			if len(data) == 0 {
				return nil, ErrMalformed
			}
			q.fqdnFlags = data[0]
		}
	}
	if q.clientID == nil {
		return nil, ErrMalformed
	}
	return q, nil
}

// option splits the first option off b.
func option(b []byte) (code dhcpv6.OptionCode, data, rest []byte, ok bool) {
	if len(b) < optionLen {
		return 0, nil, nil, false
	}
	n := optionLen + int(binary.BigEndian.Uint16(b[2:]))
	if n > len(b) {
		return 0, nil, nil, false
	}
	return dhcpv6.OptionCode(binary.BigEndian.Uint16(b)), b[optionLen:n], b[n:], true
}

// whole reports whether b is a row of options.
func whole(b []byte) bool {
	for len(b) > 0 {
		_, _, rest, ok := option(b)
		if !ok {
			return false
		}
		b = rest
	}
	return true
}

// label is the flow label of the reply: as much of the transaction as it has room for.
func (q *query) label() uint32 {
	return (uint32(q.xid[0])<<16 | uint32(q.xid[1])<<8 | uint32(q.xid[2])) & 0xfffff
}

// wantsAddress reports whether q asks for addresses.
func (q *query) wantsAddress() bool {
	for _, ia := range q.ias {
		if ia.kind != dhcpv6.OptionIAPD {
			return true
		}
	}
	return false
}

// elsewhere returns the first association that has an address other than guest, and that address;
// nil if there is none.
func (q *query) elsewhere(guest frame.Addr) (*identity, netip.Addr) {
	for i := range q.ias {
		ia := &q.ias[i]
		if ia.kind == dhcpv6.OptionIAPD {
			continue
		}
		for b := ia.options; len(b) > 0; {
			code, data, rest, _ := option(b)
			if b = rest; code == dhcpv6.OptionIAAddr && len(data) >= addrLen && frame.Addr(data[:16]) != guest {
				return ia, netip.AddrFrom16([16]byte(data))
			}
		}
	}
	return nil, netip.Addr{}
}

// refuse is ia with nothing in it but the reason.
func (ia *identity) refuse(code iana.StatusCode, text string) dhcpv6.Option {
	status := &dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: text}
	switch ia.kind {
	case dhcpv6.OptionIATA:
		o := &dhcpv6.OptIATA{IaId: ia.id}
		o.Options.Add(status)
		return o
	case dhcpv6.OptionIAPD:
		o := &dhcpv6.OptIAPD{IaId: ia.id}
		o.Options.Add(status)
		return o
	}
	o := &dhcpv6.OptIANA{IaId: ia.id}
	o.Options.Add(status)
	return o
}
