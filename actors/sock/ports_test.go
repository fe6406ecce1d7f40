package sock

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestPorts: which port stands for the guest's, while others come and go.
func TestPorts(t *testing.T) {
	taken := map[uint16]bool{} // by others
	next := uint16(40000)
	asked := false
	try := func(port uint16, ours bool) (uint16, error) {
		asked = ours
		switch {
		case port == 0:
			next++
			return next, nil
		case taken[port] && !ours:
			return 0, unix.EADDRINUSE
		}
		return port, nil
	}
	p := &Ports{Forwarded: func(port uint16) bool { return port == 7 }}
	get := func(port uint16, any bool, want uint16, ours bool) *Held {
		t.Helper()
		h, err := p.bind(true, port, any, try)
		if err != nil || h.k.port != want || asked != ours {
			t.Fatalf("port %d: %d, shared %v, %v; want %d, shared %v", port, h.k.port, asked, err, want, ours)
		}
		return &h
	}
	a, b := get(53, false, 53, false), get(53, false, 53, true)
	a.Release()
	a.Release() // means nothing
	get(53, false, 53, true).Release()
	b.Release()
	taken[53], taken[7] = true, true
	c := get(53, false, 40001, false)
	taken[53] = false
	get(53, false, 40001, true).Release() // as long as others of the port have that
	c.Release()
	get(53, false, 53, false).Release()
	taken[53], taken[40001] = true, true
	get(53, false, 40002, false).Release()
	get(7, false, 7, true).Release()
	d := get(9, true, 40003, false)
	get(9, true, 40003, true).Release()
	d.Release()
	if len(p.held) != 0 {
		t.Errorf("held: %v", p.held)
	}
	if h, err := p.bind(false, 53, false, func(uint16, bool) (uint16, error) { return 0, unix.EADDRNOTAVAIL }); err != unix.EADDRNOTAVAIL || h.p != nil {
		t.Errorf("%v, %v", h, err)
	}
	for i := range 10 * maxPorts {
		p.set(true, uint16(i), 9)
		if len(p.m) > maxPorts {
			t.Fatal("no bound")
		}
	}
}
