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
// once by hand gives. Long frames are received where they are wanted if direct.
func FuzzCutter(f *testing.F) {
	f.Add(bytes.Join([][]byte{prefixed(pattern(14)), prefixed(pattern(65535)), prefixed(pattern(60))}, nil), uint16(1), false)
	f.Add(prefixed(pattern(13)), uint16(3), false)
	f.Add([]byte{0, 1, 0, 0}, uint16(2), true)
	f.Add([]byte{0, 0, 0, 14, 1}, uint16(7), true)
	for _, n := range []int{longFrame, longFrame + 1, longFrame - 1, 14} {
		f.Add(bytes.Join([][]byte{prefixed(pattern(longFrame)), prefixed(pattern(longFrame)), prefixed(pattern(n)), prefixed(pattern(longFrame))}, nil), uint16(65535), true)
		f.Add(bytes.Join([][]byte{prefixed(pattern(longFrame)), prefixed(pattern(n)), prefixed(pattern(n)), prefixed(pattern(20))}, nil), uint16(longFrame/3), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint16, direct bool) {
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
		c := new(deframer)
		got := 0
		check := func(b []byte) {
			t.Helper()
			if got == len(want) || !bytes.Equal(b, want[got]) {
				t.Fatalf("frame %d of %d differs", got, len(want))
			}
			got++
		}
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
				check(b)
			}
			if len(rest) == 0 {
				break
			}
			if n := c.lend(); direct && n > 0 {
				place := make([]byte, prefixLen+n)
				have, behind := c.move(place)
				came := rest[:min(len(rest), int(piece)+1)]
				n := copy(place[have:], came)
				n += copy(behind, came[n:])
				rest = rest[n:]
				if c.settle(place, have+n) {
					check(place[prefixLen:])
				}
				continue
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
	c, frames := new(deframer), 0
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
