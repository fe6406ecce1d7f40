package forward

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/config"
	"fusilli/tests/bed"
)

// listens waits until the port is listened on in n by us, or is not.
func (p *place) listens(t *testing.T, dir config.Direction, proto config.Protocol, want ...uint16) {
	t.Helper()
	var got []uint16
	await(t, fmt.Sprintf("listeners on %v", want), func() bool {
		p.Forwarder.mu.Lock()
		defer p.Forwarder.mu.Unlock()
		got = got[:0]
		for port := range 65536 {
			for _, r := range p.rules[dir] {
				if r.Protocol == proto && r.open.Has(uint16(port)) {
					got = append(got, uint16(port))
				}
			}
		}
		return fmt.Sprint(got) == fmt.Sprint(want)
	})
}

func listen(t *testing.T, n *bed.NS, network, addr string) interface{ Close() error } {
	t.Helper()
	if network[0] == 't' {
		l, err := n.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	c, err := n.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAutoFollowsBoundPorts(t *testing.T) {
	p := newPlace(t, nil)
	before := listen(t, p.ns, "tcp", ":5000")
	p.add(t, "-t auto", "-u auto", "-T auto", "-U auto")
	// The first look was before the first listener.
	if n := p.Listeners(config.Inbound); n != 2 {
		t.Errorf("%d listeners at once, want TCP 5000 and with it UDP", n)
	}
	p.listens(t, config.Inbound, config.TCP, 5000)
	p.listens(t, config.Inbound, config.UDP, 5000)

	listen(t, p.ns, "tcp4", "127.0.0.1:5001")
	listen(t, p.ns, "tcp6", "[::1]:5002")
	udp := listen(t, p.ns, "udp", ":5003")
	listen(t, p.ns, "tcp", ":40000") // ephemeral
	started := time.Now()
	p.listens(t, config.Inbound, config.TCP, 5000, 5001, 5002)
	if took := time.Since(started); took > 10*scanPeriod {
		t.Errorf("it took %v", took)
	}
	p.listens(t, config.Inbound, config.UDP, 5000, 5001, 5002, 5003)
	// What we listen on ourselves is not a service of the host.
	p.listens(t, config.Outbound, config.TCP)
	p.listens(t, config.Outbound, config.UDP)

	onHost := listen(t, p.host, "tcp", ":6000")
	p.listens(t, config.Outbound, config.TCP, 6000)
	p.listens(t, config.Outbound, config.UDP, 6000)
	// Nor is what the guest's flows share.
	p.twin.mu.Lock()
	p.twin.shared = []uint16{6001}
	p.twin.mu.Unlock()
	listen(t, p.host, "udp", ":6001")
	listen(t, p.host, "udp", ":6002")
	p.listens(t, config.Outbound, config.UDP, 6000, 6002)

	// A flow that has begun does not end with the listener.
	dial(t, p.host, "tcp", "", "127.0.0.1:5000")
	_, fd := p.twin.take()
	before.Close()
	udp.Close()
	p.listens(t, config.Inbound, config.TCP, 5001, 5002)
	p.listens(t, config.Inbound, config.UDP, 5001, 5002)
	if _, err := unix.Write(fd, []byte("still here")); err != nil {
		t.Errorf("write to a flow that had begun: %v", err)
	}
	if _, err := p.host.Dial(t.Context(), "tcp", "127.0.0.1:5000"); err == nil {
		t.Error("port 5000 is still listened on")
	}

	// And back again.
	listen(t, p.ns, "tcp", ":5000")
	p.listens(t, config.Inbound, config.TCP, 5000, 5001, 5002)
	onHost.Close()
	p.listens(t, config.Outbound, config.TCP)
	p.listens(t, config.Inbound, config.TCP, 5000, 5001, 5002)
}

// A port that another program on the host has is taken up when that lets go of it; until then
// everything else works.
func TestAutoWithAPortInUse(t *testing.T) {
	p := newPlace(t, nil)
	other := listen(t, p.host, "tcp", ":5000")
	listen(t, p.ns, "tcp", ":5000")
	listen(t, p.ns, "tcp", ":5001")
	table := parse(t, "-t auto")
	failures, err := p.Add(config.Inbound, table.Inbound...)
	if err != nil {
		t.Fatal(err)
	}
	if len(failures) != 1 || failures[0].Error() != "Listen failed for HOST TCP port */5000: Address already in use" {
		t.Errorf("failures %v", failures)
	}
	p.listens(t, config.Inbound, config.TCP, 5001)
	other.Close()
	p.listens(t, config.Inbound, config.TCP, 5000, 5001)
}

func TestAutoWithinARange(t *testing.T) {
	p := newPlace(t, nil)
	listen(t, p.ns, "tcp", ":6001")
	listen(t, p.ns, "tcp", ":7000")
	listen(t, p.ns, "tcp", ":8001")
	p.add(t, "-t 5000-5010:6000-6010,8000-8010,~8001,auto")
	p.listens(t, config.Inbound, config.TCP, 5001)
	listen(t, p.ns, "tcp", ":8002")
	p.listens(t, config.Inbound, config.TCP, 5001, 8002)
}

// BenchmarkRescan is the work of a second with 10,000 sockets in the namespace: nothing has
// changed.
func BenchmarkRescan(b *testing.B) {
	var lim unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	lim.Cur = lim.Max
	unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	p := newPlace(b, nil)
	n := min(10000, int(lim.Max)/3)
	p.ns.Do(func() error {
		for i := range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Bind(fd, &unix.SockaddrInet4{Port: 40000 + i, Addr: [4]byte{127, 0, 0, 1}})
			}
			if err == nil {
				err = unix.Listen(fd, 1)
			}
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { unix.Close(fd) })
		}
		return nil
	})
	p.add(b, "-t auto", "-u auto", "-T auto", "-U auto")
	b.ReportAllocs()
	for b.Loop() {
		p.rescan()
	}
}

// BenchmarkListen opens and closes the 48,128 ports from 1024 to 49151, if so many descriptors can
// be had.
func BenchmarkListen(b *testing.B) {
	var lim unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	lim.Cur = lim.Max
	unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	p := newPlace(b, nil)
	last := min(49151, 1024+p.limit-1)
	table := parse(b, fmt.Sprintf("-t 1024-%d", last), fmt.Sprintf("-u 1024-%d", last))
	for b.Loop() {
		for _, r := range table.Inbound {
			if _, err := p.Add(config.Inbound, r); err != nil {
				b.Fatal(err)
			}
			if err := p.Remove(config.Inbound, r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(2*(last-1024+1)), "ports/op")
}
