package flow

import (
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// What flows take is never more than there is, what one of them has no more than what is left, and
// all comes back.
func TestBudgetIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b MemoryBudget
		size := rapid.IntRange(1, 1<<20).Draw(t, "size")
		b.SetMax(size)
		flows := make([]Credit, rapid.IntRange(1, 8).Draw(t, "flows"))
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			c := &flows[rapid.IntRange(0, len(flows)-1).Draw(t, "flow")]
			if c.used > 0 && rapid.Bool().Draw(t, "give") {
				c.Give(&b, rapid.IntRange(1, c.used).Draw(t, "n"))
			} else {
				n := rapid.IntRange(1, 1<<17).Draw(t, "n")
				free, used := b.Free(), c.used
				switch ok := c.Take(&b, n); {
				case ok && c.used != used+n || !ok && c.used != used:
					t.Fatalf("%d in use after Take(%d), %d before", c.used, n, used)
				case !ok && used+n <= free:
					t.Fatalf("Take(%d) is refused, %d are free and %d in use", n, free, used)
				}
			}
			sum := 0
			for i := range flows {
				sum += flows[i].got
				if f := &flows[i]; f.used > f.got || f.used == 0 && f.got != 0 || f.got-f.used > 2*creditStep+(1<<17) {
					t.Fatalf("%d in use of %d", f.used, f.got)
				}
			}
			if sum != b.Used() || sum > size {
				t.Fatalf("%d bytes are counted, %d taken, of %d", b.Used(), sum, size)
			}
		}
		for i := range flows {
			flows[i].Give(&b, flows[i].used)
		}
		if b.Used() != 0 {
			t.Fatalf("%d bytes are left", b.Used())
		}
	})
}

func TestFlowsShareABudget(t *testing.T) {
	var b MemoryBudget
	b.SetMax(1 << 20)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			var c Credit
			for range 20000 {
				if n := rand.IntN(40000); c.used > 0 && rand.IntN(2) == 0 {
					c.Give(&b, min(n, c.used))
				} else {
					c.Take(&b, n)
				}
				if c.used < 0 || b.Free() < -8*(creditStep+40000) {
					t.Errorf("%d in use, %d are free", c.used, b.Free())
					return
				}
			}
			c.Give(&b, c.used)
		})
	}
	all.Wait()
	if b.Used() != 0 {
		t.Errorf("%d bytes are left", b.Used())
	}
}

// TestShareShrinks as more flows are stuck: the first of them do not take all, and the last ones
// get little.
func TestShareShrinks(t *testing.T) {
	var b MemoryBudget
	b.SetMax(64 << 20)
	last := b.Share()
	for i := range 200 {
		var c Credit
		if !c.Take(&b, b.Share()) {
			t.Fatalf("flow %d gets nothing", i)
		}
		if b.Share() >= last || b.Share() == 0 {
			t.Fatalf("%d bytes for flow %d, %d for the one before", b.Share(), i+1, last)
		}
		last = b.Share()
	}
	if last > 64<<20/shareOf/16 {
		t.Errorf("%d bytes for another when 200 are stuck", last)
	}
}
