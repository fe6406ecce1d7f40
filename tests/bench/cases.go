package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"fusilli/tests/bed"
)

const (
	port     = "7000" // of the server in far; forwarded into the target for local traffic
	outPort  = "7001" // of the server in host that the target reaches by its loopback
	udpSize  = 1400   // bytes of data in a datagram of the throughput cases
	idleFlow = 2000   // connections of the memory case
)

// figure is one result of one run of a case.
type figure struct {
	metric string // which, where a case has several; or ""
	value  float64
	unit   string
	less   bool          // smaller is better
	cpu    time.Duration // of the translator, while measuring
	bytes  int64         // carried meanwhile; 0 where it means nothing
}

// benchCase is one row of the table. Exactly one of connected and alone is set.
type benchCase struct {
	name string
	mtu  int  // of the tap
	slow bool // over the slow link
	v6   bool // needs IPv6, which only pasta's kind configures
	// opts is more options, which only pasta's kind has. With local the traffic does not leave the
	// machine, and can be compared with plain loopback.
	opts  []string
	local bool

	// connected measures a running implementation for about d.
	connected func(s *session, d time.Duration) ([]figure, error)
	// alone starts what it measures itself.
	alone func(ctx context.Context, im impl, b *bed.Bed, self string) ([]figure, error)
	// machine says that alone boots a guest, on the passt beside im's pasta.
	machine bool
}

// runs reports whether im can run the case at all.
func (c benchCase) runs(im impl) bool {
	switch im.kind {
	case pastaKind:
		return true
	case loopbackKind:
		return c.local
	}
	return !c.v6 && c.alone == nil && c.opts == nil
}

// defaultMTU is what pasta gives a tap.
const defaultMTU = 65520

// cases is the table of everything that can be measured, for length where a case takes time.
func cases(length time.Duration, flows int) []benchCase {
	var list []benchCase
	addr := map[bool]string{false: bed.FarAddr4 + ":" + port, true: "[" + bed.FarAddr6 + "]:" + port}
	bulk := func(prefix string, mtu, streams int, slow, v6 bool) {
		for _, dir := range []string{"out", "in"} {
			name := prefix + dir
			if v6 {
				name += "6"
			}
			name += fmt.Sprintf("-%d", mtu)
			if streams > 1 {
				name += fmt.Sprintf("-x%d", streams)
			}
			list = append(list, benchCase{name: name, mtu: mtu, slow: slow, v6: v6, connected: tcpBulk(dir, addr[v6], streams)})
		}
	}
	for _, v6 := range []bool{false, true} {
		for _, mtu := range []int{65520, 1500} {
			for _, streams := range []int{1, 4} {
				bulk("tcp-", mtu, streams, false, v6)
			}
		}
	}
	add := func(name string, measure func(*session, time.Duration) ([]figure, error)) {
		list = append(list, benchCase{name: name, mtu: defaultMTU, connected: measure})
	}
	add("udp-out", udpOut)
	add("udp-in", udpIn)
	add("tcp-rr", transactions("tcp-server", "tcp-rr"))
	add("udp-rr", transactions("udp-echo", "udp-rr"))
	add("tcp-crr", transactions("tcp-server", "tcp-crr"))
	for _, mtu := range []int{65520, 1500} {
		bulk("slow-", mtu, 1, true, false)
	}
	list = append(list, forwarded()...)
	add("idle-flow", idle)
	add("stuck-flows", stuck(flows))
	add("rss", func(s *session, _ time.Duration) ([]figure, error) {
		u, err := s.usage()
		return []figure{{value: float64(u.RSS) / (1 << 20), unit: "MiB", less: true}}, err
	})
	list = append(list, benchCase{name: "startup", mtu: defaultMTU, alone: startup})
	for _, mtu := range []int{65520, 1500} {
		list = append(list, benchCase{name: fmt.Sprintf("machine-%d", mtu), mtu: mtu, machine: true, alone: machine(mtu, length)})
	}
	return append(list, streamCases(length)...)
}

// ends starts a server in far and then a client in the target.
func (s *session) ends(server, client []string) (srv, cli *traffic, err error) {
	return s.between(s.bed.Far, server, s.target.NS, client)
}

// between starts a server in one namespace and then a client in another.
func (s *session) between(there *bed.NS, server []string, here *bed.NS, client []string) (srv, cli *traffic, err error) {
	if srv, err = generate(there, s.self, server...); err != nil {
		return nil, nil, err
	}
	if cli, err = generate(here, s.self, client...); err != nil {
		srv.stop()
		return nil, nil, err
	}
	return srv, cli, nil
}

// rate measures what receiver receives in d from the start of the flow on: some
// implementations are quick at first and stall then, and users see both.
func (s *session) rate(receiver *traffic, d time.Duration) ([]figure, error) {
	u0, err := s.usage()
	if err != nil {
		return nil, err
	}
	n0, err := receiver.count()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	time.Sleep(d)
	n1, err := receiver.count()
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	u1, err := s.usage()
	if err != nil {
		return nil, err
	}
	if n1 == n0 {
		return nil, errors.New("nothing arrived")
	}
	return []figure{{
		value: float64(n1-n0) * 8 / took.Seconds() / 1e9,
		unit:  "Gbps",
		cpu:   u1.CPU - u0.CPU,
		bytes: n1 - n0,
	}}, nil
}

func tcpBulk(dir, addr string, streams int) func(*session, time.Duration) ([]figure, error) {
	return func(s *session, d time.Duration) ([]figure, error) {
		role := map[string]string{"out": "tcp-send", "in": "tcp-recv"}[dir]
		far, target, err := s.ends([]string{"tcp-server", ":" + port}, []string{role, addr, fmt.Sprint(streams)})
		if err != nil {
			return nil, err
		}
		defer far.stop()
		defer target.stop()
		if dir == "out" {
			return s.rate(far, d)
		}
		return s.rate(target, d)
	}
}

func udpOut(s *session, d time.Duration) ([]figure, error) {
	far, target, err := s.ends([]string{"udp-sink", ":" + port},
		[]string{"udp-send", bed.FarAddr4 + ":" + port, fmt.Sprint(udpSize)})
	if err != nil {
		return nil, err
	}
	defer far.stop()
	defer target.stop()
	return s.rate(far, d)
}

func udpIn(s *session, d time.Duration) ([]figure, error) {
	far, target, err := s.ends([]string{"udp-source", ":" + port, fmt.Sprint(udpSize)},
		[]string{"udp-recv", bed.FarAddr4 + ":" + port})
	if err != nil {
		return nil, err
	}
	defer far.stop()
	defer target.stop()
	return s.rate(target, d)
}

func transactions(server, client string) func(*session, time.Duration) ([]figure, error) {
	return func(s *session, d time.Duration) ([]figure, error) {
		far, target, err := s.ends([]string{server, ":" + port}, []string{client, bed.FarAddr4 + ":" + port})
		if err != nil {
			return nil, err
		}
		defer far.stop()
		defer target.stop()
		return s.latency(target, d)
	}
}

// latency measures the transactions of client.
func (s *session) latency(client *traffic, d time.Duration) ([]figure, error) {
	u0, err := s.usage()
	if err != nil {
		return nil, err
	}
	l, err := client.transact(d)
	if err != nil {
		return nil, err
	}
	u1, err := s.usage()
	cpu := u1.CPU - u0.CPU
	return []figure{
		{metric: "p50", value: l.P50, unit: "us", less: true, cpu: cpu},
		{metric: "p99", value: l.P99, unit: "us", less: true, cpu: cpu},
	}, err
}

func idle(s *session, _ time.Duration) ([]figure, error) {
	u0, err := s.usage()
	if err != nil {
		return nil, err
	}
	far, target, err := s.ends([]string{"tcp-server", ":" + port},
		[]string{"tcp-idle", bed.FarAddr4 + ":" + port, fmt.Sprint(idleFlow)})
	if err != nil {
		return nil, err
	}
	defer far.stop()
	defer target.stop()
	u1, err := s.usage()
	return []figure{{value: float64(u1.RSS-u0.RSS) / 1024 / idleFlow, unit: "KiB", less: true, cpu: u1.CPU - u0.CPU}}, err
}

// stuck is the memory of flows whose peers read nothing, each filled until its sender has to stop:
// all the translator has then, and what each of them adds.
func stuck(flows int) func(*session, time.Duration) ([]figure, error) {
	return func(s *session, _ time.Duration) ([]figure, error) {
		u0, err := s.usage()
		if err != nil {
			return nil, err
		}
		n := fmt.Sprint(flows)
		far, err := generate(s.bed.Far, s.self, "tcp-deaf", ":"+port, n)
		if err != nil {
			return nil, err
		}
		defer far.stop()
		target, err := generate(s.target.NS, s.self, "tcp-stuck", bed.FarAddr4+":"+port, n)
		if err != nil {
			return nil, err
		}
		defer target.stop()
		u1, err := s.usage()
		return []figure{
			{metric: "all", value: float64(u1.RSS) / (1 << 20), unit: "MiB", less: true, cpu: u1.CPU - u0.CPU},
			{metric: "each", value: float64(u1.RSS-u0.RSS) / 1024 / float64(flows), unit: "KiB", less: true},
		}, err
	}
}

// startup is the time from exec to exit of a command that does nothing, median of ten.
func startup(ctx context.Context, im impl, b *bed.Bed, _ string) ([]figure, error) {
	var took []float64
	for range 10 {
		cmd := exec.CommandContext(ctx, im.path, "--config-net", "-q", "--", "true")
		start := time.Now()
		p, err := b.Host.Spawn(bed.Nobody, cmd)
		if err != nil {
			return nil, err
		}
		if status := p.Status(); status != 0 {
			return nil, fmt.Errorf("status %d: %s", status, p.Stderr())
		}
		took = append(took, float64(time.Since(start).Microseconds())/1e3)
	}
	return []figure{{value: median(took), unit: "ms", less: true}}, nil
}

// median sorts v, which must not be empty.
func median(v []float64) float64 {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
