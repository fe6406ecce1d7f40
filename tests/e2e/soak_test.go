package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fusilli/tests/bed"
)

const (
	// soakConns is the number of connections at a time, of all kinds together.
	soakConns = 2000
	// soakPause is the time between two new flows of datagrams or echo requests of a kind. Such
	// flows have no end but that nothing comes any more, and too many new ones are a flood.
	soakPause = 50 * time.Millisecond
)

// soakKind is a way through the translator.
type soakKind struct {
	name    string
	network string
	from    func(*connection) *bed.NS
	addr    string
	made    atomic.Int64 // exchanges that went well
}

// TestSoak has 2,000 connections of all kinds come and go at a time, with random sizes, orders of
// closing and resets, for a minute, or as long as FUSILLI_SOAK says. All that is carried arrives
// unchanged, and when it is over the translator has as much in use as before: descriptors,
// goroutines, threads, memory.
func TestSoak(t *testing.T) {
	length, full := time.Minute, false
	if s := os.Getenv("FUSILLI_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
		full = true
	}
	conns := sizedCount(soakConns)
	if raceEnabled {
		conns, length = conns/10, length/4
	}
	b := newBed(t, defaultBed)
	for name, value := range map[string]string{
		"ipv4/ping_group_range": "0 2147483647",
		// For how long flows of datagrams stay.
		"netfilter/nf_conntrack_udp_timeout":        "5",
		"netfilter/nf_conntrack_udp_timeout_stream": "10",
	} {
		if err := b.Host.Sysctl(name, value); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	c := connect(t, b, "-t", "7000", "-u", "7001", "-T", "7002", "-U", "7003", "--stats", "1")
	target := func(c *connection) *bed.NS { return c.target.NS }
	host := func(c *connection) *bed.NS { return c.Host }
	far := func(c *connection) *bed.NS { return c.Far }
	kinds := []*soakKind{
		{name: "TCP out", network: "tcp", from: target, addr: net.JoinHostPort(bed.FarAddr4, "7000")},
		{name: "TCP out, IPv6", network: "tcp", from: target, addr: net.JoinHostPort(bed.FarAddr6, "7000")},
		{name: "TCP in", network: "tcp", from: far, addr: net.JoinHostPort(bed.HostAddr4, "7000")},
		{name: "TCP in, IPv6", network: "tcp", from: far, addr: net.JoinHostPort(bed.HostAddr6, "7000")},
		{name: "TCP spliced in", network: "tcp", from: host, addr: "127.0.0.1:7000"},
		{name: "TCP spliced out", network: "tcp", from: target, addr: "127.0.0.1:7002"},
		{name: "UDP out", network: "udp", from: target, addr: net.JoinHostPort(bed.FarAddr4, "7001")},
		{name: "UDP in", network: "udp", from: far, addr: net.JoinHostPort(bed.HostAddr4, "7001")},
		{name: "UDP spliced in", network: "udp", from: host, addr: "127.0.0.1:7001"},
		{name: "UDP spliced out", network: "udp", from: target, addr: "127.0.0.1:7003"},
		{name: "echo", network: "ip4:icmp", from: target, addr: bed.FarAddr4},
	}
	for _, s := range []struct {
		ns   *bed.NS
		port string
	}{{c.Far, "7000"}, {c.target.NS, "7000"}, {c.Host, "7002"}} {
		echoStreams(t, s.ns, ":"+s.port)
	}
	for _, s := range []struct {
		ns   *bed.NS
		addr string
	}{{c.Far, bed.FarAddr4 + ":7001"}, {c.target.NS, "0.0.0.0:7001"}, {c.Host, "127.0.0.1:7003"}} {
		echoDatagrams(t, s.ns, s.addr)
	}

	begin := time.Now()
	// One exchange of each kind, for the threads and goroutines that there always are.
	soak(t, c, kinds, len(kinds), 0)
	idle := c.levels(t, kinds[0])
	// Then a round, so that what is kept for later is there.
	soak(t, c, kinds, conns, 0)
	first := c.usage(t)
	soak(t, c, kinds, conns, length)
	for _, k := range kinds {
		t.Logf("%-16s %d", k.name, k.made.Load())
		if k.made.Load() == 0 {
			t.Errorf("%s: none", k.name)
		}
	}
	// Flows of echo requests stay for a minute after the last one, and garbage for two if nothing
	// happens; who wants to see them go waits.
	kept, garbage, what := int(kinds[len(kinds)-1].made.Load()), 64<<20, "flows to end, but those of echo"
	if full {
		kept, garbage, what = 0, 8<<20, "all flows to end"
	}
	if raceEnabled {
		garbage = 1 << 30
	}
	const ready = 128 // watches, pipes and sockets that are kept for the next connections
	var end soakLevels
	err := bed.Wait(patience(t, 5*time.Minute), what, func() (bool, error) {
		end = c.levels(t, kinds[0])
		return end.FDs <= idle.FDs+ready+kept && end.goroutines <= idle.goroutines+20+2*kept && end.heap <= idle.heap+garbage, nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%v; before: %+v; after the first round: %+v; at the end: %+v", time.Since(begin).Round(time.Second), idle, first, end)
	// slabs (see package actors)
	if grown := int64(end.RSS) - int64(first.RSS); grown > 64<<20 && !raceEnabled {
		t.Errorf("%d KiB more in use at the end than after the first round", grown>>10)
	}
	if end.Threads > first.Threads+16 { // a few are made when system calls overlap, and kept
		t.Errorf("%d threads, %d after the first round", end.Threads, first.Threads)
	}
}

// soakLevels is what the translator has in use, with what only it knows.
type soakLevels struct {
	bed.Usage
	goroutines, heap int // number, bytes
}

// levels returns that, from the last columns of the next row of --stats. k has a row made.
func (c *connection) levels(t *testing.T, k *soakKind) soakLevels {
	t.Helper()
	before := strings.Count(c.proc.Stderr(), "\n")
	soak(t, c, []*soakKind{k}, 1, 0)
	l := soakLevels{}
	err := bed.Wait(patience(t, limit), "a row of --stats", func() (bool, error) {
		text := c.proc.Stderr()
		if strings.Count(text, "\n") <= before || !strings.HasSuffix(text, "\n") {
			return false, nil
		}
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		cells := strings.Fields(lines[len(lines)-1])
		if n := len(cells); n < 3 {
			return false, fmt.Errorf("the last line is %q", lines[len(lines)-1])
		} else if cells[n-1] == "heap" {
			return false, nil
		} else {
			l.goroutines, l.heap = inCell(cells[n-2]), inCell(cells[n-1])
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	l.Usage = c.usage(t)
	return l
}

// inCell reads a cell of the table: a number, which may have a unit.
func inCell(cell string) int {
	unit := 1
	for _, name := range []string{"k", "M", "G"} {
		unit *= 1000
		if rest, ok := strings.CutSuffix(cell, name); ok {
			n, _ := strconv.Atoi(rest)
			return n * unit
		}
	}
	n, _ := strconv.Atoi(cell)
	return n
}

// soak has so many workers each exchange something once, and then again for as long as length.
func soak(t *testing.T, c *connection, kinds []*soakKind, workers int, length time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	turns := make([]*time.Ticker, len(kinds))
	for i := range turns {
		turns[i] = time.NewTicker(soakPause)
		defer turns[i].Stop()
	}
	var all sync.WaitGroup
	var faults atomic.Int64
	for i := range workers {
		k, turn := kinds[i%len(kinds)], turns[i%len(kinds)]
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		all.Go(func() {
			for {
				if err := k.exchange(c, rnd); err != nil {
					if faults.Add(1) <= 5 {
						t.Errorf("%s: %v", k.name, err)
					}
					return
				}
				k.made.Add(1)
				if k.network != "tcp" {
					select {
					case <-ctx.Done():
					case <-turn.C:
					}
				}
				if ctx.Err() != nil {
					return
				}
			}
		})
	}
	all.Wait()
}

// exchange has something come back over a connection of its own.
func (k *soakKind) exchange(c *connection, rnd *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*limit)
	defer cancel()
	conn, err := k.from(c).Dial(ctx, k.network, k.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(4 * limit))
	switch k.network {
	case "tcp":
		return soakStream(conn.(*net.TCPConn), rnd)
	case "udp":
		return soakDatagrams(conn, rnd)
	}
	return soakEcho(conn, rnd)
}

func soakStream(c *net.TCPConn, rnd *rand.Rand) error {
	want := make([]byte, 1+rnd.IntN(1<<(4+rnd.IntN(14))))
	fill(want, rnd)
	sent := make(chan error, 1)
	ending := rnd.IntN(4)
	go func() {
		_, err := c.Write(want)
		if err == nil && ending != 0 {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	if ending == 1 { // a reset in the middle
		n := rnd.IntN(len(want))
		_, err := io.ReadFull(c, make([]byte, n))
		c.SetLinger(0)
		c.Close()
		<-sent // whatever it says
		return err
	}
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	if err = errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("%d bytes: %w", len(want), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d other bytes come back", len(want))
	}
	if ending == 2 { // wait for the end
		if n, err := c.Read(got[:1]); n != 0 || err != io.EOF {
			return fmt.Errorf("%d bytes after the end, %v", n, err)
		}
	}
	return nil
}

// soakDatagrams sends some datagrams one after the other. One that is lost is sent again.
func soakDatagrams(c net.Conn, rnd *rand.Rand) error {
	got := make([]byte, 1<<16)
	for range 1 + rnd.IntN(3) {
		want := make([]byte, 8+rnd.IntN(1400))
		fill(want, rnd)
		if err := repeat(c, want, func(n int) bool { return bytes.Equal(got[:n], want) }, got); err != nil {
			return err
		}
	}
	return nil
}

func soakEcho(c net.Conn, rnd *rand.Rand) error {
	b := make([]byte, 64)
	fill(b, rnd)
	b[0], b[1], b[2], b[3] = 8, 0, 0, 0
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	got := make([]byte, 1500)
	const ip = 20 // bytes of header that such a socket shows
	return repeat(c, b, func(n int) bool {
		return n == ip+len(b) && got[ip] == 0 && bytes.Equal(got[ip+4:n], b[4:])
	}, got)
}

// repeat sends b until an answer comes that is the right one; others belong to others.
func repeat(c net.Conn, b []byte, right func(n int) bool, got []byte) error {
	for range 30 {
		if _, err := c.Write(b); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := c.Read(got)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if right(n) {
				return nil
			}
		}
	}
	return errors.New("no answer")
}

func fill(b []byte, rnd *rand.Rand) {
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
}

// echoStreams sends back what comes over connections to addr of ns.
func echoStreams(t *testing.T, ns *bed.NS, addr string) {
	t.Helper()
	serving(t)(ns.ServeTCP(addr, func(c net.Conn) { io.Copy(c, c) }))
}

// echoDatagrams sends back what comes as datagrams to addr of ns.
func echoDatagrams(t *testing.T, ns *bed.NS, addr string) {
	t.Helper()
	serving(t)(ns.ServeUDP(addr, func(_, _ net.Addr, b []byte) []byte { return b }))
}
