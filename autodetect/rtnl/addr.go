package rtnl

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Address is a view of one RTM_NEWADDR message.
type Address struct {
	Family    uint8 // AF_INET, AF_INET6
	PrefixLen int
	Flags     uint32 // IFA_F_*
	Scope     uint8  // RT_SCOPE_*
	Index     int    // the interface's
	// Local is the interface's own address: IFA_LOCAL, or where the kernel leaves that
	// out (IPv6 without a peer) IFA_ADDRESS.
	Local netip.Addr
}

// AddressBody returns the payload of a request about addresses. Attributes may be
// appended.
func AddressBody(family uint8, index int, prefixLen int, flags, scope uint8) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg, 64)
	b[0], b[1], b[2], b[3] = family, uint8(prefixLen), flags, scope
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

// Addresses dumps the address messages of one family on one interface. The messages are
// the caller's. Those that make no sense are left out.
func (c *Conn) Addresses(family uint8, index int) ([][]byte, error) {
	msgs, err := c.Dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, AddressBody(family, index, 0, 0, 0))
	if err != nil {
		return nil, err
	}
	kept := msgs[:0]
	for _, m := range msgs {
		if a, err := ParseAddress(m); err == nil && a.Family == family && a.Index == index {
			kept = append(kept, m)
		}
	}
	return kept, nil
}

// EachAddress calls f with each address of all interfaces, which is valid for the call. It holds no
// list of them. Those that make no sense are left out.
func (c *Conn) EachAddress(f func(*Address)) error {
	return c.Each(unix.RTM_GETADDR, unix.RTM_NEWADDR, AddressBody(unix.AF_UNSPEC, 0, 0, 0, 0), func(msg []byte) {
		if a, err := ParseAddress(msg); err == nil {
			f(&a)
		}
	})
}

// ParseAddress reads the payload of an RTM_NEWADDR message.
func ParseAddress(b []byte) (Address, error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return Address{}, ErrMalformed
	}
	a := Address{
		Family:    b[0],
		PrefixLen: int(b[1]),
		Flags:     uint32(b[2]),
		Scope:     b[3],
		Index:     int(int32(binary.NativeEndian.Uint32(b[4:]))),
	}
	if a.Family != unix.AF_INET && a.Family != unix.AF_INET6 {
		return Address{}, ErrMalformed
	}
	var remote netip.Addr
	err := EachAttr(b[unix.SizeofIfAddrmsg:], func(typ uint16, val []byte) (err error) {
		switch typ {
		case unix.IFA_LOCAL:
			a.Local, err = addrOf(a.Family, val)
		case unix.IFA_ADDRESS:
			remote, err = addrOf(a.Family, val)
		case unix.IFA_FLAGS: // all 32 bits; the header holds eight
			a.Flags, err = uint32Of(val)
		}
		return err
	})
	if err != nil {
		return Address{}, err
	}
	if !a.Local.IsValid() {
		a.Local = remote
	}
	if !a.Local.IsValid() || a.PrefixLen > a.Local.BitLen() {
		return Address{}, ErrMalformed
	}
	return a, nil
}
