package udp

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sizesOf turns fuzz input into the sizes of datagrams: up to 48, and 128 KiB in all.
func sizesOf(b []byte) []int {
	var sizes []int
	sum := 0
	for len(b) >= 2 && len(sizes) < 48 {
		n := int(binary.BigEndian.Uint16(b)) % maxRow
		if b[0]&0x80 != 0 { // a row
			for range b[0] & 15 {
				sizes = append(sizes, int(b[1])*6)
				sum += int(b[1]) * 6
			}
		} else {
			sizes = append(sizes, n)
			sum += n
		}
		if sum > 128<<10 {
			break
		}
		b = b[2:]
	}
	return sizes
}

func seed(f *testing.F) {
	for _, b := range [][]byte{
		nil, {0, 0}, {0, 1, 0, 1, 0, 1}, {5, 0x78, 5, 0x78, 0, 9}, {0x8f, 233, 0, 9, 0x8f, 233},
		{0x8f, 1, 0x8f, 0, 0x7f, 0xff, 0, 0}, {0x84, 10, 0x00, 40, 0x84, 11, 0x85, 10},
	} {
		f.Add(b)
	}
}

func FuzzFromGuest(f *testing.F) {
	seed(f)
	p := newPeer(f, families[0])
	b, c := openConn(f, families[0], p)
	buf := make([]byte, 65536)
	p.Read(buf)
	f.Fuzz(func(t *testing.T, in []byte) {
		b.t = t
		all := datagrams(sizesOf(in))
		if len(all) == 0 {
			return
		}
		var frames [][]byte
		for i := 0; i < len(all); i++ {
			// Rows the guest has made itself, here and there.
			n := 1
			for i+n < len(all) && len(all[i]) > 0 && len(all[i+n]) == len(all[i]) && n*len(all[i]) < 30000 && i%3 == 0 {
				n++
			}
			if n > 1 {
				frames = append(frames, b.frameOf(bytes.Join(all[i:i+n], nil), len(all[i])))
				i += n - 1
				continue
			}
			frames = append(frames, b.frameOf(all[i], 0))
		}
		b.offer(frames...)
		for b.port.Mail() {
			c.fromGuest()
		}
		p.SetDeadline(time.Now().Add(patience))
		expect(t, p, all)
	})
}

func FuzzFromHost(f *testing.F) {
	seed(f)
	p := newPeer(f, families[0])
	b, c := openConn(f, families[0], p)
	from := expect(f, p, [][]byte{[]byte("hello")})
	unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bulkBuffer)
	c.fromHost()
	f.Fuzz(func(t *testing.T, in []byte) {
		b.t = t
		all := datagrams(sizesOf(in))
		p.SetDeadline(time.Now().Add(patience))
		for i, d := range all {
			p.WriteToUDPAddrPort(d, from)
			if i%16 == 15 || i == len(all)-1 || len(d) > 30000 {
				c.fromHost()
			}
		}
		got, _ := b.collect(len(all))
		if len(got) != len(all) {
			t.Fatalf("%d datagrams, want %d", len(got), len(all))
		}
		for i := range all {
			if !bytes.Equal(got[i], all[i]) {
				t.Fatalf("datagram %d: %d bytes, want %d", i, len(got[i]), len(all[i]))
			}
		}
	})
}
