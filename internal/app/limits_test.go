package app

import "testing"

func TestFlowsLeaveSomeDescriptors(t *testing.T) {
	for _, tt := range []struct{ files, flows int }{
		{64, 48}, {1024, 768}, {4096, 3584}, {20000, 19488}, {1 << 20, 131072},
	} {
		l := flowLimit(tt.files)
		n := 0
		for ; l.Take(1); n++ {
		}
		if n != tt.flows {
			t.Errorf("%d flows with %d open files, want %d", n, tt.files, tt.flows)
		}
	}
}
