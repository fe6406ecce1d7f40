package e2e

import (
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// flood writes frames to the target's device, over and over, perSecond of them, or if that is 0 as fast as
// that goes, until the function returned is called, which returns how many that were. It returns when the flood is under way.
func (c *connection) flood(t *testing.T, frames [][]byte, perSecond int) (end func() int64) {
	t.Helper()
	var fd int
	err := c.target.Do(func() error {
		ifi, err := net.InterfaceByName("h0")
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	var over atomic.Bool
	var sender sync.WaitGroup
	sender.Go(func() {
		for i, begin := 0, time.Now(); !over.Load(); i++ {
			if perSecond > 0 && i%64 == 0 {
				time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
			}
			if unix.Send(fd, frames[i%len(frames)], 0) == nil { // else the device has no room
				sent.Add(1)
			}
		}
	})
	waitFor(t, "the flood", func() bool { return sent.Load() > 1000 })
	return func() int64 {
		over.Store(true)
		sender.Wait()
		unix.Close(fd)
		return sent.Load()
	}
}

// rate is how many bytes a second the target sends to the far peer meanwhile.
func rate(t *testing.T, got *atomic.Int64, length time.Duration) float64 {
	t.Helper()
	before, begin := got.Load(), time.Now()
	<-time.After(length)
	return float64(got.Load()-before) / time.Since(begin).Seconds()
}

// serialize returns the frame that is made of layers.
func serialize(t *testing.T, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// floods are frames that a hostile program in the namespace sends without end, from the device's address
// mac.
func floods(t *testing.T, mac net.HardwareAddr) map[string][][]byte {
	broadcast := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	own4, far4 := net.ParseIP(bed.HostAddr4).To4(), net.ParseIP(bed.FarAddr4).To4()
	own6, far6 := net.ParseIP(bed.HostAddr6), net.ParseIP(bed.FarAddr6)
	ip := func(proto layers.IPProtocol, to net.IP) *layers.IPv4 {
		return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: own4, DstIP: to}
	}
	to := func(mac2 net.HardwareAddr, typ layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: mac, DstMAC: mac2, EthernetType: typ}
	}
	all := make(map[string][][]byte)
	count := 20000
	if raceEnabled {
		count = 1000 // to make them takes long
	}
	for i := range count {
		silent := ip(layers.IPProtocolTCP, net.IPv4(198, 51, 100, 1).To4()) // who says nothing
		syn := &layers.TCP{SrcPort: layers.TCPPort(1024 + i), DstPort: 80, SYN: true, Seq: uint32(i), Window: 1000}
		syn.SetNetworkLayerForChecksum(silent)
		all["SYN"] = append(all["SYN"], serialize(t, to(broadcast, layers.EthernetTypeIPv4), silent, syn))

		far := ip(layers.IPProtocolUDP, far4)
		scan := &layers.UDP{SrcPort: 1024, DstPort: layers.UDPPort(1024 + i)}
		scan.SetNetworkLayerForChecksum(far)
		all["UDP"] = append(all["UDP"], serialize(t, to(broadcast, layers.EthernetTypeIPv4), far, scan, gopacket.Payload("?")))
	}
	all["ARP"] = [][]byte{serialize(t, to(broadcast, layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
		SourceHwAddress: mac, SourceProtAddress: own4, DstHwAddress: make([]byte, 6), DstProtAddress: far4,
	})}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: own6, DstIP: far6}
	head := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
	head.SetNetworkLayerForChecksum(ip6)
	all["NDP"] = [][]byte{serialize(t, to(broadcast, layers.EthernetTypeIPv6), ip6, head, &layers.ICMPv6NeighborSolicitation{
		TargetAddress: far6, Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: mac}},
	})}
	bc := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4zero.To4(), DstIP: net.IPv4bcast.To4()}
	bootp := &layers.UDP{SrcPort: 68, DstPort: 67}
	bootp.SetNetworkLayerForChecksum(bc)
	all["DHCP"] = [][]byte{serialize(t, to(broadcast, layers.EthernetTypeIPv4), bc, bootp, &layers.DHCPv4{
		Operation: layers.DHCPOpRequest, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6, Xid: 7, ClientHWAddr: mac,
		Options: layers.DHCPOptions{layers.NewDHCPOption(layers.DHCPOptMessageType, []byte{byte(layers.DHCPMsgTypeDiscover)})},
	})}
	return all
}

// Somebody in the namespace floods the translator with whatever costs it work: a transfer of somebody
// else's goes on, and messages about it are few.
func TestFloodsLeaveATransferItsShare(t *testing.T) {
	const length = time.Second
	perSecond := 10000 // a namespace that sends more than 50,000 overruns its own device, and loses frames there
	if raceEnabled {
		perSecond = 1000
	}
	if s := os.Getenv("FUSILLI_FLOOD"); s != "" {
		perSecond, _ = strconv.Atoi(s)
	}
	c := connect(t, newBed(t, defaultBed), "-t", "none", "-u", "none", "-T", "none", "-U", "none")
	var mac net.HardwareAddr
	err := c.target.Do(func() error {
		ifi, err := net.InterfaceByName("h0")
		if err == nil {
			mac = ifi.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Far.IP("route add blackhole 198.51.100.0/24"); err != nil {
		t.Fatal(err)
	}
	target, peer := c.pair(t, bed.FarAddr4)
	for _, conn := range []net.Conn{target, peer} {
		conn.SetDeadline(time.Now().Add(3 * limit))
	}
	var got atomic.Int64
	var ends sync.WaitGroup
	ends.Go(func() {
		for b := make([]byte, 256<<10); ; {
			if _, err := target.Write(b); err != nil {
				return
			}
		}
	})
	ends.Go(func() {
		for b := make([]byte, 256<<10); ; {
			n, err := peer.Read(b)
			if got.Add(int64(n)); err != nil {
				return
			}
		}
	})
	defer ends.Wait()
	defer target.Close()
	defer peer.Close()

	waitFor(t, "the transfer", func() bool { return got.Load() > 8<<20 })
	all := floods(t, mac)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		waitFor(t, "the transfer to be as fast as before", func() bool { return rate(t, &got, 100*time.Millisecond) > 100e6 })
		t.Run(name, func(t *testing.T) {
			var alone, beside float64
			for try := 0; try < 3 && beside <= alone/10; try++ { // the machine has other things to do as well
				alone = rate(t, &got, length)
				end := c.flood(t, all[name], perSecond)
				begin := time.Now()
				beside = rate(t, &got, length)
				n := end()
				t.Logf("%.0f Mbit/s alone, %.0f Mbit/s (%.0f%%) beside %.0f frames a second", alone*8/1e6, beside*8/1e6, 100*beside/alone,
					float64(n)/time.Since(begin).Seconds())
			}
			if beside < alone/10 {
				t.Errorf("a transfer is left %.0f of %.0f Mbit/s", beside*8/1e6, alone*8/1e6)
			}
		})
	}
	told := make(map[string]int)
	for line := range strings.Lines(c.proc.Stderr()) {
		text, _, _ := strings.Cut(line, " {")
		if told[text]++; told[text] == 2 {
			t.Errorf("said more than once: %s", text)
		}
	}
	echoStreams(t, c.Far, ":7000")
	if err := c.try(t, c.target.NS, net.JoinHostPort(bed.FarAddr4, "7000"), limit); err != nil {
		t.Errorf("a new connection afterwards: %v", err)
	}
}
