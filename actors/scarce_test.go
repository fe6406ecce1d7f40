package actors

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"fusilli/internal/leaktest"
	"golang.org/x/sys/unix"
)

// noDescriptors has no more than left new descriptors be had, until the function returned is
// called.
func noDescriptors(t *testing.T, left int) (enough func()) {
	t.Helper()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	// The lowest numbers that are free are given out; those from the limit on are not.
	few := 0
	for ; left > 0 || isOpen(few); few++ {
		if !isOpen(few) {
			left--
		}
	}
	set := lim
	set.Cur = uint64(few)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &set); err != nil {
		t.Fatal(err)
	}
	back := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &lim) }
	t.Cleanup(back)
	return back
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// TestDescriptorsRunOut: flows that cannot be had are refused, those there are go on, and when
// there are descriptors again all is well.
func TestDescriptorsRunOut(t *testing.T) {
	b := newBed(t, options{})
	fam := families[0]
	l, echo := listen(t, fam), echoUDP(t, fam)
	g, h := b.connect(fam, l)
	// Before the guest's acknowledgement has come, that one would give way.
	if _, err := g.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(h, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	enough := noDescriptors(t, 0)
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := b.guest.dial(ctx, addrOf(fam, l))
		cancel()
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("connection %d: %v", i, err)
		}
		u := b.dialUDP(t, fam, echo)
		u.Write([]byte("x"))
		until(t, "the flow to end", func() bool { return b.Counters().UDP.Load() == uint64(i+1) && b.Flows() == 1 })
	}
	if err := exchange(g, h, 10000, 10000, 1); err != nil {
		t.Error(err)
	}
	if n := b.Counters().NoSocket.Load(); n != 6 {
		t.Errorf("%d flows without a socket are counted, want 6", n)
	}
	if n := len(b.logs.All()); n != 1 || b.logs.All()[0].Message != "TCP: Unable to open socket for new connection" {
		t.Errorf("%d messages, want 1: %v", n, b.logs.All())
	}
	enough()
	g, h = b.connect(fam, l)
	if err := exchange(g, h, 1000, 1000, 1); err != nil {
		t.Error(err)
	}
	u := b.dialUDP(t, fam, echo)
	if _, err := u.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := u.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Errorf("a datagram comes back as %d bytes, %v", n, err)
	}
}

// TestFloodTakesAllDescriptors: a new connection finds one in the end, since others give way.
func TestFloodTakesAllDescriptors(t *testing.T) {
	b := newBed(t, options{})
	fam := families[0]
	l, port := listen(t, fam), deaf(t)
	before := leaktest.Descriptors(t)
	for i := range 10 {
		b.link.Write(raw(uint16(1024+i), port, 2, 1, 0, 4096))
	}
	until(t, "their sockets", func() bool { return b.Flows() == 10 && leaktest.Descriptors(t) >= before+10 })
	enough := noDescriptors(t, 0)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	g, err := b.guest.dial(ctx, addrOf(fam, l))
	enough()
	if err != nil {
		t.Fatal(err)
	}
	g.SetDeadline(time.Now().Add(patience))
	h, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := exchange(g, h, 1000, 1000, 1); err != nil {
		t.Error(err)
	}
	if n := b.Counters().Evicted.Load(); n == 0 {
		t.Error("no flow has given way")
	}
}
