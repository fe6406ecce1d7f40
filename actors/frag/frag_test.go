package frag

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand"
	"net/netip"
	"testing"
	"time"

	"fusilli/tapio/frame"
)

var (
	guest  = map[bool]frame.Addr{false: addr("10.0.2.15"), true: addr("2001:db8::15")}
	remote = map[bool]frame.Addr{false: addr("192.0.2.9"), true: addr("2001:db8::9")}
)

func addr(s string) frame.Addr { return frame.AddrOf(netip.MustParseAddr(s)) }

// piece is a fragment of a datagram.
type piece struct {
	off, n int
	more   bool
	tos    uint8
}

// fragment returns p's frame, with the bytes of payload.
func fragment(v6 bool, id uint32, p piece, payload []byte) []byte {
	data := payload[p.off : p.off+p.n]
	b := make([]byte, frame.L3Off+frame.IPv6Len+8+len(data))
	ip := frame.IP{Src: guest[v6], Dst: remote[v6], Proto: frame.ProtoUDP, TTL: 61, TOS: p.tos, ID: uint16(id), Len: len(data)}
	etherType, flags := uint16(frame.EtherIPv4), uint16(p.off/8)
	if p.more {
		flags |= 0x2000
	}
	if v6 {
		etherType, ip.Proto, ip.Len = frame.EtherIPv6, 44, 8+len(data)
	}
	frame.PutEth(b, frame.MAC{2, 1}, frame.MAC{2, 2}, etherType)
	n := frame.L3Off + frame.PutIP(b[frame.L3Off:], &ip)
	if v6 {
		b[n] = frame.ProtoUDP
		binary.BigEndian.PutUint16(b[n+2:], uint16(p.off))
		if p.more {
			b[n+3] |= 1
		}
		binary.BigEndian.PutUint32(b[n+4:], id)
		n += 8
	} else {
		binary.BigEndian.PutUint16(b[frame.L3Off+6:], flags)
	}
	return b[:n+copy(b[n:], data)]
}

// add gives t the fragment.
func add(tb testing.TB, t *Table, f []byte, now time.Duration) ([]byte, Outcome) {
	tb.Helper()
	var p frame.Packet
	if why := frame.Parse(f, &p); why != frame.OK || p.Kind != frame.Fragment {
		tb.Fatalf("no fragment: %v, %+v", why, p)
	}
	return t.Add(f, &p, now)
}

// udp returns a UDP datagram with n bytes of data.
func udp(n int) []byte {
	b := make([]byte, frame.UDPLen+n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	frame.PutUDP(b, 1000, 2000, n, 0)
	return b
}

// cut returns the pieces of n bytes, each of size bytes.
func cut(n, size int) (all []piece) {
	for off := 0; off < n; off += size {
		all = append(all, piece{off: off, n: min(size, n-off), more: off+size < n})
	}
	return all
}

// check compares the whole frame with the datagram.
func check(t *testing.T, whole, payload []byte, v6 bool) {
	t.Helper()
	var p frame.Packet
	if why := frame.Parse(whole, &p); why != frame.OK {
		t.Fatalf("whole frame: %v", why)
	}
	if p.Kind != frame.UDP || p.V6 != v6 || p.Src != guest[v6] || p.Dst != remote[v6] || p.TTL != 61 ||
		p.SrcPort != 1000 || p.DstPort != 2000 || frame.Src(whole) != (frame.MAC{2, 2}) {
		t.Errorf("whole frame is %+v", p)
	}
	if !bytes.Equal(whole[p.L4:p.End], payload) {
		t.Errorf("%d bytes that differ, or are not %d", p.End-p.L4, len(payload))
	}
}

func TestAnyOrder(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{9, 1600, 8000, 65507} {
			for _, size := range []int{8, 576, 1480, 16384} {
				if n/size > 2*maxRanges || n+frame.UDPLen <= size {
					continue
				}
				t.Run(fmt.Sprintf("v6=%v/%d in %d", v6, n, size), func(t *testing.T) {
					table := New(MaxDatagrams)
					payload := udp(n)
					for round := range 4 {
						pieces := cut(len(payload), size)
						switch round {
						case 1:
							for i := range len(pieces) / 2 {
								pieces[i], pieces[len(pieces)-1-i] = pieces[len(pieces)-1-i], pieces[i]
							}
						case 2, 3:
							rand.New(rand.NewSource(int64(n+size))).Shuffle(len(pieces), func(i, j int) {
								pieces[i], pieces[j] = pieces[j], pieces[i]
							})
						}
						for i, p := range pieces {
							f := fragment(v6, uint32(round), p, payload)
							whole, o := add(t, table, f, 0)
							switch {
							case i < len(pieces)-1 && o != Kept, i == len(pieces)-1 && o != Whole:
								t.Fatalf("piece %d of %d: %v", i, len(pieces), o)
							case o == Whole:
								check(t, whole, payload, v6)
							case round == 3:
								if _, o := add(t, table, f, 0); o != Duplicate {
									t.Fatalf("piece %d again: %v", i, o)
								}
							}
						}
						if table.Len() != 0 {
							t.Fatal("something is left")
						}
					}
				})
			}
		}
	}
}

func TestBadFragments(t *testing.T) {
	payload := udp(4000)
	for _, v6 := range []bool{false, true} {
		for _, tt := range []struct {
			name   string
			pieces []piece
			want   Outcome // of the last one
			then   Outcome // of one more that fits
		}{
			{"not a multiple of 8", []piece{{off: 0, n: 1001, more: true}}, Malformed, Kept},
			{"empty", []piece{{off: 16, n: 0, more: true}}, Malformed, Kept},
			{"overlap at the end", []piece{{off: 0, n: 800, more: true}, {off: 792, n: 800, more: true}}, Conflict, Late},
			{"overlap at the beginning", []piece{{off: 800, n: 800, more: true}, {off: 0, n: 808, more: true}}, Conflict, Late},
			{"around another", []piece{{off: 800, n: 8, more: true}, {off: 0, n: 1600, more: true}}, Conflict, Late},
			{"two ends", []piece{{off: 800, n: 8}, {off: 1600, n: 8}}, Conflict, Late},
			{"behind the end", []piece{{off: 800, n: 8}, {off: 1600, n: 8, more: true}}, Conflict, Late},
			{"end before what is there", []piece{{off: 1600, n: 8, more: true}, {off: 800, n: 8}}, Conflict, Late},
		} {
			t.Run(fmt.Sprintf("%s v6=%v", tt.name, v6), func(t *testing.T) {
				table := New(MaxDatagrams)
				var o Outcome
				for _, p := range tt.pieces {
					_, o = add(t, table, fragment(v6, 1, p, payload), 0)
				}
				if o != tt.want {
					t.Errorf("%v, want %v", o, tt.want)
				}
				if _, o := add(t, table, fragment(v6, 1, piece{off: 2400, n: 8, more: true}, payload), 0); o != tt.then {
					t.Errorf("one that fits: %v, want %v", o, tt.then)
				}
			})
		}
		t.Run(fmt.Sprintf("other bytes at the same place v6=%v", v6), func(t *testing.T) {
			table := New(MaxDatagrams)
			add(t, table, fragment(v6, 1, piece{off: 0, n: 800, more: true}, payload), 0)
			if _, o := add(t, table, fragment(v6, 1, piece{off: 0, n: 800, more: true}, udp(4001)), 0); o != Conflict {
				t.Error(o)
			}
		})
		// The ping of death: a fragment that ends beyond the longest packet.
		t.Run(fmt.Sprintf("beyond the longest packet v6=%v", v6), func(t *testing.T) {
			if _, o := add(t, New(MaxDatagrams), fragment(v6, 1, piece{off: 65528, n: 16}, make([]byte, 70000)), 0); o != Malformed {
				t.Error(o)
			}
		})
	}
}

func TestScattered(t *testing.T) {
	table, payload := New(MaxDatagrams), udp(60000)
	for i := range maxRanges {
		if _, o := add(t, table, fragment(false, 1, piece{off: 16 * i, n: 8, more: true}, payload), 0); o != Kept {
			t.Fatal(o)
		}
	}
	if _, o := add(t, table, fragment(false, 1, piece{off: 16 * maxRanges, n: 8, more: true}, payload), 0); o != Scattered {
		t.Error(o)
	}
}

func TestCongestionIsKept(t *testing.T) {
	payload := udp(1000)
	for _, v6 := range []bool{false, true} {
		table := New(MaxDatagrams)
		add(t, table, fragment(v6, 1, piece{off: 0, n: 504, more: true, tos: 0xba}, payload), 0)
		whole, _ := add(t, table, fragment(v6, 1, piece{off: 504, n: 504, tos: 0xbb}, payload), 0)
		var p frame.Packet
		if frame.Parse(whole, &p); p.TOS != 0xbb {
			t.Errorf("type of service %#x", p.TOS)
		}
	}
}

func TestTimeout(t *testing.T) {
	payload := udp(1000)
	first, last := fragment(true, 1, piece{off: 0, n: 504, more: true}, payload), fragment(true, 1, piece{off: 504, n: 504}, payload)
	table := New(MaxDatagrams)
	add(t, table, first, 0)
	if _, o := add(t, table, last, Timeout); o != Whole {
		t.Errorf("in time: %v", o)
	}
	add(t, table, first, 0)
	if _, o := add(t, table, last, Timeout+1); o != Kept || table.Expired != 1 {
		t.Errorf("late: %v, %d expired", o, table.Expired)
	}
	table.Expire(2*Timeout + 2)
	if table.Len() != 0 || table.Expired != 2 {
		t.Errorf("%d datagrams are left, %d have expired", table.Len(), table.Expired)
	}
}

// TestFlood: however many datagrams a guest begins, there is a bound, and those begun last are
// kept.
func TestFlood(t *testing.T) {
	table, payload := New(MaxDatagrams), udp(1000)
	for i := range 10000 {
		add(t, table, fragment(false, uint32(i), piece{off: 0, n: 504, more: true}, payload), time.Duration(i))
		if table.Len() > MaxDatagrams || table.Len()+len(table.free) > MaxDatagrams+1 {
			t.Fatalf("%d datagrams, %d free", table.Len(), len(table.free))
		}
	}
	if whole, o := add(t, table, fragment(false, 9999, piece{off: 504, n: 504}, payload), 10000); o != Whole {
		t.Error(o)
	} else {
		check(t, whole, payload, false)
	}
	if table.Evicted != 10000-MaxDatagrams {
		t.Errorf("%d were evicted", table.Evicted)
	}
}

// FuzzTable: whatever comes, what is called whole is what a simple model says.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 0, 10, 1, 0, 10, 10, 0})
	f.Add([]byte{1, 10, 10, 0, 1, 0, 10, 1, 9, 0, 3, 1, 9, 3, 3, 1, 9, 6, 3, 0})
	payloads := map[byte][]byte{0: udp(2100), 1: udp(2101)}
	f.Fuzz(func(t *testing.T, in []byte) {
		table := New(MaxDatagrams)
		now := time.Duration(0)
		for len(in) >= 4 {
			p := piece{off: int(in[1]) * 8, n: int(in[2]%8) * 8, more: in[3]&1 != 0}
			if in[3]&2 != 0 {
				p.n += 3
			}
			if in[3]&4 != 0 {
				now += 7 * time.Second
			}
			if p.off == 0 && !p.more {
				p.more = true // else it is no fragment
			}
			v6, id, payload := in[0]&1 != 0, uint32(in[0]>>2), payloads[in[0]>>1&1]
			in = in[4:]
			whole, o := add(t, table, fragment(v6, id, p, payload), now)
			if (o == Whole) != (whole != nil) || table.Len() > MaxDatagrams {
				t.Fatalf("%v with %d bytes, %d datagrams", o, len(whole), table.Len())
			}
			if o != Whole {
				continue
			}
			var pkt frame.Packet
			why := frame.Parse(whole, &pkt)
			if pkt.Kind == frame.Fragment || why != frame.OK && why != frame.DropUDPShort && why != frame.DropPort {
				t.Fatalf("whole frame: %v, %+v", why, pkt)
			}
		}
	})
}
