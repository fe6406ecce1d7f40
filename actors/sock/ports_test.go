package sock

import "testing"

func TestPorts(t *testing.T) {
	var none *Ports
	none.set(true, 1, 2)
	if none.get(true, 1) != 0 {
		t.Error("nothing remembers")
	}
	p := new(Ports)
	p.set(true, 53, 4000)
	p.set(false, 53, 6000)
	if p.get(true, 53) != 4000 || p.get(false, 53) != 6000 || p.get(true, 54) != 0 {
		t.Errorf("%v", p.m)
	}
	for i := range 10 * maxPorts {
		p.set(true, uint16(i), 9)
		if len(p.m) > maxPorts {
			t.Fatal("no bound")
		}
	}
}
