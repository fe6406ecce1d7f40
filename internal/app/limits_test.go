package app

import (
	"math"
	"runtime/debug"
	"testing"

	"fusilli/actors/flow"
	"fusilli/config"
)

func TestFlowsLeaveSomeDescriptors(t *testing.T) {
	for _, tt := range []struct{ files, flows int }{
		{64, 48}, {1024, 768}, {4096, 3584}, {20000, 19488}, {1 << 20, 131072},
	} {
		l := flowLimit(tt.files, flow.MaxFlows)
		n := 0
		for ; l.Acquire(1); n++ {
		}
		if n != tt.flows {
			t.Errorf("%d flows with %d open files, want %d", n, tt.files, tt.flows)
		}
	}
}

func TestFewerFlowsWhereThatIsAskedFor(t *testing.T) {
	if n := flowLimit(20000, 100).Max(); n != 100 {
		t.Errorf("%d flows, want 100", n)
	}
}

// TestDefaultsAgree: what the command line leaves open is what the engine does by itself.
func TestDefaultsAgree(t *testing.T) {
	for _, mode := range []config.Mode{config.Pasta, config.Passt} {
		if c := config.Defaults(mode); c.MaxFlows != flow.MaxFlows || c.Memory != flow.DefaultMemory {
			t.Errorf("%s: %d flows and %d bytes, want %d and %d", mode, c.MaxFlows, c.Memory, flow.MaxFlows, flow.DefaultMemory)
		}
	}
}

func TestHeapLimitFollowsTheCeiling(t *testing.T) {
	defer debug.SetMemoryLimit(math.MaxInt64)
	limitHeap(flow.NewLimit(1000), 100<<20)
	if got, want := debug.SetMemoryLimit(-1), int64(100<<20+1000*flowMemory+baseMemory); got != want {
		t.Errorf("limit %d, want %d", got, want)
	}
}
