package frame

// Reason says why a frame from the guest is dropped. There is a counter for each.
type Reason uint8

// The reasons. OK is no drop.
const (
	OK               Reason = iota
	DropShort               // less than an Ethernet header
	DropLong                // more than MaxFrame bytes
	DropVLAN                // a VLAN tag
	DropEtherType           // neither ARP nor IP
	DropVnetOffset          // virtio_net_hdr: offsets beyond the frame
	DropVnetGSO             // virtio_net_hdr: segmentation that does not fit the packet
	DropGSOSize             // virtio_net_hdr: segments that are shorter or more than a kernel sends
	DropARP                 // ARP packet too short
	DropIPv4Header          // IPv4: version or header length impossible, or cut off
	DropIPv4Length          // IPv4: total length impossible or more than the frame has
	DropIPv4Fragment        // IPv4: the reserved flag of fragmentation
	DropIPv6Header          // IPv6: version wrong or header cut off
	DropIPv6Length          // IPv6: payload length is not the rest of the frame
	DropIPv6Option          // IPv6 extension headers run over the end, or too many of them
	DropIPv6Fragment        // IPv6 fragment without a source
	DropLoopback            // loopback source or destination
	DropMapped              // IPv4-mapped address in an IPv6 packet
	DropSource              // source is multicast, or unspecified where it may not be
	DropDestination         // destination is unspecified
	DropMulticast           // TCP or echo to a multicast or broadcast address
	DropProtocol            // IP protocol not handled
	DropTCPShort            // TCP header cut off
	DropTCPOffset           // TCP data offset impossible or beyond the end
	DropUDPShort            // UDP header cut off
	DropICMPShort           // ICMP header cut off
	DropICMPType            // ICMP message not handled
	DropPort                // port 0
	DropFamily              // IP version that is switched off; for the reader, Parse never says so

	NumReasons = iota // number of reasons with OK
)

var reasons = [NumReasons]string{
	OK:               "ok",
	DropShort:        "short_frame",
	DropLong:         "long_frame",
	DropVLAN:         "vlan",
	DropEtherType:    "ethertype",
	DropVnetOffset:   "vnet_offset",
	DropVnetGSO:      "vnet_gso",
	DropGSOSize:      "gso_size",
	DropARP:          "arp",
	DropIPv4Header:   "ipv4_header",
	DropIPv4Length:   "ipv4_length",
	DropIPv4Fragment: "ipv4_fragment",
	DropIPv6Header:   "ipv6_header",
	DropIPv6Length:   "ipv6_length",
	DropIPv6Option:   "ipv6_option",
	DropIPv6Fragment: "ipv6_fragment",
	DropLoopback:     "loopback",
	DropMapped:       "mapped_address",
	DropSource:       "source_address",
	DropDestination:  "destination_address",
	DropMulticast:    "multicast",
	DropProtocol:     "protocol",
	DropTCPShort:     "tcp_short",
	DropTCPOffset:    "tcp_offset",
	DropUDPShort:     "udp_short",
	DropICMPShort:    "icmp_short",
	DropICMPType:     "icmp_type",
	DropPort:         "port_zero",
	DropFamily:       "family",
}

// String returns the name of r's counter.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return "unknown"
}
