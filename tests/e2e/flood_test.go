package e2e

import (
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
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

// flood writes frames to a device of the target's, see floodFrom.
func (c *connection) flood(t *testing.T, device string, frames [][]byte, perSecond int) (end func() int64) {
	t.Helper()
	return floodFrom(t, c.target.NS, device, frames, perSecond)
}

// floodFrom writes frames to a device of ns, over and over, perSecond of them, or if that is 0 as
// fast as that goes, until the function returned is called, which returns how many that were. It
// returns when the flood is under way.
func floodFrom(t *testing.T, ns *bed.NS, device string, frames [][]byte, perSecond int) (end func() int64) {
	t.Helper()
	var fd int
	err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(device)
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
			unix.Send(fd, frames[i%len(frames)], 0) // what the device has no room for is lost
			sent.Add(1)
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

// lost returns how many frames a device of the target's had no room for so far.
func (c *connection) lost(t *testing.T, device string) (n uint64) {
	t.Helper()
	err := c.target.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		_, text, _ := strings.Cut(string(b), device+":")
		f := strings.Fields(text)
		if len(f) < 12 {
			return fmt.Errorf("no device %q", device)
		}
		n, err = strconv.ParseUint(f[11], 10, 64)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// nowhere makes the device of that name, which has no room for anything.
func (c *connection) nowhere(t *testing.T) {
	t.Helper()
	ifr, err := unix.NewIfreq("nowhere")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	err = c.target.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.target.IP("link set nowhere txqueuelen 1 up"); err != nil {
		t.Fatal(err)
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

// floods are frames that a hostile program in the namespace sends without end, from the device's
// address mac.
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

		// from somebody who is not there, and says nothing more
		other := ip(layers.IPProtocolTCP, far4)
		other.SrcIP = net.IPv4(10, 77, 0, byte(100+i/5000)).To4()
		open := &layers.TCP{SrcPort: layers.TCPPort(1024 + i), DstPort: 7001, SYN: true, Seq: uint32(i), Window: 1000}
		open.SetNetworkLayerForChecksum(other)
		all["half-open"] = append(all["half-open"], serialize(t, to(broadcast, layers.EthernetTypeIPv4), other, open))

		piece := ip(layers.IPProtocolUDP, far4)
		piece.Id, piece.Flags = uint16(i), layers.IPv4MoreFragments
		all["fragment"] = append(all["fragment"], serialize(t, to(broadcast, layers.EthernetTypeIPv4), piece, gopacket.Payload(make([]byte, 64))))

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

// Somebody in the namespace floods the translator with whatever costs it work: a transfer of
// somebody else's goes on, and messages about it are few.
//
// FUSILLI_FLOOD has it measure instead: rates, like 10000,50000, with 0 for as fast as that goes.
// It tells what the transfer keeps beside each flood, and beside the same frames sent to a device
// that drops them: to make them takes a share of the machine, too.
func TestFloodsLeaveATransferItsShare(t *testing.T) {
	const tries, length = 6, time.Second / 2
	rates := []int{10000}
	if raceEnabled {
		rates = []int{1000}
	}
	kept := 0.5 // of its speed
	if raceEnabled {
		kept = 0.25 // the race detector slows down some of what it takes more than the rest
	}
	measure := os.Getenv("FUSILLI_FLOOD")
	if measure != "" {
		rates = nil
		for s := range strings.SplitSeq(measure, ",") {
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			rates = append(rates, n)
		}
	}
	// A CPU's place for each flood: it is not to keep the transfer's ends waiting, which are in
	// this process as well.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
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
	if measure != "" {
		c.nowhere(t)
	}
	if err := c.Far.IP("route add blackhole 198.51.100.0/24"); err != nil {
		t.Fatal(err)
	}
	accepting(t, c.Far, ":7001")
	target, peer := c.pair(t, bed.FarAddr4)
	for _, conn := range []net.Conn{target, peer} {
		conn.SetDeadline(time.Time{})
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
		for _, perSecond := range rates {
			t.Run(fmt.Sprintf("%s/%d", name, perSecond), func(t *testing.T) {
				waitFor(t, "the transfer to be as fast as before", func() bool { return rate(t, &got, 100*time.Millisecond) > 100e6 })
				beside := func(device string) (speed float64, what string) {
					before, lost := c.usage(t).CPU, c.lost(t, device)
					end := c.flood(t, device, all[name], perSecond)
					begin := time.Now()
					speed = rate(t, &got, length)
					cpu := c.usage(t).CPU - before
					n := end()
					return speed, fmt.Sprintf("%.0f frames a second (%d lost), %v of CPU time", float64(n)/time.Since(begin).Seconds(),
						c.lost(t, device)-lost, cpu)
				}
				var best float64
				// the machine has other things to do as well
				for try := 0; try < tries && best < kept && (measure == "" || try == 0); try++ {
					alone := rate(t, &got, length)
					flooded, what := beside("h0")
					best = max(best, flooded/alone)
					text := fmt.Sprintf("%5.0f Mbit/s alone, %5.0f (%3.0f%%) beside %s", alone*8/1e6, flooded*8/1e6, 100*flooded/alone, what)
					if measure != "" {
						most, what := beside("nowhere")
						text += fmt.Sprintf("; %5.0f (%3.0f%%) beside %s if they go nowhere", most*8/1e6, 100*most/alone, what)
					}
					t.Log(text)
				}
				if best < kept && measure == "" {
					t.Errorf("a transfer keeps %.0f%% of its speed, want %.0f", 100*best, 100*kept)
				}
			})
		}
	}
	if measure != "" {
		return
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

// accepting has connections to an address accepted, and closed.
func accepting(t *testing.T, ns *bed.NS, addr string) {
	t.Helper()
	l, err := ns.Listen("tcp", addr)
	serving(t)(l, err)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
}
