package actors

import (
	"bytes"
	"context"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/actors/neigh"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// recorder is a link that notes when it was sent what.
type recorder struct {
	sink
	mu     sync.Mutex
	frames [][]byte
	at     []time.Time
	err    error
}

// take returns what was sent so far, and when. What is sent from now on ends with err.
func (r *recorder) take(err error) (frames [][]byte, at []time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	frames, at = r.frames, r.at
	r.frames, r.at, r.err = nil, nil, err
	return frames, at
}

func (r *recorder) Write(b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.frames = append(r.frames, bytes.Clone(b))
	r.at = append(r.at, time.Now())
	return nil
}

func TestAdvertisementsNobodyHasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := new(recorder)
		core, logs := observer.New(zapcore.InfoLevel)
		e := New(Config{Link: link, Log: zap.New(core), V4: true, V6: true, Neigh: neigh.Responder{
			MAC: ourMAC, Guest4: frame.Addr4([4]byte{10, 0, 2, 15}), Our4: frame.Addr4([4]byte{10, 0, 2, 2}),
			LinkLocal: frame.AddrOf(netip.MustParseAddr("fe80::1")), Prefix: frame.AddrOf(netip.MustParseAddr("fd00::15")),
		}})
		ctx, cancel := context.WithCancel(t.Context())
		var parts sync.WaitGroup
		e.startServices(ctx, &parts)

		time.Sleep(time.Hour)
		synctest.Wait()
		if frames, _ := link.take(nil); len(frames) != 0 {
			t.Errorf("%d frames before there was a guest", len(frames))
		}
		e.Greet()
		greeted := time.Now()
		if frames, _ := link.take(nil); len(frames) != 2 {
			t.Errorf("%d frames for a greeting", len(frames))
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		frames, at := link.take(tapio.ErrDropped) // the guest is gone
		last, least, most := greeted, time.Hour, time.Duration(0)
		for i, b := range frames {
			d := at[i].Sub(last)
			last, least, most = at[i], min(least, d), max(most, d)
			var p frame.Packet
			if why := frame.Parse(b, &p); why != frame.OK || p.Kind != frame.NDP || b[p.L4] != 134 ||
				frame.Dst(b) != (frame.MAC{0x33, 0x33, 0, 0, 0, 1}) || frame.NetIP(p.Dst).String() != "ff02::1" {
				t.Fatalf("frame % x", b)
			}
		}
		// Of some 216 that are even between 200 and 600 seconds.
		if n := len(frames); n < 144 || n > 432 || least < 200*time.Second || most >= 600*time.Second || least > 250*time.Second || most < 550*time.Second {
			t.Errorf("%d in a day, %v to %v apart", n, least, most)
		}
		line := regexp.MustCompile(`^NDP: sending unsolicited RA, next in ([2-5][0-9][0-9])s$`)
		if n := logs.FilterMessageSnippet("unsolicited").Len(); n != len(frames) || !line.MatchString(logs.All()[0].Message) {
			t.Errorf("%d lines, %q", n, logs.All()[0].Message)
		}

		logs.TakeAll()
		time.Sleep(time.Hour)
		synctest.Wait()
		if logs.Len() != 0 {
			t.Errorf("log without a guest: %v", logs.All())
		}
		cancel()
		parts.Wait()
	})
}

// TestNoAdvertisementsWhereThereAreToBeNone: they are neither sent nor said to be where they are
// switched off, or neighbour discovery, or IPv6.
func TestNoAdvertisementsWhereThereAreToBeNone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(c *Config)
	}{
		{"--no-ra", func(c *Config) { c.Neigh.NoRA = true }},
		{"--no-ndp", func(c *Config) { c.Neigh.LinkLocal, c.Neigh.NoRA = frame.Addr{}, true }},
		{"--ipv4-only", func(c *Config) { c.V6 = false }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				link := new(recorder)
				core, logs := observer.New(zapcore.DebugLevel)
				c := Config{Link: link, Log: zap.New(core), V4: true, V6: true, Neigh: neigh.Responder{
					MAC: ourMAC, Guest4: frame.Addr4([4]byte{10, 0, 2, 15}), Our4: frame.Addr4([4]byte{10, 0, 2, 2}),
					LinkLocal: frame.AddrOf(netip.MustParseAddr("fe80::1")), Prefix: frame.AddrOf(netip.MustParseAddr("fd00::15")),
				}}
				tt.change(&c)
				e := New(c)
				ctx, cancel := context.WithCancel(t.Context())
				var parts sync.WaitGroup
				e.startServices(ctx, &parts)
				e.Greet()
				link.take(nil)
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				if frames, _ := link.take(nil); len(frames) > 0 || logs.Len() > 0 {
					t.Errorf("%d frames, %d lines", len(frames), logs.Len())
				}
				cancel()
				parts.Wait()
			})
		})
	}
}

// What is malformed is counted, by the service it is for.
func TestMalformedQuestionsAreCounted(t *testing.T) {
	e, link, logs := newEngine(&options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	// hop limit 64, cut off
	link.Write(seed(true, 58, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 3)...)...))
	// nothing of DHCP
	link.Write(seed(false, 17, 0, 68, 0, 67, 0, 8, 0, 0))
	// To ff02::1:2, but nothing of DHCPv6.
	v6 := seed(true, 17, 2, 34, 2, 35, 0, 8, 0, 0)
	all := netip.MustParseAddr("ff02::1:2").As16()
	copy(v6[frame.L3Off+24:], all[:])
	link.Write(v6)
	c := e.Counters()
	until(t, "counted", func() bool { return c.BadNeigh.Load() == 1 && c.BadDHCP.Load() == 1 && c.BadDHCPv6.Load() == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	link.Close()
	for _, l := range logs.All() {
		if strings.Contains(l.Message, "NDP") || strings.Contains(l.Message, "DHCP") {
			t.Errorf("log %v", l)
		}
	}
}
