package app

import (
	"bytes"
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStatsAreARowForEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a, b atomic.Uint64
		var out bytes.Buffer
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			printStats(ctx, &out, 2*time.Second, []count{{name: "tap-in", load: a.Load}, {name: "tcp", load: b.Load}, {"heap", b.Load, true}})
		}()
		time.Sleep(5 * time.Second) // nothing happens
		a.Add(1234567)
		b.Add(1)
		time.Sleep(5 * time.Second)
		b.Add(1)
		time.Sleep(2 * time.Second)
		end()
		<-done
		want := " tap-in    tcp   heap\n  1234k      1      1\n  1234k      2      2\n"
		if d := cmp.Diff(want, out.String()); d != "" {
			t.Error(d)
		}
	})
}

func TestStatsRepeatTheHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n uint64
		var out bytes.Buffer
		ctx, end := context.WithTimeout(t.Context(), 50*time.Second+time.Millisecond)
		defer end()
		printStats(ctx, &out, time.Second, []count{{name: "tcp", load: func() uint64 { n++; return n }}})
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		var heads []int
		for i, l := range lines {
			if l == "    tcp" {
				heads = append(heads, i)
			}
		}
		if d := cmp.Diff([]int{0, 21, 42}, heads); d != "" || len(lines) != 53 {
			t.Errorf("%d lines, headers: %s", len(lines), d)
		}
	})
}

func TestLevelsMakeNoRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		ctx, end := context.WithTimeout(t.Context(), 5*time.Second)
		defer end()
		n := uint64(0)
		printStats(ctx, &out, time.Second, []count{{"heap", func() uint64 { n++; return n }, true}})
		if out.Len() > 0 {
			t.Errorf("printed: %s", out.String())
		}
	})
	for _, c := range levels() {
		if c.load() == 0 || len(c.name) > 6 {
			t.Errorf("%q is %d", c.name, c.load())
		}
	}
}

func TestShort(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999999: "999999", 1000000: "1000k", 99999999: "99999k", 100000000: "100M", 1 << 63: "9223P",
	} {
		if got := short(n); got != want {
			t.Errorf("short(%d) = %q, want %q", n, got, want)
		}
	}
}
