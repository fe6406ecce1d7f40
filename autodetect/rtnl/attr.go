package rtnl

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrMalformed is returned for a message whose lengths do not fit its bytes.
var ErrMalformed = errors.New("malformed netlink message")

// attrTypeMask takes NLA_F_NESTED and NLA_F_NET_BYTEORDER off an attribute's type.
const attrTypeMask = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

func align(n int) int { return (n + 3) &^ 3 }

// EachAttr calls f with the type (without flag bits) and the value of every attribute in
// b, in order. Values alias b. It stops at f's first error and returns it, or
// ErrMalformed at an attribute that is longer than what is left of b.
func EachAttr(b []byte, f func(typ uint16, val []byte) error) error {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		typ := binary.NativeEndian.Uint16(b[2:]) & attrTypeMask
		if n < unix.SizeofRtAttr || n > len(b) {
			return ErrMalformed
		}
		if err := f(typ, b[unix.SizeofRtAttr:n:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	return nil
}

// AppendAttr appends an attribute with its padding to b, which must be of a length that
// is a multiple of four, and returns the result.
func AppendAttr(b []byte, typ uint16, val []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(val)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, val...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// AppendUint32 appends an attribute that holds one 32-bit number in host order.
func AppendUint32(b []byte, typ uint16, val uint32) []byte {
	return AppendAttr(b, typ, binary.NativeEndian.AppendUint32(nil, val))
}

func uint32Of(val []byte) (uint32, error) {
	if len(val) < 4 {
		return 0, ErrMalformed
	}
	return binary.NativeEndian.Uint32(val), nil
}

// addrOf reads an address of the given family.
func addrOf(family uint8, val []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(val)
	if !ok || a.Is4() != (family == unix.AF_INET) {
		return netip.Addr{}, ErrMalformed
	}
	return a, nil
}
