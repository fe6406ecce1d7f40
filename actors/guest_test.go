package actors

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"fusilli/tapio"
	"fusilli/tapio/frame"
)

const nic = 1

// guest is a machine at the other end of the link: gVisor's TCP/IP stack, which shares no code with
// ours. It resolves addresses by ARP and NDP, and verifies all checksums.
type guest struct {
	*stack.Stack
	port *nicEnd
}

// newGuest has a machine with the addresses of families answer at link.
func newGuest(t testing.TB, link tapio.Link, mtu int) *guest {
	t.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	wait := tcpip.TCPTimeWaitTimeoutOption(0)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &wait)
	// The link is short, and a guest that waits a second for each loss that only a time-out shows
	// makes tests slow.
	least, most := tcpip.TCPMinRTOOption(10*time.Millisecond), tcpip.TCPMaxRTOOption(80*time.Millisecond)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &least)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &most)
	end := &nicEnd{link: link, mtu: uint32(mtu + header.EthernetMinimumSize)}
	if err := s.CreateNIC(nic, ethernet.New(end)); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.0.2.15/24", "fd00::15/64", "fe80::15/64"} {
		p := netip.MustParsePrefix(a)
		proto := ipv4.ProtocolNumber
		if p.Addr().Is6() {
			proto = ipv6.ProtocolNumber
		}
		if err := s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol:          proto,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits()},
		}, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	return &guest{s, end}
}

func (g *guest) close() {
	g.Destroy()
	g.port.link.Close()
	g.port.reader.Wait()
}

// full returns a as gVisor has it.
func full(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := ipv4.ProtocolNumber
	if a.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, proto
}

// conn is a TCP connection of the guest. abort ends it with RST.
type conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

func (c *conn) abort() { c.ep.Abort() }

// dial connects to a. The error is a tcpip.Error, or ctx's.
func (g *guest) dial(ctx context.Context, a netip.AddrPort) (*conn, error) {
	to, proto := full(a)
	wq := new(waiter.Queue)
	ep, err := g.NewEndpoint(tcp.ProtocolNumber, proto, wq)
	if err != nil {
		return nil, errors.New(err.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	err = ep.Connect(to)
	if _, ok := err.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		case <-ready:
		}
		err = ep.LastError()
	}
	if err != nil {
		ep.Close()
		return nil, errors.New(err.String())
	}
	return &conn{gonet.NewTCPConn(wq, ep), ep}, nil
}

// dialUDP returns a UDP socket connected to a.
func (g *guest) dialUDP(t testing.TB, a netip.AddrPort) net.Conn {
	t.Helper()
	to, proto := full(a)
	c, err := gonet.DialUDP(g.Stack, nil, &to, proto)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// nicEnd is what the guest's network card sends to and receives from: a Link.
type nicEnd struct {
	link   tapio.Link
	mtu    uint32
	reader sync.WaitGroup

	mu       sync.Mutex
	dispatch stack.NetworkDispatcher

	watch atomic.Pointer[func([]byte)] // if set, is shown each frame to the guest

	closedOut atomic.Int64 // TCP segments of the guest's that closed its window
	closedIn  atomic.Int64 // TCP segments that closed the translator's
}

// Attach implements stack.LinkEndpoint.
func (e *nicEnd) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	start := e.dispatch == nil && d != nil
	e.dispatch = d
	if start {
		e.reader.Go(e.read)
	}
}

// IsAttached implements stack.LinkEndpoint.
func (e *nicEnd) IsAttached() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dispatch != nil
}

func (e *nicEnd) read() {
	b := make([]byte, frame.MaxFrame)
	for {
		n, err := e.link.Read(b)
		if err != nil {
			return
		}
		if window(b[:n]) == 0 {
			e.closedIn.Add(1)
		}
		if w := e.watch.Load(); w != nil {
			(*w)(b[:n])
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[frame.VnetLen:n])})
		e.mu.Lock()
		d := e.dispatch
		e.mu.Unlock()
		if d != nil {
			d.DeliverNetworkPacket(0, pkt)
		}
		pkt.DecRef()
	}
}

// WritePackets implements stack.LinkWriter.
func (e *nicEnd) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	b := make([]byte, frame.VnetLen, frame.VnetLen+int(e.mtu))
	for _, pkt := range pkts.AsSlice() {
		b = b[:frame.VnetLen]
		for _, s := range pkt.AsSlices() {
			b = append(b, s...)
		}
		if window(b) == 0 {
			e.closedOut.Add(1)
		}
		e.link.Write(b) // as a card: what cannot be sent is lost
	}
	return pkts.Len(), nil
}

// window returns the window field of the TCP segment b, or -1 if b is none that has an
// acknowledgement.
func window(b []byte) int {
	if len(b) < frame.L3Off+frame.IPv4Len+frame.TCPLen {
		return -1
	}
	l4 := frame.L3Off + frame.IPv4Len
	proto := b[frame.L3Off+9]
	if b[frame.L3Off]>>4 == 6 {
		l4, proto = frame.L3Off+frame.IPv6Len, b[frame.L3Off+6]
	}
	if proto != frame.ProtoTCP || len(b) < l4+frame.TCPLen || b[l4+13]&(frame.ACK|frame.RST) != frame.ACK {
		return -1
	}
	return int(binary.BigEndian.Uint16(b[l4+14:]))
}

func (e *nicEnd) MTU() uint32                                  { return e.mtu }
func (e *nicEnd) SetMTU(uint32)                                {}
func (e *nicEnd) MaxHeaderLength() uint16                      { return 0 }
func (e *nicEnd) LinkAddress() tcpip.LinkAddress               { return tcpip.LinkAddress(guestMAC[:]) }
func (e *nicEnd) SetLinkAddress(tcpip.LinkAddress)             {}
func (e *nicEnd) Capabilities() stack.LinkEndpointCapabilities { return 0 }
func (e *nicEnd) Wait()                                        {}
func (e *nicEnd) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareEther }
func (e *nicEnd) AddHeader(*stack.PacketBuffer)                {}
func (e *nicEnd) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (e *nicEnd) Close()                                       {}
func (e *nicEnd) SetOnCloseAction(func())                      {}
