package tapio

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// prefixed is b as a stream has it.
func prefixed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// FuzzCutter cuts any bytes, in pieces of any size, and compares with what cutting all of them at
// once by hand gives.
func FuzzCutter(f *testing.F) {
	f.Add(bytes.Join([][]byte{prefixed(pattern(14)), prefixed(pattern(65535)), prefixed(pattern(60))}, nil), uint16(1))
	f.Add(prefixed(pattern(13)), uint16(3))
	f.Add([]byte{0, 1, 0, 0}, uint16(2))
	f.Add([]byte{0, 0, 0, 14, 1}, uint16(7))
	f.Fuzz(func(t *testing.T, in []byte, piece uint16) {
		var want [][]byte
		bad := false
		for rest := in; len(rest) >= 4; {
			n := int(binary.BigEndian.Uint32(rest))
			if bad = n < 14 || n > 65535; bad || len(rest) < 4+n {
				break
			}
			want = append(want, rest[4:4+n])
			rest = rest[4+n:]
		}
		c := new(cutter)
		got := 0
		for rest := in; ; {
			for {
				b, err := c.next()
				if err != nil {
					if !bad || got != len(want) {
						t.Fatalf("frame %d of %d: %v", got, len(want), err)
					}
					return
				}
				if b == nil {
					break
				}
				if got == len(want) || !bytes.Equal(b, want[got]) {
					t.Fatalf("frame %d of %d differs", got, len(want))
				}
				got++
			}
			if len(rest) == 0 {
				break
			}
			room := c.room()
			if len(room) == 0 {
				t.Fatal("no room")
			}
			n := copy(room, rest[:min(len(rest), int(piece)+1)])
			c.add(n)
			rest = rest[n:]
		}
		if bad || got != len(want) {
			t.Fatalf("%d frames of %d, bad length %v not found", got, len(want), bad)
		}
	})
}

// TestCutterLongRun keeps the buffer full over many of its lengths.
func TestCutterLongRun(t *testing.T) {
	var in []byte
	for i := range 400 {
		in = append(in, prefixed(pattern(minStream+i*163%(maxStream-minStream)))...)
	}
	in = append(in, prefixed(pattern(maxStream))...)
	c, frames := new(cutter), 0
	for rest := in; ; {
		b, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		if b != nil {
			if !bytes.Equal(b, pattern(len(b))) {
				t.Fatalf("frame %d differs", frames)
			}
			frames++
			continue
		}
		if len(rest) == 0 {
			break
		}
		n := copy(c.room(), rest)
		c.add(n)
		rest = rest[n:]
	}
	if frames != 401 {
		t.Errorf("%d frames", frames)
	}
}
