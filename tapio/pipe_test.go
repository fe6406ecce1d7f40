package tapio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"fusilli/tapio/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	_ Link = (*End)(nil)
	_ Link = (*Tap)(nil)
	_ Link = (*queue)(nil)
)

func numbered(i int) []byte {
	b := make([]byte, frame.MinFrame)
	binary.BigEndian.PutUint32(b[frame.L3Off:], uint32(i))
	return b
}

func number(b []byte) int { return int(binary.BigEndian.Uint32(b[frame.L3Off:])) }

func TestPipe(t *testing.T) {
	a, b := Pipe(PipeOptions{Queue: 2})
	defer a.Close()
	defer b.Close()
	buf := make([]byte, frame.MaxFrame)
	if n, err := b.TryRead(buf); n != 0 || err != nil {
		t.Errorf("TryRead of nothing = %d, %v", n, err)
	}
	for i := range 2 {
		if err := a.Write(numbered(i)); err != nil {
			t.Error(err)
		}
	}
	if err := a.Write(numbered(2)); !errors.Is(err, ErrDropped) {
		t.Errorf("Write to a full pipe = %v", err)
	}
	if a.Dropped() != 1 || b.Dropped() != 0 {
		t.Errorf("dropped %d, %d", a.Dropped(), b.Dropped())
	}
	if n, err := b.Read(buf); err != nil || !bytes.Equal(buf[:n], numbered(0)) {
		t.Errorf("Read = % x, %v", buf[:n], err)
	}
	if n, err := b.TryRead(buf); err != nil || !bytes.Equal(buf[:n], numbered(1)) {
		t.Errorf("TryRead = % x, %v", buf[:n], err)
	}
	if err := a.Write(make([]byte, 5)); !errors.Is(err, ErrRefused) || !errors.Is(err, ErrDropped) {
		t.Errorf("Write of a short frame = %v", err)
	}
	if err := a.Write(make([]byte, frame.MaxFrame+1)); !errors.Is(err, ErrRefused) {
		t.Errorf("Write of a long frame = %v", err)
	}
}

func TestPipeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe(PipeOptions{})
		buf := make([]byte, frame.MaxFrame)
		got := make(chan error)
		go func() {
			_, err := a.Read(make([]byte, frame.MaxFrame))
			got <- err
		}()
		synctest.Wait() // the reader waits
		b.Write(numbered(0))
		if err := <-got; err != nil {
			t.Errorf("Read = %v", err)
		}
		go func() {
			_, err := a.Read(make([]byte, frame.MaxFrame))
			got <- err
		}()
		synctest.Wait()
		a.Write(numbered(1))
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := <-got; !errors.Is(err, os.ErrClosed) {
			t.Errorf("waiting Read = %v", err)
		}
		_, readErr := a.Read(buf)
		_, tryErr := a.TryRead(buf)
		for _, err := range []error{readErr, tryErr, a.Write(numbered(2)), a.Close()} {
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
		if n, err := b.Read(buf); n == 0 || err != nil {
			t.Errorf("Read of what was left = %d, %v", n, err)
		}
		_, readErr = b.Read(buf)
		_, tryErr = b.TryRead(buf)
		for _, err := range []error{readErr, tryErr, b.Write(numbered(3))} {
			if !errors.Is(err, ErrGone) {
				t.Errorf("after Close of the other end: %v", err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPipeFaults(t *testing.T) {
	const frames = 10000
	run := func(t *testing.T) (got []int) {
		synctest.Test(t, func(t *testing.T) {
			a, b := Pipe(PipeOptions{Queue: 2 * frames, FaultsToB: Faults{Lose: 0.05, Duplicate: 0.05, Reorder: 0.05, Seed: 3}})
			defer a.Close()
			defer b.Close()
			for i := range frames {
				if err := a.Write(numbered(i)); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second) // virtual; a frame held back at the end comes now
			buf := make([]byte, frame.MaxFrame)
			for n, _ := b.TryRead(buf); n != 0; n, _ = b.TryRead(buf) {
				got = append(got, number(buf))
			}
		})
		return got
	}
	got := run(t)
	seen, twice, late, high := map[int]bool{}, 0, 0, -1
	for _, i := range got {
		if seen[i] {
			twice++
		} else if i < high {
			late++
		}
		seen[i], high = true, max(high, i)
	}
	lost := frames - len(seen)
	for what, n := range map[string]int{"lost": lost, "twice": twice, "late": late} {
		if n < frames*3/100 || n > frames*7/100 {
			t.Errorf("%s: %d of %d", what, n, frames)
		}
	}
	if again := run(t); len(again) != len(got) {
		t.Errorf("%d frames, then %d with the same seed", len(got), len(again))
	}
}

func TestPipeDelays(t *testing.T) {
	const frames = 1000
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe(PipeOptions{FaultsToB: Faults{Delay: 0.5, Seed: 3}})
		defer a.Close()
		defer b.Close()
		for i := range frames {
			if err := a.Write(numbered(i)); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, frame.MaxFrame)
		count := func() (n, late int) {
			high := -1
			for k, _ := b.TryRead(buf); k != 0; k, _ = b.TryRead(buf) {
				n++
				if number(buf) < high {
					late++
				}
				high = max(high, number(buf))
			}
			return n, late
		}
		if n, late := count(); n < frames*4/10 || n > frames*6/10 || late != 0 {
			t.Errorf("%d of %d frames at once, %d of them late", n, frames, late)
		}
		time.Sleep(longestDelay) // virtual
		if n, late := count(); n < frames*4/10 || n > frames*6/10 || late < n/2 {
			t.Errorf("%d of %d frames later, %d of them out of order", n, frames, late)
		}
	})
}

func TestPipeWithout(t *testing.T) {
	a, b := Pipe(PipeOptions{WithoutToB: VnetHeader})
	defer a.Close()
	defer b.Close()
	in := row(remote4, guest4, false, &frame.TCPFields{SrcPort: 1, DstPort: 2}, 1000, pattern(5000))
	if err := a.Write(in); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, frame.MaxFrame)
	count := 0
	for n, _ := b.TryRead(buf); n != 0; n, _ = b.TryRead(buf) {
		decode(t, buf[:n])
		count++
	}
	if count != 5 {
		t.Errorf("%d frames, want 5", count)
	}
	if err := b.Write(in); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Read(buf); err != nil || !bytes.Equal(buf[:n], in) {
		t.Errorf("the other direction changed the frame: %d bytes, %v", n, err)
	}
}

func TestPipeAllocs(t *testing.T) {
	a, b := Pipe(PipeOptions{})
	defer a.Close()
	defer b.Close()
	in, buf := numbered(1), make([]byte, frame.MaxFrame)
	if n := testing.AllocsPerRun(1000, func() {
		a.Write(in)
		b.Read(buf)
	}); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}
