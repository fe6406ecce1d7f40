package vhost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// packet is an Ethernet frame with n bytes behind its header, as Read returns it.
func packet(n int, seed byte) []byte {
	b := make([]byte, frame.L3Off+n)
	for i := range b[frame.VnetLen:] {
		b[frame.VnetLen+i] = byte(i)*31 + seed
	}
	return b
}

const bufBase = 1 << 20 // of buffers in the front end's memory

func TestFeaturesAreThoseOfPasst(t *testing.T) {
	_, f := dial(t, Options{Compat: true})
	if got := f.ask(getFeatures); got != 0x0000000144008002 {
		t.Errorf("features %#x", got)
	}
	if got := f.ask(getProtocolFeatures); got != 0xe {
		t.Errorf("protocol features %#x", got)
	}
	if got := f.ask(getQueueNum); got != 1 {
		t.Errorf("%d queue pairs", got)
	}
}

// What a frame's bytes are split into does not matter, nor which features are used.
func TestFramesFromTheGuest(t *testing.T) {
	for _, features := range []uint64{0, fMergeable | fGuestCsum, fEventIdx | fIndirect | fMergeable} {
		d, f := dial(t, Options{})
		f.connect()
		f.startDriver(features)
		tx := f.ring[txQueue]
		b := make([]byte, frame.MaxFrame)
		for round, cut := range [][]int{{}, {12}, {3, 12, 26}, {1, 2, 13, 14, 40}, {60}} {
			want := packet(46+1400*round, byte(round))
			m := f.mem[bufBase+round*65536:]
			clear(m[:headerBytes])
			n := headerBytes + copy(m[headerBytes:], want[frame.VnetLen:])
			var bufs []buf
			last := 0
			for _, c := range append(cut, n) {
				bufs = append(bufs, buf{bufBase + round*65536 + last, c - last, false})
				last = c
			}
			added := make(chan struct{})
			go func() {
				defer close(added)
				tx.add(bufs...)
				tx.ring()
			}()
			got, err := d.Read(b)
			<-added
			if err != nil || !bytes.Equal(b[:got], want) {
				t.Fatalf("features %#x, round %d: %d bytes, %v, want %d", features, round, got, err, len(want))
			}
			if n, err := d.TryRead(b); n != 0 || err != nil {
				t.Fatalf("features %#x, round %d: %d more bytes, %v", features, round, n, err)
			}
			if _, length := tx.take(); length != 0 {
				t.Errorf("features %#x, round %d: %d bytes written", features, round, length)
			}
		}
	}
}

// One super-frame is one chain, with its header.
func TestOffloads(t *testing.T) {
	d, f := dial(t, Options{})
	f.connect()
	all := uint64(allFeatures &^ (fLogAll | fProtocol))
	f.startDriver(all)
	tx, rx := f.ring[txQueue], f.ring[rxQueue]
	want := packet(60000, 1)
	frame.PutVnet(want, frame.Vnet{Flags: frame.NeedsCsum, GSOType: frame.GSOTCPv4, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16})
	m := f.mem[bufBase:]
	copy(m, []byte{1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0})
	copy(m[headerBytes:], want[frame.VnetLen:])
	tx.add(buf{bufBase, headerBytes + 60014, false})
	tx.ring()
	b := make([]byte, frame.MaxFrame)
	n, err := d.Read(b)
	if err != nil || !bytes.Equal(b[:n], want) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	rx.add(buf{bufBase + 1<<20, 65562, true})
	if err := d.Write(want); err != nil {
		t.Fatal(err)
	}
	_, length := rx.take()
	got := f.mem[bufBase+1<<20:][:length]
	if !bytes.Equal(got[:headerBytes], []byte{1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0}) || !bytes.Equal(got[headerBytes:], want[frame.VnetLen:]) {
		t.Errorf("%d bytes with header % x", length, got[:headerBytes])
	}
}

// Lengths and numbers of buffers are those that the specification shows.
func TestFramesToTheGuest(t *testing.T) {
	for _, tt := range []struct {
		name          string
		features      uint64
		n, size, want int // bytes of the frame, of a buffer; buffers
	}{
		{"short", fMergeable, 60, 2048, 1},
		{"padded", 0, 42, 1526, 1},
		{"256-byte buffers", fMergeable, 1442, 256, 6},
		{"2048-byte buffers", fMergeable, 60042, 2048, 30},
		{"exactly full", fMergeable, 256 - headerBytes, 256, 1},
		{"no mergeable buffers", 0, 1514, 1526, 1},
		{"too long for a buffer", 0, 3000, 1526, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, f := dial(t, Options{Compat: true})
			f.connect()
			f.startDriver(tt.features)
			rx := f.ring[rxQueue]
			for i := range 64 {
				off := bufBase + i*4096
				// Headers may be split anywhere.
				rx.add(buf{off, 5, true}, buf{off + 5, 30, true}, buf{off + 35, tt.size - 35, true})
			}
			b := packet(tt.n-frame.EthLen, 9)
			for range 3 * 64 { // what is not used is given back
				if err := d.Write(b); (err == nil) != (tt.want > 0) {
					t.Fatal(err)
				}
				if tt.want > 0 {
					break
				}
			}
			if tt.want == 0 {
				if err := d.Write(packet(100, 1)); err != nil {
					t.Fatalf("after frames that were too long: %v", err)
				}
				return
			}
			var got []byte
			count := 0
			for len(got) < headerBytes+max(60, tt.n) {
				head, length := rx.take()
				off := bufBase + head/3*4096
				got = append(got, f.mem[off:off+length]...)
				count++
			}
			if count != tt.want || int(binary.LittleEndian.Uint16(got[10:])) != tt.want {
				t.Errorf("%d buffers, number %d, want %d", count, binary.LittleEndian.Uint16(got[10:]), tt.want)
			}
			if !bytes.Equal(got[headerBytes:headerBytes+tt.n], b[frame.VnetLen:]) {
				t.Error("other bytes")
			}
		})
	}
}

// A receive ring without buffers costs nothing, and the guest's kick continues it.
func TestEmptyReceiveRing(t *testing.T) {
	for _, features := range []uint64{fMergeable, fMergeable | fEventIdx} {
		d, f := dial(t, Options{})
		room := make(chan struct{}, 10)
		d.OnRoom(func() {
			select {
			case room <- struct{}{}:
			default:
			}
		})
		f.connect()
		f.startDriver(features)
		go func() {
			b := make([]byte, frame.MaxFrame)
			for {
				if _, err := d.Read(b); err != nil {
					return
				}
			}
		}()
		<-room // the ring can be used
		rx := f.ring[rxQueue]
		if err := d.Write(packet(100, 1)); !errors.Is(err, tapio.ErrDropped) || !d.Full() {
			t.Fatalf("no buffers: %v, full %t", err, d.Full())
		}
		rx.add(buf{bufBase, 2048, true})
		if !rx.ring() {
			t.Fatal("the device does not want to know of new buffers")
		}
		select {
		case <-room:
		case <-time.After(patience):
			t.Fatal("the device has not noticed new buffers")
		}
		if err := d.Write(packet(100, 1)); err != nil {
			t.Fatal(err)
		}
		rx.take()
		d.Close()
	}
}

// The guest's driver stops and starts again, as at each boot.
func TestDriverStartsTwice(t *testing.T) {
	d, f := dial(t, Options{})
	f.connect()
	b := make([]byte, frame.MaxFrame)
	for round := range 3 {
		f.startDriver(fMergeable)
		tx, rx := f.ring[txQueue], f.ring[rxQueue]
		for i := range 10 {
			copy(f.mem[bufBase:], make([]byte, headerBytes))
			copy(f.mem[bufBase+headerBytes:], packet(100, byte(i))[frame.VnetLen:])
			tx.add(buf{bufBase, headerBytes + 114, false})
			tx.ring()
			if n, err := d.Read(b); err != nil || !bytes.Equal(b[:n], packet(100, byte(i))) {
				t.Fatal(n, err)
			}
			d.TryRead(b)
			tx.take()
			rx.add(buf{bufBase + 4096*i, 2048, true})
			if err := d.Write(packet(100, 7)); err != nil {
				t.Fatal(err)
			}
			rx.take()
		}
		for i := range f.ring {
			if err := f.send(getVringBase, 0, nil, uint32(i), 0); err != nil {
				t.Fatal(err)
			}
			p, err := f.reply(getVringBase)
			if err != nil || binary.NativeEndian.Uint32(p) != uint32(i) || binary.NativeEndian.Uint32(p[4:]) != 10 {
				t.Fatalf("round %d: base % x, %v", round, p, err)
			}
		}
		if err := d.Write(packet(100, 7)); !errors.Is(err, tapio.ErrDropped) {
			t.Errorf("a frame for a ring that has stopped: %v", err)
		}
	}
}

// Each message that is wrong ends the connection and leaves no descriptor behind.
func TestWrongMessages(t *testing.T) {
	region := words(guestBase, 8<<20, userBase, 0)
	for _, tt := range []struct {
		name    string
		request uint32
		fds     int
		words   []uint32
	}{
		{"unknown", 99, 1, nil},
		{"too many descriptors", setOwner, 1, nil},
		{"nine descriptors", setMemTable, 9, append([]uint32{1, 0}, region...)},
		{"short payload", setFeatures, 0, []uint32{1}},
		{"long payload", setOwner, 0, []uint32{1}},
		{"legacy", setFeatures, 0, words(fMergeable)},
		{"not offered", setFeatures, 0, words(fVersion1 | 1<<40)},
		{"table without descriptor", setMemTable, 0, append([]uint32{1, 0}, region...)},
		{"table of nine", setMemTable, 1, append([]uint32{9, 0}, region...)},
		{"table shorter than it says", setMemTable, 2, append([]uint32{2, 0}, region...)},
		{"region beyond its file", setMemTable, 1, append([]uint32{1, 0}, words(guestBase, 1<<40, userBase, 0)...)},
		{"region of no size", setMemTable, 1, append([]uint32{1, 0}, words(guestBase, 0, userBase, 0)...)},
		{"region that wraps", setMemTable, 1, append([]uint32{1, 0}, words(guestBase, 4096, userBase, ^uint64(0)-100)...)},
		{"ring 2", setVringNum, 0, []uint32{2, 256}},
		{"ring of 0", setVringNum, 0, []uint32{0, 0}},
		{"ring of 100", setVringNum, 0, []uint32{0, 100}},
		{"ring of 2048", setVringNum, 0, []uint32{0, 2048}},
		{"base of ring 7", getVringBase, 0, []uint32{7, 0}},
		{"addresses before the size", setVringAddr, 0, append([]uint32{0, 0}, words(userBase, userBase, userBase, 0)...)},
		{"addresses of ring 5", setVringAddr, 0, append([]uint32{5, 0}, words(userBase, userBase, userBase, 0)...)},
		{"kick of ring 9", setVringKick, 1, words(9)},
		{"kick without descriptor", setVringKick, 0, words(0)},
		{"no kick with descriptor", setVringKick, 1, words(noFD)},
		{"enabled by 2", setVringEnable, 0, []uint32{0, 2}},
		{"enable ring 2", setVringEnable, 0, []uint32{2, 1}},
		{"log without descriptor", setLogBase, 0, words(4096, 0)},
		{"log of no size", setLogBase, 1, words(0, 0)},
		{"log in the middle of a page", setLogBase, 1, words(4096, 100)},
		{"log beyond its file", setLogBase, 1, words(1<<30, 0)},
		{"region that is not there", remMemReg, 0, append(words(0), region...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := openFDs(t)
			d, f := dial(t, Options{})
			f.connect()
			have := openFDs(t)
			var fds []int
			for range tt.fds {
				fds = append(fds, f.memfd)
			}
			if err := f.send(tt.request, flagNeedReply, fds, tt.words...); err != nil {
				t.Fatal(err)
			}
			if _, err := f.reply(tt.request); !errors.Is(err, errClosed) {
				t.Errorf("the connection goes on: %v", err)
			}
			b := make([]byte, frame.MaxFrame)
			if _, err := d.Read(b); !errors.Is(err, tapio.ErrClientGone) {
				t.Errorf("the link: %v", err)
			}
			if d.Faults() != 1 {
				t.Errorf("%d faults", d.Faults())
			}
			d.Close()
			if now := openFDs(t); now >= have || now < before {
				t.Errorf("%d descriptors, %d before, %d while it was connected", now, before, have)
			}
		})
	}
}

// A guest that breaks the rules of a ring loses its connection, and nothing else happens.
func TestWrongRings(t *testing.T) {
	for name, wrong := range map[string]func(f *frontEnd, tx *driver){
		"loop": func(f *frontEnd, tx *driver) {
			tx.putDesc(0, buf{bufBase, 100, false}, 1)
			tx.putDesc(1, buf{bufBase, 100, false}, 0)
			tx.makeAvailable(0)
		},
		"outside memory": func(f *frontEnd, tx *driver) { tx.add(buf{1 << 30, 100, false}) },
		"beyond the end": func(f *frontEnd, tx *driver) { tx.add(buf{len(f.mem) - 10, 100, false}) },
		"empty":          func(f *frontEnd, tx *driver) { tx.add(buf{bufBase, 0, false}) },
		"wraps":          func(f *frontEnd, tx *driver) { tx.add(buf{-guestBase - 10, 100, false}) },
		"to be written":  func(f *frontEnd, tx *driver) { tx.add(buf{bufBase, 100, true}) },
		"head too large": func(f *frontEnd, tx *driver) { tx.makeAvailable(300) },
		"index too far": func(f *frontEnd, tx *driver) {
			tx.availIdx = 5000
			tx.makeAvailable(0)
		},
		"memory is cut off": func(f *frontEnd, tx *driver) {
			tx.add(buf{len(f.mem) - 100000, 1000, false})
			f.mem = f.mem[:4<<20]
			if err := ftruncate(f.memfd, 4<<20); err != nil {
				f.t.Fatal(err)
			}
		},
		"indirect in indirect": func(f *frontEnd, tx *driver) {
			binary.LittleEndian.PutUint64(f.mem[bufBase:], guestBase+bufBase)
			binary.LittleEndian.PutUint32(f.mem[bufBase+8:], 16)
			binary.LittleEndian.PutUint16(f.mem[bufBase+12:], descIndirect)
			tx.putDesc(0, buf{bufBase, 16, false}, -1)
			binary.LittleEndian.PutUint16(f.mem[tx.desc+12:], descIndirect)
			tx.makeAvailable(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, f := dial(t, Options{})
			f.connect()
			f.startDriver(fMergeable | fIndirect)
			wrong(f, f.ring[txQueue])
			ringFD(f.ring[txQueue].kick)
			b := make([]byte, frame.MaxFrame)
			if n, err := d.Read(b); !errors.Is(err, tapio.ErrClientGone) {
				t.Errorf("%d bytes, %v", n, err)
			}
			if d.Faults() != 1 {
				t.Errorf("%d faults", d.Faults())
			}
		})
	}
}
