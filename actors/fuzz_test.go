package actors

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// datagram returns a frame with a packet of protocol proto of the guest's to the alias of fam.
func datagram(fam family, proto uint8, l4 []byte) []byte {
	b := make([]byte, frame.L3Off+frame.IPv6Len+len(l4))
	etherType := uint16(frame.EtherIPv4)
	if fam.alias.Is6() {
		etherType = frame.EtherIPv6
	}
	frame.PutEth(b, ourMAC, guestMAC, etherType)
	at := frame.L3Off + frame.PutIP(b[frame.L3Off:], &frame.IP{Src: frame.AddrOf(fam.guest()), Dst: frame.AddrOf(fam.alias),
		Proto: proto, TTL: 255, Len: len(l4)})
	return b[:at+copy(b[at:], l4)]
}

// arpRequest returns the guest's question who has addr.
func arpRequest(addr [4]byte) []byte {
	b := make([]byte, frame.MinFrame)
	frame.PutEth(b, frame.Broadcast, guestMAC, frame.EtherARP)
	copy(b[frame.L3Off:], []byte{0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0})
	copy(b[frame.L3Off+24:], addr[:])
	return b
}

// templates are the frames FuzzEngine changes.
func templates() [][]byte {
	var all [][]byte
	vnet := func(b []byte, v frame.Vnet) []byte {
		frame.PutVnet(b, v)
		return b
	}
	udp := func(n int) []byte {
		b := make([]byte, frame.UDPLen+n)
		frame.PutUDP(b, 3000, 9, n, 0)
		return b
	}
	for _, fam := range families {
		l4 := uint16(frame.EthLen + frame.IPv4Len)
		gso, echo := uint8(frame.GSOTCPv4), byte(8)
		icmp := uint8(frame.ProtoICMP)
		if fam.alias.Is6() {
			l4, gso, echo, icmp = frame.EthLen+frame.IPv6Len, frame.GSOTCPv6, 128, frame.ProtoICMPv6
		}
		syn := segment(fam.alias, 2000, 9, frame.SYN, 7, 0, []byte{2, 4, 5, 0xb4, 1, 3, 3, 7})
		syn[frame.VnetLen+int(l4)+12] = 7 << 4
		all = append(all,
			syn,
			segment(fam.alias, 2000, 9, frame.SYN, 7, 0, nil),
			segment(fam.alias, 2000, 9, frame.ACK|frame.PSH, 8, 0, []byte("data")),
			segment(fam.alias, 2000, 9, frame.ACK|frame.FIN, 8, 0, nil),
			segment(fam.alias, 2000, 9, frame.RST, 8, 0, nil),
			vnet(segment(fam.alias, 2000, 9, frame.ACK, 8, 0, make([]byte, 4000)),
				frame.Vnet{Flags: frame.NeedsCsum, GSOType: gso, HdrLen: l4 + 20, GSOSize: 1400, CsumStart: l4, CsumOffset: 16}),
			datagram(fam, frame.ProtoUDP, udp(0)),
			datagram(fam, frame.ProtoUDP, udp(100)),
			vnet(datagram(fam, frame.ProtoUDP, udp(3000)),
				frame.Vnet{Flags: frame.NeedsCsum, GSOType: frame.GSOUDP, HdrLen: l4 + 8, GSOSize: 1000, CsumStart: l4, CsumOffset: 6}),
			datagram(fam, icmp, []byte{echo, 0, 0, 0, 0x12, 0x34, 0, 1, 'p', 'i', 'n', 'g'}),
			datagram(fam, 50, []byte("not for us")),
		)
	}
	fragment := segment(families[0].alias, 2000, 9, frame.ACK, 8, 0, []byte("fragment"))
	fragment[frame.L3Off+6] = 0x20
	vlan := segment(families[0].alias, 2000, 9, frame.ACK, 8, 0, []byte("vlan"))
	vlan[frame.VnetLen+12] = 0x81
	long := segment(families[0].alias, 2000, 9, frame.ACK, 8, 0, make([]byte, 65000))
	option := datagram(families[1], 0, append([]byte{frame.ProtoUDP, 0, 1, 4, 0, 0, 0, 0}, udp(4)...))
	ns := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, families[1].alias.AsSlice()...)
	return append(all, fragment, vlan, long, option,
		arpRequest([4]byte{10, 0, 2, 2}),
		datagram(families[1], frame.ProtoICMPv6, ns),
		datagram(families[1], frame.ProtoICMPv6, []byte{133, 0, 0, 0, 0, 0, 0, 0}),
	)
}

// What a sink does with what it gets.
const (
	echoes  = iota
	resets  // at once
	ends    // its own direction, and reads
	holds   // reads nothing
	floods  // sends much, reads nothing
	forgets // reads, and answers nothing
	numWays
)

// sinks take what flows send to the host, and do with it what the input says.
type sinks struct {
	tcp, udp uint16
	calls    [2]*net.TCPListener // what calls the guest is accepted there
	way      atomic.Uint32

	mu    sync.Mutex
	conns map[net.Conn]bool
	fewer sync.Cond // conns are
}

func newSinks(f *testing.F) *sinks {
	l := listen(f, families[0])
	l6, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(families[1].loopback, portOf(l))))
	if err != nil {
		f.Skip(err) // the port is taken
	}
	f.Cleanup(func() { l6.Close() })
	s := &sinks{tcp: portOf(l), conns: make(map[net.Conn]bool)}
	s.fewer.L = &s.mu
	for _, l := range []*net.TCPListener{l, l6} {
		l.SetDeadline(time.Time{})
		go func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				s.serve(c)
			}
		}()
	}
	for i := range s.calls {
		s.calls[i] = listen(f, families[i])
		s.calls[i].SetDeadline(time.Time{})
	}
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(families[0].loopback, 0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { u.Close() })
	s.udp = u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	go s.datagrams(u)
	return s
}

// serve does to c what sinks do now.
func (s *sinks) serve(c *net.TCPConn) {
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	way := s.way.Load()
	go func() {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.conns, c)
			c.Close()
			s.fewer.Broadcast()
		}()
		switch way {
		case echoes:
			io.Copy(c, c)
		case resets:
			c.SetLinger(0)
		case ends:
			c.CloseWrite()
			io.Copy(io.Discard, c)
		case forgets:
			io.Copy(io.Discard, c)
		case floods:
			for b := make([]byte, 64<<10); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		default:
			raw, err := c.SyscallConn()
			if err == nil { // until it is reset or closed
				raw.Read(func(fd uintptr) bool { return sock.Poll(int(fd), 0) != 0 })
			}
		}
	}()
}

// end ends all connections of the sinks, which the engine has given up.
func (s *sinks) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) > 0 {
		for c := range s.conns {
			c.SetDeadline(time.Unix(1, 0))
		}
		s.fewer.Wait()
	}
}

// datagrams is serve for what comes to u.
func (s *sinks) datagrams(u *net.UDPConn) {
	for b := make([]byte, 65536); ; {
		n, from, err := u.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		switch s.way.Load() {
		case echoes, ends:
			u.WriteToUDPAddrPort(b[:n], from)
		case floods:
			for i := range 20 {
				u.WriteToUDPAddrPort(b[:min(len(b)-1, n*i)], from)
			}
		}
	}
}

// call makes a peer of the host's ask the guest for a connection, or send it datagrams.
func (s *sinks) call(e *Engine, fam, guestPort, remotePort int, datagram bool) {
	f := families[fam]
	k := flow.Key{Guest: frame.AddrOf(f.guest()), Remote: frame.AddrOf(f.alias), GuestPort: uint16(guestPort), RemotePort: uint16(remotePort)}
	if datagram {
		if fd, _, err := (&sock.Host{}).UDP(0, netip.AddrPortFrom(families[0].loopback, s.udp)); err == nil {
			e.AcceptUDP(fd, k, [][]byte{[]byte("first"), nil, make([]byte, 1000)})
		}
		return
	}
	l := s.calls[fam]
	c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return
	}
	a, err := l.AcceptTCP()
	if err != nil {
		c.Close()
		return
	}
	defer a.Close()
	raw, err := a.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			if n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				e.AcceptTCP(n, k)
			}
		})
	}
	s.serve(c)
}

// tame makes a frame that opens or uses a flow lead to the sinks, and nowhere else.
func (s *sinks) tame(b []byte) {
	var p frame.Packet
	if frame.Parse(b, &p) != frame.OK {
		return
	}
	switch p.Kind {
	case frame.TCP:
		binary.BigEndian.PutUint16(b[p.L4+2:], s.tcp)
	case frame.UDP:
		binary.BigEndian.PutUint16(b[p.L4+2:], s.udp)
	case frame.ICMPEcho, frame.ICMPv6Echo:
	default:
		return
	}
	if p.V6 {
		copy(b[p.L3+24:], families[1].alias.AsSlice())
	} else {
		copy(b[p.L3+16:], families[0].alias.AsSlice())
	}
}

// FuzzEngine sends a running engine any frames: those of templates with some bytes changed and
// their ends cut off, and plain bytes; what they lead to on the host does anything, and asks the
// guest for connections as well. Whatever comes, nothing panics, and everything is given back in
// the end.
//
// Input is a row of records: the number of a template, a number of changes, 0 or how many bytes to
// cut off, and three bytes for each change, place and value. A number beyond the templates stands
// for plain bytes, and the second byte is their number then; but 254 for what the host does from
// now on, and 253 for a call of the host's, to a port and from one.
func FuzzEngine(f *testing.F) {
	frames := templates()
	sinks := newSinks(f)
	var all []byte
	for i := range frames {
		f.Add([]byte{byte(i), 0, 0})
		f.Add([]byte{byte(i), 1, 0, 0, 0, 1, byte(i), 0, 7})
		all = append(all, byte(i), 0, 0)
	}
	f.Add(all)
	f.Add(append(append([]byte{}, all...), all...))
	f.Add([]byte{255, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Add([]byte{255, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd})
	f.Add([]byte{255, 0, 255, 1, 0})
	for way := range byte(numWays) {
		f.Add(append([]byte{254, way, 0}, all...))
		f.Add([]byte{254, way, 0, 253, 208, 9, 253, 81, 9, 253, 7, 9, 3, 0, 0, 4, 0, 0})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		e, link, _ := newEngine(&options{queue: 4096, maxFlows: 16})
		sinks.way.Store(echoes)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		answered := make(chan struct{})
		read := make(chan struct{})
		mark := [4]byte{10, 0, 2, 99}
		go func() {
			defer close(read)
			seen := false
			for b := make([]byte, frame.MaxFrame); ; {
				n, err := link.Read(b)
				if err != nil {
					return
				}
				if !seen && n >= frame.MinFrame && b[frame.VnetLen+12] == 8 && b[frame.VnetLen+13] == 6 &&
					[4]byte(b[frame.L3Off+14:]) == mark {
					seen = true
					close(answered)
				}
			}
		}()
		for n := 0; len(in) >= 3 && n < 100; n++ {
			var b []byte
			switch in[0] {
			case 254:
				sinks.way.Store(uint32(in[1] % numWays))
				in = in[3:]
				continue
			case 253: // the port of templates is 2000
				sinks.call(e, int(in[1]&1), 1792+int(in[1]), int(in[2]), in[1]&6 == 6)
				in = in[3:]
				continue
			}
			if int(in[0]) < len(frames) {
				b = append(b, frames[in[0]]...)
				changes, cut := int(in[1]%8), int(in[2])
				in = in[3:]
				b = b[:len(b)-min(cut, len(b))]
				for ; changes > 0 && len(in) >= 3; changes-- {
					if at := int(binary.BigEndian.Uint16(in)); at < len(b) {
						b[at] = in[2]
					}
					in = in[3:]
				}
			} else {
				size := min(int(in[1]), len(in)-2)
				b = append(b, in[2:2+size]...)
				in = in[2+size:]
			}
			sinks.tame(b)
			link.Write(b)
		}
		// When a question that comes last is answered, the frames were seen. It may get lost.
		retry := time.NewTicker(time.Millisecond)
		defer retry.Stop()
		end := time.Now().Add(patience)
	wait:
		for link.Write(arpRequest(mark)); ; link.Write(arpRequest(mark)) {
			select {
			case <-answered:
				break wait
			case <-retry.C:
				if time.Now().After(end) {
					t.Fatal("the engine does not answer any more")
				}
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		link.Close()
		<-read
		sinks.end()
		c := e.Counters()
		if c.Panics.Load() != 0 || e.Flows() != 0 || e.pool.Out() != 0 || e.env.Held.Used() != 0 {
			t.Errorf("%d panics; %d flows, %d slabs, %d held bytes are left", c.Panics.Load(), e.Flows(), e.pool.Out(), e.env.Held.Used())
		}
	})
}
