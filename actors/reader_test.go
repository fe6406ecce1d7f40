package actors

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/dhcp"
	"fusilli/actors/dhcpv6"
	"fusilli/actors/flow"
	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/tapio/frame"
)

// sink is a link that takes every frame and has none.
type sink struct{}

func (sink) Read([]byte) (int, error)    { return 0, os.ErrClosed }
func (sink) TryRead([]byte) (int, error) { return 0, nil }
func (sink) Write([]byte) error          { return nil }
func (sink) Close() error                { return nil }

// seed returns a frame of one packet from 10.0.2.100 or fd00::64.
func seed(v6 bool, proto uint8, l4 ...byte) []byte {
	b := make([]byte, frame.VnetLen+frame.EthLen+frame.IPv6Len+len(l4))
	etherType := uint16(0x0800)
	ip := frame.IP{
		Src: frame.AddrOf(netip.MustParseAddr("10.0.2.100")), Dst: frame.AddrOf(netip.MustParseAddr("10.0.2.2")),
		Proto: proto, TTL: 64, Len: len(l4),
	}
	if v6 {
		etherType = 0x86dd
		ip.Src, ip.Dst = frame.AddrOf(netip.MustParseAddr("fd00::64")), frame.AddrOf(netip.MustParseAddr("fd00::2"))
	}
	frame.PutEth(b, frame.MAC{2}, frame.MAC{4}, etherType)
	n := frame.VnetLen + frame.EthLen
	n += frame.PutIP(b[n:], &ip)
	return b[:n+copy(b[n:], l4)]
}

// row joins frames as FuzzReader takes them apart.
func row(frames ...[]byte) (b []byte) {
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}

// FuzzReader has the reader sort rows of arbitrary frames. Whatever they are, nothing panics, and
// every slab comes home when the flows they made have ended.
func FuzzReader(f *testing.F) {
	syn := []byte{0x80, 1, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, frame.SYN, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4}
	data := []byte{0x80, 1, 0, 9, 0, 0, 0, 2, 0, 0, 0, 1, 0x50, frame.ACK | frame.PSH, 0xff, 0xff, 0, 0, 0, 0, 'x'}
	rst := []byte{0x80, 1, 0, 9, 0, 0, 0, 2, 0, 0, 0, 0, 0x50, frame.RST, 0, 0, 0, 0, 0, 0}
	udp := []byte{0x80, 2, 0, 9, 0, 9, 0, 0, 'x'}
	echo := []byte{8, 0, 0, 0, 0, 7, 0, 1, 'x'}
	arp := append(make([]byte, frame.VnetLen+12), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2)
	vlan := append(make([]byte, frame.VnetLen+12), 0x81, 0, 0, 1, 8, 0)
	fragment := seed(false, 17, udp...)
	fragment[frame.VnetLen+frame.EthLen+6] = 0x20
	gso := seed(false, 6, data...)
	frame.PutVnet(gso, frame.Vnet{Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv4, HdrLen: 54, GSOSize: 1, CsumStart: 34, CsumOffset: 16})
	for _, v6 := range []bool{false, true} {
		f.Add(row(seed(v6, 6, syn...), seed(v6, 6, syn...), seed(v6, 6, data...), seed(v6, 6, rst...)))
		f.Add(row(seed(v6, 6, data...), seed(v6, 17, udp...), seed(v6, 17, udp...), seed(v6, 6, syn...)))
		f.Add(row(seed(v6, 17, append([]byte{0, 68, 0, 67, 0, 248, 0, 0, 1, 1, 6}, make([]byte, 240)...)...),
			seed(v6, 17, 2, 34, 2, 35, 0, 26, 0, 0, 1, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1)))
		f.Add(row(seed(v6, 58, 135, 0, 0, 0), seed(v6, 58, 133, 0, 0, 0, 0, 0, 0, 0), seed(v6, 1, echo...)))
	}
	// What comes behind a reset opens the next connection, also while the engine ends.
	var again [][]byte
	for range 20 {
		again = append(again, seed(false, 6, syn...), seed(false, 6, rst...))
	}
	f.Add(row(again...))
	first, rest := seed(false, 17, udp[:8]...), seed(false, 17, []byte("rest")...)
	first[frame.L3Off+6], rest[frame.L3Off+7] = 0x20, 1
	f.Add(row(rest, first))
	quote := seed(false, 6, data...)[frame.L3Off:]
	f.Add(row(seed(false, 6, syn...), seed(false, 1, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, quote...)...)))
	f.Add(row(arp, vlan, fragment, gso, nil, make([]byte, 9), make([]byte, frame.VnetLen)))
	alias4, alias6 := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")

	f.Fuzz(func(t *testing.T, b []byte) {
		e := New(Config{
			Link: sink{}, Log: zap.NewNop(), MTU: 65520, V4: true, V6: true, Limit: flow.NewLimit(64),
			Rules:      rules.Rules{HostLoopback4: alias4, HostLoopback6: alias6},
			Neigh:      neigh.Responder{LinkLocal: frame.AddrOf(netip.MustParseAddr("fe80::1"))},
			DHCP:       dhcp.New(&dhcp.Config{Guest: netip.MustParseAddr("10.0.2.15"), PrefixLen: 24, Gateway: alias4, Log: zap.NewNop()}),
			DHCPv6:     dhcpv6.New(&dhcpv6.Config{LinkLocal: netip.MustParseAddr("fe80::1"), Guest: netip.MustParseAddr("fd00::15"), Log: zap.NewNop()}),
			UDPTimeout: time.Hour, UDPStreamTimeout: time.Hour,
		})
		ctx, cancel := context.WithCancel(t.Context())
		var parts sync.WaitGroup
		e.startServices(ctx, &parts)
		r := reader{e: e}
		slab := e.pool.Get()
		var pkt frame.Packet
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			room := slab.Room()
			if room == nil {
				break
			}
			copy(room, b[2:2+n])
			b = b[2+n:]
			if frame.Parse(room[:n], &pkt) != frame.OK {
				continue
			}
			// Flows lead to this machine and nowhere else.
			if pkt.Dst = frame.AddrOf(alias4); pkt.V6 {
				pkt.Dst = frame.AddrOf(alias6)
			}
			if pkt.Kind == frame.Fragment { // is read again
				if pkt.V6 {
					copy(room[frame.L3Off+24:], alias6.AsSlice())
				} else {
					copy(room[frame.L3Off+16:], alias4.AsSlice())
				}
			}
			r.sort(slab, room[:n], &pkt)
		}
		r.deliver(slab)
		slab.Release()
		for _, p := range []*flow.Port{e.services.neigh, e.services.refuse, e.services.dhcp, e.services.dhcpv6, e.services.fragments} {
			for p.Mail() {
				runtime.Gosched()
			}
		}
		cancel()
		parts.Wait()
		e.endFlows()
		e.env.Closer.End()
		if n := e.env.Counters.Panics.Load(); n != 0 {
			t.Errorf("%d flows have panicked", n)
		}
		if n := e.pool.Out(); n != 0 {
			t.Errorf("%d slabs are out", n)
		}
		if n := e.table.Len(); n != 0 {
			t.Errorf("%d flows are left", n)
		}
	})
}
