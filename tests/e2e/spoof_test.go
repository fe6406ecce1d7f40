package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
	"fusilli/tests/bed"
)

// TestSpoofedFramesMoveNothing: a program that may send raw frames in the guest cannot move
// forwarded ports, and a guest that gives itself another address is followed. Of a namespace, and
// of a machine, whose kernel cannot be asked.
func TestSpoofedFramesMoveNothing(t *testing.T) {
	t.Parallel()
	const port = "7070"
	type addresses struct{ name, host, far, here, spoofed, new, bits string }
	for _, vm := range []bool{false, true} {
		for _, f := range []addresses{
			{"IPv4", bed.HostAddr4, bed.FarAddr4, bed.HostAddr4, "10.77.0.66", "10.77.0.99", "/24"},
			{"IPv6", bed.HostAddr6, bed.FarAddr6, bed.HostAddr6, "fd77::66", "fd77::99", "/64"},
		} {
			t.Run(fmt.Sprintf("machine %t, %s", vm, f.name), func(t *testing.T) {
				t.Parallel()
				b := newBed(t, defaultBed)
				var c *connection
				dev := "own0"
				if vm {
					c = connectVM(t, b, 1500, "-t", port)
				} else {
					c, dev = connect(t, b, "-t", port), "h0"
				}
				waitFor(t, "the guest's address", func() bool {
					out, err := c.target.Output(patience(t, limit), bed.Root, "ip", "addr", "show", "dev", dev, "to", f.here, "-tentative")
					return err == nil && strings.Contains(out, f.here)
				})
				serving(t)(c.target.ServeTCP(net.JoinHostPort(anyOf(f.here), port), func(conn net.Conn) {
					io.WriteString(conn, plain(conn.LocalAddr()).Addr().String()+"\n")
					conn.Close()
				}))
				// reached is the guest's address that a forwarded connection has come to; "" for
				// none, for now.
				reached := func() string {
					conn, err := c.Far.Dial(patience(t, limit), "tcp", net.JoinHostPort(f.host, port))
					if err != nil {
						return ""
					}
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
					line, _ := io.ReadAll(conn)
					return strings.TrimSpace(string(line))
				}
				speak := func(from string) {
					d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
					c.target.Do(func() error {
						u, err := d.Dial("udp", net.JoinHostPort(f.far, "9"))
						if err == nil {
							u.Write([]byte("here"))
							u.Close()
						}
						return nil
					})
				}
				waitFor(t, "a connection", func() bool { speak(f.here); return reached() == f.here })

				raw := packetSocket(t, c.target.NS, dev)
				mac := hardwareOf(t, c.target.NS, dev)
				for range 3 {
					for _, src := range []frame.MAC{mac, {2, 0, 0, 0, 0, 0x66}, frame.Broadcast} {
						for _, from := range []string{f.spoofed, f.far, f.here} {
							raw(datagram(from, f.far, src))
						}
					}
				}
				// Longer than a guest is to be followed in, with a last word each time.
				for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
					raw(datagram(f.spoofed, f.far, mac))
					raw(datagram(f.here, f.far, frame.MAC{2, 0, 0, 0, 0, 0x66}))
					waitFor(t, "a connection after spoofed frames", func() bool { return reached() == f.here })
				}

				script := "addr del " + f.here + f.bits + " dev " + dev + "\naddr add " + f.new + f.bits + " dev " + dev + " nodad" +
					"\nroute replace default via " + f.far + " dev " + dev
				if f.bits == "/24" {
					script = strings.Replace(script, " nodad", "", 1)
				}
				if err := c.target.IP(script); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				waitFor(t, "a connection to the new address", func() bool {
					if vm {
						speak(f.new) // else the kernel's word is enough
					}
					return reached() == f.new
				})
				t.Logf("followed after %v", time.Since(begin))
			})
		}
	}
}

// anyOf is the unspecified address of addr's family.
func anyOf(addr string) string {
	if strings.Contains(addr, ":") {
		return "::"
	}
	return "0.0.0.0"
}

// packetSocket returns what sends frames, without virtio_net_hdr, from dev of n.
func packetSocket(t *testing.T, n *bed.NS, dev string) func([]byte) {
	t.Helper()
	var fd, index int
	err := n.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		index = i.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func(b []byte) {
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil && err != unix.ENOBUFS {
			t.Errorf("send a frame: %v", err)
		}
	}
}

// hardwareOf is the Ethernet address of dev in n.
func hardwareOf(t *testing.T, n *bed.NS, dev string) (mac frame.MAC) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			mac = frame.MAC(i.HardwareAddr)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// datagram is a frame with one from one address to another.
func datagram(from, to string, mac frame.MAC) []byte {
	src, dst := frame.AddrOf(netip.MustParseAddr(from)), frame.AddrOf(netip.MustParseAddr(to))
	ip := frame.IP{Src: src, Dst: dst, Proto: frame.ProtoUDP, TTL: 64, Len: frame.UDPLen + 4}
	etherType := uint16(frame.EtherIPv6)
	if frame.Is4(&src) {
		etherType = frame.EtherIPv4
	}
	b := make([]byte, 128)
	frame.PutEth(b, frame.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}, mac, etherType)
	at := frame.L3Off + frame.PutIP(b[frame.L3Off:], &ip)
	frame.PutUDP(b[at:], 4000, 9, 4, 0)
	sum := frame.Checksum(b[at:at+ip.Len], frame.PseudoSum(&src, &dst, frame.ProtoUDP, ip.Len))
	binary.BigEndian.PutUint16(b[at+6:], sum)
	return b[frame.VnetLen : at+ip.Len]
}
