package frame

import "encoding/binary"

// VnetLen is the length in bytes of the virtio_net_hdr that each buffer begins with: the one
// without num_buffers (virtio 1.2, 5.1.6; linux/virtio_net.h), all fields little-endian.
const VnetLen = 10

// Bits of Vnet.Flags.
const (
	NeedsCsum = 1 // the checksum field holds the pseudo-header sum, the rest is to be added
	DataValid = 2 // the checksum was verified
)

// Values of Vnet.GSOType.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOUDP   = 5    // VIRTIO_NET_HDR_GSO_UDP_L4: a row of datagrams, Linux 6.2
	GSOECN   = 0x80 // to be added to a TCP type: CWR on the first segment only
)

// Vnet is a decoded virtio_net_hdr. Offsets count from the Ethernet header.
type Vnet struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // bytes up to the payload, a hint
	GSOSize    uint16 // payload bytes of each segment
	CsumStart  uint16 // where the layer 4 header begins
	CsumOffset uint16 // where in it the checksum field lies
}

// PutVnet writes v to the first VnetLen bytes of b.
func PutVnet(b []byte, v Vnet) {
	_ = b[VnetLen-1]
	b[0], b[1] = v.Flags, v.GSOType
	binary.LittleEndian.PutUint16(b[2:], v.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], v.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], v.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], v.CsumOffset)
}

// GetVnet reads the first VnetLen bytes of b. Nothing is checked.
func GetVnet(b []byte) Vnet {
	_ = b[VnetLen-1]
	return Vnet{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     binary.LittleEndian.Uint16(b[2:]),
		GSOSize:    binary.LittleEndian.Uint16(b[4:]),
		CsumStart:  binary.LittleEndian.Uint16(b[6:]),
		CsumOffset: binary.LittleEndian.Uint16(b[8:]),
	}
}
