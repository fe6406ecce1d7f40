// Package frame reads and writes the headers of the frames on the guest's link, where they lie:
// no type here owns memory and nothing is allocated for a frame.
//
// Every buffer begins with a virtio_net_hdr of VnetLen bytes, then the Ethernet frame. Parse looks
// at a frame from the guest once and leaves values and offsets in a Packet, or says why the frame
// is dropped; the Put functions write headers; Sum, Checksum and PseudoSum are the arithmetic of
// RFC 1071 that goes with them.
//
// The package knows formats only. Who is answered, what is forwarded, and how frames are carried is
// decided elsewhere. Checksums of frames from the guest are not verified: the link is memory, and
// with offload most of them are only half computed. Fragments are not reassembled.
package frame
