package icmp

import (
	"bytes"
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// FuzzFlow has a guest ask anything of a flow, the host answer anything, and the link lose frames:
// four bytes each, for what is done, a type or how often, a sequence number and a length. Each
// request leaves once, in this order, with what the guest has put in; a reply to the guest was a
// reply before, and is not repeated. The actor is called, not run: all happens in one goroutine.
func FuzzFlow(f *testing.F) {
	for _, ops := range [][]byte{
		{},
		{0, 0, 1, 10, 1, 0, 0, 0},
		{0, 0, 1, 10, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 10, 1, 0, 0, 0},
		{0, 0, 1, 255, 1, 3, 0, 0, 1, 8, 0, 0, 2, 0, 0, 3, 2, 129, 1, 200},
		{0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0, 2, 0},
		{1},
		{0, 0, 1, 10, 1, 129, 0, 0, 1, 128, 0, 0, 2, 129, 7, 7, 1},
		{0, 0, 1, 10, 3, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1, 10, 1, 0, 0, 0},
	} {
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		fam := families[len(ops)%4&1]
		k := newKernel(t)
		b := newPlayed(t, fam, k)
		var asked [][]byte   // what has left, as the host sees it
		var answers [][]byte // sequence number and data of what may still arrive
		answer := func(msg []byte) {
			if unix.Send(k.other, msg, unix.MSG_DONTWAIT) == nil && len(msg) >= frame.ICMPLen && msg[0] == fam.reply && msg[1] == 0 {
				answers = append(answers, bytes.Clone(msg[6:]))
			}
			b.pump()
		}
		ask := func(seq uint16, data []byte) {
			msg := bytes.Clone(b.request(seq, data))
			b.pump()
			got := k.request(t)
			if !bytes.Equal(got, msg) {
				t.Fatalf("request of %d bytes left as %d others", len(msg), len(got))
			}
			asked = append(asked, got)
		}
		var last []byte
		see := func() {
			for {
				var f []byte
				select {
				case f = <-b.frames:
				default:
					return
				}
				seq, data := b.replyIn(f)
				is := append(binary.BigEndian.AppendUint16(nil, seq), data...)
				i := 0
				for i < len(answers) && !bytes.Equal(answers[i], is) {
					i++
				}
				if i == len(answers) {
					t.Fatalf("reply %d with %d bytes was not sent, or before", seq, len(data))
				}
				answers, last = answers[i+1:], is
			}
		}
		ask(9, []byte("first"))
		for n := 0; len(ops) >= 4 && n < 60; n++ {
			see()
			op, a, s, l := ops[0]%5, ops[1], ops[2], int(ops[3])
			ops = ops[4:]
			switch op {
			case 0:
				ask(uint16(s), make([]byte, l*l)[:min(l*l, 60000)])
			case 1: // an answer to a request of those before, of any type
				msg := bytes.Clone(asked[len(asked)-1-int(s)%len(asked)])
				msg[4], msg[5] = 0xbb, 0xbb
				msg[0] = fam.reply
				if a&1 != 0 {
					msg[0] = a
				}
				msg[1] = a >> 6
				answer(msg[:max(1, len(msg)-l%16)])
			case 2: // one that nobody has asked for
				msg := make([]byte, l)
				if l > 0 {
					msg[0] = a
				}
				answer(msg)
			case 3:
				b.drop = int(a % 4)
			case 4: // nothing happens for a while, if not for so long that the flow ends
				b.port.SetAlarm(flow.Now())
				b.pump()
			}
		}
		b.drop = 0
		// One more, behind everything else. A number that was answered last would be dropped.
		seq := uint16(1000)
		ask(seq, []byte("last"))
		msg := bytes.Clone(asked[len(asked)-1])
		msg[0] = fam.reply
		want := append([]byte{3, 0xe8}, "last"...)
		for end := time.Now().Add(patience); !bytes.Equal(last, want); see() {
			if time.Now().After(end) {
				t.Fatal("no reply any more")
			}
			if unix.Send(k.other, msg, unix.MSG_DONTWAIT) == nil {
				answers = append(answers, want)
			}
			b.pump()
		}
	})
}

// played is a bed whose actor is called, and whose link hands frames over in the call or drops
// them.
type played struct {
	*bed
	c    *conn
	drop int
}

var playedEnv = sync.OnceValue(func() *flow.Env {
	e := &flow.Env{Log: zap.NewNop(), OurMAC: ourMAC, MTU: 1500}
	e.SetGuestMAC(guestMAC)
	return e
})

var playedPool = sync.OnceValue(func() *flow.Pool { return flow.NewPool(16) })

func newPlayed(t *testing.T, fam family, dialer Dialer) *played {
	proto := uint16(frame.ProtoICMP)
	if fam.request == 128 {
		proto = frame.ProtoICMPv6
	}
	b := &played{bed: &bed{t: t, fam: fam, pool: playedPool(), frames: make(chan []byte, 4096), env: playedEnv(),
		port: flow.NewPort(flow.Key{Guest: frame.AddrOf(fam.guest), Remote: frame.AddrOf(fam.remote), GuestPort: ident, Proto: proto})}}
	b.env.Link = b
	b.c = newConn(b.env, b.port, fam.loopback)
	if !b.c.open(dialer) {
		t.Fatal("flow does not open")
	}
	t.Cleanup(func() {
		b.port.Close()
		if n := b.pool.Out(); n != 0 {
			t.Errorf("%d slabs were not given back", n)
		}
	})
	return b
}

// pump has the actor do all there is to do.
func (b *played) pump() {
	for range 64 {
		if !b.c.step() {
			b.t.Fatal("the flow has ended")
		}
		if !b.c.fromHost() {
			return
		}
	}
}

func (b *played) Read([]byte) (int, error)    { return 0, os.ErrClosed }
func (b *played) TryRead([]byte) (int, error) { return 0, nil }
func (b *played) Close() error                { return nil }

func (b *played) Write(f []byte) error {
	if b.drop > 0 {
		b.drop--
		return tapio.ErrDropped
	}
	b.frames <- bytes.Clone(f)
	return nil
}
