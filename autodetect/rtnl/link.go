package rtnl

import (
	"encoding/binary"
	"net"

	"golang.org/x/sys/unix"
)

// extSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h (Linux 4.4), which x/sys
// does not name.
const extSkipStats = 1 << 3

// Link is what fusilli needs to know about a network interface.
type Link struct {
	Index int
	Name  string
	MTU   int              // bytes
	MAC   net.HardwareAddr // nil if the interface has none
	Flags uint32           // IFF_*

	Master int // index of the bridge, or another interface, that it is a port of; 0 for none
}

// LinkBody returns the payload of an RTM_GETLINK or RTM_NEWLINK request about the
// interface with that index (0 if it will be named by IFLA_IFNAME), which sets those of
// its flags that are in change. Attributes may be appended.
func LinkBody(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg, 64)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// LinkByIndex reads an interface. An interface that does not exist gives unix.ENODEV.
func (c *Conn) LinkByIndex(index int) (Link, error) {
	return c.link(LinkBody(index, 0, 0))
}

// LinkByName is LinkByIndex for a name.
func (c *Conn) LinkByName(name string) (Link, error) {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return Link{}, unix.ENODEV
	}
	return c.link(AppendAttr(LinkBody(0, 0, 0), unix.IFLA_IFNAME, append([]byte(name), 0)))
}

func (c *Conn) link(body []byte) (Link, error) {
	// Statistics are most of a link message, and nobody here reads them.
	body = AppendUint32(body, unix.IFLA_EXT_MASK, extSkipStats)
	msg, err := c.Get(unix.RTM_GETLINK, unix.RTM_NEWLINK, body)
	if err != nil {
		return Link{}, err
	}
	return ParseLink(msg)
}

// ParseLink reads the payload of an RTM_NEWLINK message.
func ParseLink(b []byte) (Link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, ErrMalformed
	}
	l := Link{
		Index: int(int32(binary.NativeEndian.Uint32(b[4:]))),
		Flags: binary.NativeEndian.Uint32(b[8:]),
	}
	err := EachAttr(b[unix.SizeofIfInfomsg:], func(typ uint16, val []byte) error {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(val)
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr(nil), val...)
		case unix.IFLA_MTU:
			mtu, err := uint32Of(val)
			l.MTU = int(mtu)
			return err
		case unix.IFLA_MASTER:
			master, err := uint32Of(val)
			l.Master = int(int32(master))
			return err
		}
		return nil
	})
	return l, err
}
