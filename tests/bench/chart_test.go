package main

import (
	"os"
	"path/filepath"
	"testing"
)

// The chart in docs/ can be drawn again from the figures beside it.
func TestChart(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "chart.svg")
	if err := drawChart("../../docs/benchmarks.json", svg); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(svg); err != nil || st.Size() < 1000 {
		t.Errorf("chart: %v, %v", st, err)
	}
	empty := filepath.Join(t.TempDir(), "none.json")
	if err := os.WriteFile(empty, []byte(`{"rows": []}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := drawChart(empty, svg); err == nil {
		t.Error("drew a chart of no figures")
	}
}
