package tcp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// read returns the next n bytes the host gets.
func (b *bed) read(n int) []byte {
	b.t.Helper()
	d := make([]byte, n)
	if _, err := io.ReadFull(b.host, d); err != nil {
		b.t.Fatalf("host reads: %v", err)
	}
	return d
}

// eof checks that the guest's direction has ended.
func (b *bed) eof() {
	b.t.Helper()
	if n, err := b.host.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		b.t.Errorf("host reads %d bytes, %v, want the end", n, err)
	}
}

func TestHandshake(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		for _, tt := range []struct {
			name      string
			opt       []byte
			wantScale bool
		}{
			{"MSS and scale", synOptions, true},
			{"without scale", []byte{2, 4, 5, 0x78}, false},
			{"without options", nil, false},
			{"broken options", []byte{2, 0, 3, 3, 7, 0, 0, 0}, false},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newBed(t, fam)
				syn := seg{flags: frame.SYN, seq: guestISN, wnd: 64240, opt: tt.opt}
				b.offer(syn)
				b.serve()
				s := b.receive()
				mss := mtu - 40
				if fam.guest.Is6() {
					mss = mtu - 60
				}
				want := []byte{2, 4, byte(mss >> 8), byte(mss)}
				if tt.wantScale {
					want = append(want, 1, 3, 3, ourScale)
				}
				if s.flags != frame.SYN|frame.ACK || s.ack != guestISN+1 || !bytes.Equal(s.opt, want) || len(s.data) != 0 {
					t.Errorf("answer to SYN: %v, want options %x", s, want)
				}
				b.offer(syn) // ours was lost
				if r := b.receive(); r.flags != s.flags || r.seq != s.seq || r.ack != s.ack || !bytes.Equal(r.opt, want) {
					t.Errorf("answer to the same SYN: %v, want %v", r, s)
				}
			})
		}
	})
}

func TestRefused(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.listen.Close()
		b.sendSYN()
		b.serve()
		if s := b.receive(); s.flags != frame.RST|frame.ACK || s.ack != guestISN+1 {
			t.Errorf("answer to SYN: %v, want a reset", s)
		}
		b.over()
	})
}

// TestFinBehindTheWindow: the guest sends more than its window, with a FIN at the end. The end is
// not where the window is.
func TestFinBehindTheWindow(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	start := b.snd
	b.send(seg{data: data(0, 60000)}, seg{data: data(60000, 10000), flags: frame.FIN})
	if got := b.read(65535); !bytes.Equal(got, data(0, 65535)) {
		t.Error("host gets other bytes")
	}
	s := b.until("acknowledgement", func(s seg) bool { return s.ack != start })
	if s.ack != start+65535 {
		t.Fatalf("%v, want an acknowledgement of %d", s, start+65535)
	}
	b.snd = s.ack
	b.send(seg{data: data(65535, 4465), flags: frame.FIN})
	if got := b.read(4465); !bytes.Equal(got, data(65535, 4465)) {
		t.Error("host gets other bytes")
	}
	b.eof()
}

// TestFinWithKnownData: all that is new in a segment is its FIN.
func TestFinWithKnownData(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	start := b.snd
	b.send(seg{data: data(0, 100)})
	b.acked()
	b.snd = start
	b.send(seg{data: data(0, 100), flags: frame.FIN})
	if got := b.read(100); !bytes.Equal(got, data(0, 100)) {
		t.Error("host gets other bytes")
	}
	b.eof()
	b.acked()
}

func TestSegmentsOutOfPlace(t *testing.T) {
	for _, tt := range []struct {
		name string
		segs func(next uint32) []seg
		want int // bytes of the stream that arrive
	}{
		{"in order", func(n uint32) []seg { return []seg{{seq: n, data: data(0, 10)}, {seq: n + 10, data: data(10, 10)}} }, 20},
		{"twice", func(n uint32) []seg { return []seg{{seq: n, data: data(0, 10)}, {seq: n, data: data(0, 10)}} }, 10},
		{"overlap", func(n uint32) []seg { return []seg{{seq: n, data: data(0, 10)}, {seq: n + 5, data: data(5, 20)}} }, 25},
		{"overlap at the left", func(n uint32) []seg {
			return []seg{{seq: n, data: data(0, 10)}, {seq: n - 1, data: append([]byte{0xee}, data(0, 20)...)}}
		}, 20},
		{"gap", func(n uint32) []seg { return []seg{{seq: n, data: data(0, 10)}, {seq: n + 11, data: data(11, 20)}} }, 10},
		{"far in the future", func(n uint32) []seg {
			return []seg{{seq: n, data: data(0, 10)}, {seq: n + 1<<30, data: data(11, 20)}, {seq: n + 1<<31, data: data(1, 9)}}
		}, 10},
		{"without ACK", func(n uint32) []seg { return []seg{{seq: n, data: data(0, 10), flags: frame.URG}} }, 0},
		{"FIN behind a gap", func(n uint32) []seg {
			return []seg{{seq: n, data: data(0, 10)}, {seq: n + 15, data: data(15, 5), flags: frame.FIN}, {seq: n + 11, flags: frame.FIN}}
		}, 10},
		{"FIN before the end", func(n uint32) []seg {
			return []seg{{seq: n, data: data(0, 10)}, {seq: n, data: data(0, 5), flags: frame.FIN}, {seq: n + 9, flags: frame.FIN}}
		}, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.serve)
			segs := tt.segs(b.snd)
			for i := range segs {
				if segs[i].flags&frame.URG == 0 {
					segs[i].flags |= frame.ACK
				}
				segs[i].ack, segs[i].wnd = b.rcv, b.wnd
			}
			b.offer(segs...)
			// What follows arrives behind it, and nothing else in between.
			b.snd += uint32(tt.want)
			b.send(seg{data: data(tt.want, 50), flags: frame.FIN})
			if got := b.read(tt.want + 50); !bytes.Equal(got, data(0, tt.want+50)) {
				t.Errorf("host gets %x, want %x", got, data(0, tt.want+50))
			}
			b.eof()
		})
	}
}

// TestGapIsToldAtOnce: each segment behind a gap has an acknowledgement of its own (RFC 5681, 3.2).
func TestGapIsToldAtOnce(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	b.snd += 100
	b.send(seg{data: data(100, 10)}, seg{data: data(110, 10)}, seg{data: data(120, 10)})
	for range 3 {
		b.until("acknowledgement", func(s seg) bool { return s.ack == guestISN+1 })
	}
}

func TestGuestResets(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		t.Run("exactly", func(t *testing.T) {
			b := newBed(t, fam)
			b.establish(b.serve)
			b.offer(seg{flags: frame.RST, seq: b.snd})
			b.over()
			if _, err := b.host.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("host reads %v, want a reset", err)
			}
		})
		t.Run("behind data", func(t *testing.T) {
			// In one run and in the next: what the peer has received it can read.
			b := newBed(t, fam)
			b.establish(b.play)
			b.send(seg{data: data(0, 1000)})
			b.send(seg{data: data(1000, 500)}, seg{data: data(1500, 500)})
			b.offer(seg{flags: frame.ACK, seq: b.snd, ack: b.rcv, wnd: b.wnd, data: data(2000, 100)}, seg{flags: frame.RST, seq: b.snd + 100})
			b.turn()
			if !b.c.over || !b.c.reset {
				t.Errorf("over %v, with a reset %v", b.c.over, b.c.reset)
			}
			if got := b.read(2100); !bytes.Equal(got, data(0, 2100)) {
				t.Error("host gets other bytes")
			}
		})
		t.Run("somewhere in the window", func(t *testing.T) {
			b := newBed(t, fam)
			b.establish(b.serve)
			b.offer(seg{flags: frame.RST, seq: b.snd + 5})
			b.until("challenge (RFC 5961)", func(s seg) bool { return s.flags == frame.ACK && s.ack == b.snd })
			b.offer(seg{flags: frame.RST, seq: b.snd - 5}, seg{flags: frame.RST, seq: b.snd + 1<<30})
			b.send(seg{data: data(0, 10)})
			b.read(10)
		})
		t.Run("while it connects", func(t *testing.T) {
			b := newBed(t, fam)
			b.sendSYN()
			b.serve()
			b.offer(seg{flags: frame.RST, seq: guestISN + 1})
			b.over()
		})
		t.Run("after its end", func(t *testing.T) {
			// What it has sent before arrives, however slow the peer.
			b := newBed(t, fam)
			b.host = nil
			b.establish(b.serve)
			n := 0
			for range 40 {
				b.send(seg{data: data(n, 40000)})
				n += 40000
				b.acked()
			}
			b.send(seg{flags: frame.FIN})
			for range finRepeats { // it gets impatient
				b.snd--
				b.send(seg{flags: frame.FIN})
			}
			b.acked()
			b.offer(seg{flags: frame.RST, seq: b.snd})
			b.over()
			if got := b.read(n); !bytes.Equal(got, data(0, n)) {
				t.Error("host gets other bytes")
			}
			b.eof()
		})
	})
}

func TestHostResets(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.establish(b.serve)
		b.host.SetLinger(0)
		b.host.Close()
		s := b.until("reset", func(s seg) bool { return s.flags&frame.RST != 0 })
		if s.seq != b.rcv || s.flags != frame.RST|frame.ACK {
			t.Errorf("%v, want sequence number %d", s, b.rcv)
		}
		b.over()
	})
}

// TestEnd: both orders of the two directions' ends, and no FIN acknowledged before the peer has.
func TestEnd(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		t.Run("guest first", func(t *testing.T) {
			b := newBed(t, fam)
			b.establish(b.serve)
			b.send(seg{data: data(0, 10), flags: frame.FIN})
			b.read(10)
			b.eof()
			b.acked()
			b.host.Write(data(0, 20))
			s := b.until("data", func(s seg) bool { return len(s.data) > 0 })
			if !bytes.Equal(s.data, data(0, 20)) {
				t.Errorf("guest gets %x", s.data)
			}
			b.rcv += 20
			b.send(seg{})
			b.host.Close()
			b.until("FIN", func(s seg) bool { return s.flags&frame.FIN != 0 && s.seq == b.rcv })
			b.rcv++
			b.send(seg{})
			b.over()
		})
		t.Run("host first", func(t *testing.T) {
			b := newBed(t, fam)
			b.establish(b.serve)
			b.host.Write(data(0, 20))
			b.host.CloseWrite()
			b.until("FIN", func(s seg) bool { return s.flags&frame.FIN != 0 })
			b.rcv += 21
			b.send(seg{data: data(0, 10)})
			b.acked()
			b.send(seg{flags: frame.FIN})
			b.read(10)
			b.eof()
			b.over()
		})
	})
}

// TestRetransmission plays the clock: data is sent again after 400 ms, then after twice that, and
// when the guest does not answer at all it is given up.
func TestRetransmission(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.establish(b.play)
		b.host.Write(data(0, 100))
		b.wantData(data(0, 100))
		at := flow.Now()
		for i := range maxRetries {
			if b.c.rtoAt <= at || b.c.rtoAt > at+rtoMin<<i+flow.Time(time.Second) {
				t.Fatalf("retransmission %d in %v", i, time.Duration(b.c.rtoAt-at))
			}
			b.c.onTime(b.c.rtoAt - 1)
			b.quiet()
			at = b.c.rtoAt
			b.c.onTime(at)
			b.wantData(data(0, 100))
		}
		b.c.onTime(b.c.rtoAt)
		if s := b.receive(); s.flags&frame.RST == 0 || !b.c.over || !b.c.reset {
			t.Errorf("after %d retransmissions: %v", maxRetries, s)
		}
	})
}

// wantData lets the played actor look at its socket, until that has given all of want.
func (b *bed) wantData(want []byte) {
	b.t.Helper()
	for len(want) > 0 {
		for end := time.Now().Add(patience); ; {
			b.c.fromHost()
			n, _ := b.link.TryRead(b.buf)
			if n == 0 {
				if time.Now().After(end) {
					b.t.Fatal("guest gets nothing")
				}
				continue
			}
			s, err := b.decode(b.buf[:n])
			if err != nil || !bytes.HasPrefix(want, s.data) {
				b.t.Fatalf("guest gets %v, %v", s, err)
			}
			want = want[len(s.data):]
			break
		}
	}
}

// TestFastRetransmit: three repeated acknowledgements bring the first segment again, and only that.
func TestFastRetransmit(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	all := data(0, 10*guestMSS)
	b.host.Write(all)
	b.wantData(all)
	for range 2 {
		b.send(seg{})
		b.turn()
	}
	b.quiet()
	b.send(seg{}, seg{}, seg{}, seg{})
	b.turn()
	if s := b.receive(); s.seq != b.rcv || !bytes.Equal(s.data, all[:guestMSS]) {
		t.Errorf("guest gets %v", s)
	}
	b.quiet()
	// An acknowledgement up to another hole shows the next one (RFC 6582).
	b.rcv += 4 * guestMSS
	b.send(seg{})
	b.turn()
	if s := b.receive(); s.seq != b.rcv || !bytes.Equal(s.data, all[4*guestMSS:5*guestMSS]) {
		t.Errorf("guest gets %v", s)
	}
	b.rcv += 6 * guestMSS
	b.send(seg{})
	b.turn()
	if b.c.rtoAt != 0 || b.c.recovering {
		t.Error("recovery goes on when all was acknowledged")
	}
}

// TestClosedWindow: nothing is sent into it, it is asked for, and the guest is never given up while
// it answers.
func TestClosedWindow(t *testing.T) {
	b := newBed(t, families[0])
	b.wnd = 0
	b.establish(b.play)
	b.send(seg{})
	b.turn()
	b.host.Write(data(0, 100))
	b.c.fromHost()
	for i := range 3 * maxRetries {
		if b.c.rtoAt == 0 {
			t.Fatal("no probe is due")
		}
		b.c.onTime(b.c.rtoAt)
		if b.c.over {
			t.Fatalf("given up at probe %d", i)
		}
		if s := b.until("probe", func(s seg) bool { return s.seq == b.rcv-1 }); len(s.data) > 0 {
			t.Errorf("%v into a closed window", s)
		}
		b.send(seg{})
		b.turn()
	}
	b.wnd = 4096
	b.send(seg{})
	b.turn()
	b.wantData(data(0, 100))
}

func TestKeepAlive(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.c.fromHost()
	now := b.c.seenAt + keepAlive
	b.c.onTime(now - 1)
	b.quiet()
	for range 3 {
		b.c.onTime(now)
		if s := b.receive(); s.seq != b.rcv-1 || s.flags != frame.ACK || len(s.data) != 0 {
			t.Errorf("probe %v", s)
		}
		b.c.onTime(now + 1)
		b.quiet()
		now += keepAlive
	}
	b.c.onTime(b.c.liveAt + inactivity)
	if s := b.receive(); s.flags&frame.RST == 0 || !b.c.over {
		t.Errorf("after two hours: %v", s)
	}
}

// TestGuestKeepAlive: it is answered, and the host's kernel asks the peer from then on.
func TestGuestKeepAlive(t *testing.T) {
	for _, tt := range []struct {
		name string
		data []byte
	}{{"without data", nil}, {"one byte", []byte{0}}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			b.c.fromHost()
			b.snd--
			b.send(seg{data: tt.data})
			b.turn()
			b.c.fromHost()
			if s := b.receive(); s.ack != guestISN+1 || s.seq != b.rcv {
				t.Errorf("answer %v", s)
			}
			if v, err := unix.GetsockoptInt(b.c.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); v != 1 || err != nil {
				t.Errorf("SO_KEEPALIVE is %d, %v", v, err)
			}
		})
	}
}

// TestActorSleeps: no state has the actor woken by an alarm that does nothing.
func TestActorSleeps(t *testing.T) {
	minute := flow.Time(time.Minute)
	for _, tt := range []struct {
		name string
		set  func(*conn)
	}{
		{"connecting for a minute", func(c *conn) { c.state, c.rtoAt = connecting, 0 }},
		{"guest silent, retransmission far away", func(c *conn) { c.rtoAt = flow.Now() + minute }},
		{"established", func(c *conn) { c.onTime(flow.Now()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			b.c.rtoAt = 0
			b.c.seenAt = flow.Now() - minute
			b.c.liveAt = b.c.seenAt
			tt.set(b.c)
			for b.port.Alarmed() { // left over
				b.port.AlarmDone()
			}
			b.c.setAlarm()
			b.port.Wait(false, 50*time.Millisecond)
			b.port.Wait(false, 50*time.Millisecond)
			if b.port.Alarmed() {
				t.Error("the alarm goes off at once")
			}
		})
	}
}

// TestAckWhileOthersAreInRhythm: an acknowledgement is not kept back because another flow waits for
// an answer.
func TestAckWhileOthersAreInRhythm(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	other := flow.NewPort(flow.Key{})
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			b.env.Spinner.Message(other, flow.FromGuest, 1)
			b.env.Spinner.Message(other, flow.FromHost, 1)
		}
	}()
	for i := range 200 {
		b.send(seg{data: data(i*5000, 5000)})
		b.acked()
		b.read(5000)
	}
	stop.Store(true)
	<-done
}

// TestRefuse is what happens to segments without a connection (RFC 9293, 3.10.7.1).
func TestRefuse(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   seg
		want seg
	}{
		{"RST", seg{flags: frame.RST, seq: 5}, seg{}},
		{"ACK", seg{flags: frame.ACK, seq: 5, ack: 7, data: data(0, 3)}, seg{flags: frame.RST, seq: 7}},
		{"SYN,ACK", seg{flags: frame.SYN | frame.ACK, seq: 5, ack: 7}, seg{flags: frame.RST, seq: 7}},
		{"data without ACK", seg{seq: 5, data: data(0, 3)}, seg{flags: frame.RST | frame.ACK, ack: 8}},
		{"FIN without ACK", seg{flags: frame.FIN, seq: 5}, seg{flags: frame.RST | frame.ACK, ack: 6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				b := newBed(t, fam)
				f := b.frameOf(tt.in)
				var p, q frame.Packet
				if fam.loopback.Is6() {
					f[ipAt+1], f[ipAt+2], f[ipAt+3] = 0x0a, 0xbc, 0xde // a flow label
				}
				if why := frame.Parse(f, &p); why != frame.OK {
					t.Fatal(why)
				}
				out := make([]byte, frame.MaxFrame)
				n := Refuse(b.env, f, &p, out)
				if tt.want.flags == 0 {
					if n != 0 {
						t.Errorf("answer of %d bytes", n)
					}
					return
				}
				s, err := b.decode(out[:n])
				if err != nil {
					t.Fatal(err)
				}
				if frame.Parse(out[:n], &q); q.FlowLabel != p.FlowLabel || p.V6 && p.FlowLabel != 0xabcde {
					t.Errorf("flow label %#x, answered with %#x", p.FlowLabel, q.FlowLabel)
				}
				if s.String() != tt.want.String() {
					t.Errorf("%v, want %v", s, tt.want)
				}
			})
		})
	}
}

// TestLongestFrame: a guest that takes segments as long as there can be gets none the link refuses.
func TestLongestFrame(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.offer(seg{flags: frame.SYN, seq: guestISN, wnd: 65535, opt: []byte{2, 4, 0xff, 0xff, 1, 3, 3, 14}})
		b.play()
		s := b.receive()
		b.rcv, b.snd, b.wnd = s.seq+1, guestISN+1, 65535
		b.send(seg{})
		b.turn()
		h, err := b.listen.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		b.host = h
		unix.SetsockoptInt(b.c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		want := data(0, 200000)
		go h.Write(want)
		for end := time.Now().Add(patience); ; {
			// More than fits one frame.
			if n, err := unix.IoctlGetInt(b.c.fd, unix.SIOCINQ); err != nil || time.Now().After(end) {
				t.Fatalf("%d bytes wait in the socket, %v", n, err)
			} else if n > 1<<16 {
				break
			}
		}
		got := 0
		for end := time.Now().Add(patience); got < len(want); {
			b.c.fromHost()
			n, _ := b.link.TryRead(b.buf)
			if n == 0 {
				if time.Now().After(end) {
					t.Fatalf("%d bytes; %d frames refused", got, b.env.Counters.LinkDropped.Load())
				}
				continue
			}
			var p frame.Packet
			if why := frame.Parse(b.buf[:n], &p); why != frame.OK {
				t.Fatal(why)
			}
			d := b.buf[p.Payload:p.End]
			if !bytes.HasPrefix(want[got:], d) {
				t.Fatalf("other bytes at %d", got)
			}
			got += len(d)
			b.rcv += uint32(len(d))
			b.send(seg{})
			b.turn()
		}
		if n := b.env.Counters.LinkDropped.Load(); n != 0 {
			t.Errorf("%d frames were refused", n)
		}
	})
}

// TestLateSegments is what happens to segments of a connection that has ended: a guest that did not
// get our last acknowledgement gets it again, and no reset.
func TestLateSegments(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.establish(b.serve)
		b.send(seg{data: data(0, 10), flags: frame.FIN})
		b.read(10)
		b.eof()
		b.acked()
		b.host.Close()
		b.until("FIN", func(s seg) bool { return s.flags&frame.FIN != 0 })
		b.rcv++
		b.send(seg{})
		b.over()
		end := b.snd
		for _, tt := range []struct {
			name string
			in   seg
			want seg
		}{
			{"the end", seg{flags: frame.ACK | frame.FIN, seq: end - 1}, seg{flags: frame.ACK, seq: b.rcv, ack: end, wnd: 65535}},
			{"data and the end", seg{flags: frame.ACK | frame.FIN, seq: end - 11, data: data(0, 10)},
				seg{flags: frame.ACK, seq: b.rcv, ack: end, wnd: 65535}},
			{"data", seg{flags: frame.ACK, seq: end - 11, data: data(0, 10)}, seg{flags: frame.ACK, seq: b.rcv, ack: end, wnd: 65535}},
			{"acknowledgement", seg{flags: frame.ACK, seq: end}, seg{}},
			{"RST", seg{flags: frame.RST | frame.ACK, seq: end}, seg{}},
			{"something new", seg{flags: frame.ACK, seq: end, data: data(0, 1)}, seg{flags: frame.RST, seq: b.rcv}},
			{"from another time", seg{flags: frame.ACK, seq: end + 1<<30}, seg{flags: frame.RST, seq: b.rcv}},
			{"SYN,ACK", seg{flags: frame.SYN | frame.ACK, seq: end - 1}, seg{flags: frame.RST, seq: b.rcv}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				tt.in.ack = b.rcv
				f := b.frameOf(tt.in)
				var p frame.Packet
				if why := frame.Parse(f, &p); why != frame.OK {
					t.Fatal(why)
				}
				out := make([]byte, frame.MaxFrame)
				n := Refuse(b.env, f, &p, out)
				if tt.want.flags == 0 || n == 0 {
					if n != 0 || tt.want.flags != 0 {
						t.Errorf("answer of %d bytes, want %v", n, tt.want)
					}
					return
				}
				s, err := b.decode(out[:n])
				if err != nil {
					t.Fatal(err)
				}
				if s.String() != tt.want.String() {
					t.Errorf("%v, want %v", s, tt.want)
				}
			})
		}
	})
}

func TestDialFails(t *testing.T) {
	b := newBed(t, families[0])
	b.sendSYN()
	b.done = make(chan struct{})
	go func() {
		defer close(b.done)
		Serve(b.env, b.port, badDialer{}, b.listen.Addr().(*net.TCPAddr).AddrPort())
	}()
	if s := b.receive(); s.flags != frame.RST|frame.ACK || s.ack != guestISN+1 {
		t.Errorf("answer to SYN: %v, want a reset", s)
	}
	b.over()
	if b.port.Gone() == false {
		t.Error("port is open")
	}
}
