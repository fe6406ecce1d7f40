package icmp

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/internal/leaktest"
	"fusilli/tapio/frame"
)

// FuzzFlow has a guest ask anything of a flow that runs, and the host answer anything: four bytes each, for
// what is done, a type or how often, a sequence number and a length. Each request leaves once, in this order,
// with what the guest has put in; a reply to the guest was a reply before, and is not repeated.
func FuzzFlow(f *testing.F) {
	for _, ops := range [][]byte{
		{},
		{0, 0, 1, 10, 1, 0, 0, 0},
		{0, 0, 1, 10, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 10, 1, 0, 0, 0},
		{0, 0, 1, 255, 1, 3, 0, 0, 1, 8, 0, 0, 2, 0, 0, 3, 2, 129, 1, 200},
		{0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0, 2, 0},
		{1},
		{0, 0, 1, 10, 1, 129, 0, 0, 1, 128, 0, 0, 2, 129, 7, 7, 1},
	} {
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		leaktest.NothingLeft(t, patience)
		fam := families[len(ops)%4&1]
		k := newKernel(t)
		b := newBed(t, fam, k, zap.NewNop())
		var asked [][]byte   // what has left, as the host sees it
		var answers [][]byte // sequence number and data of what may still arrive
		answer := func(msg []byte) {
			if unix.Send(k.other, msg, unix.MSG_DONTWAIT) == nil && len(msg) >= frame.ICMPLen && msg[0] == fam.reply && msg[1] == 0 {
				answers = append(answers, bytes.Clone(msg[6:]))
			}
		}
		ask := func(seq uint16, data []byte) {
			msg := bytes.Clone(b.request(seq, data))
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
			op, a, s, l := ops[0]%3, ops[1], ops[2], int(ops[3])
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
			}
		}
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
			time.Sleep(50 * time.Microsecond)
		}
	})
}
