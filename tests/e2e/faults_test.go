package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// living is flows that have begun before something goes wrong, and that it is no business of.
type living struct {
	name         string
	target, peer *net.TCPConn
	datagrams    net.Conn // from the target to somebody who returns them
}

// living begins flows from the target to addr, which far has.
func (c *connection) living(t *testing.T, addr string) *living {
	t.Helper()
	l := &living{name: addr}
	l.target, l.peer = c.pair(t, addr)
	var err error
	if l.datagrams, err = c.target.Dial(patience(t, limit), "udp", c.datagrams(t, addr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.datagrams.Close() })
	l.goOn(t, "at first")
	l.goOn(t, "again") // a flow of datagrams that was answered twice gives way to none
	return l
}

// goOn has the flows carry something, each way.
func (l *living) goOn(t *testing.T, when string) {
	t.Helper()
	for _, conn := range []net.Conn{l.target, l.peer} {
		conn.SetDeadline(time.Now().Add(limit))
	}
	for _, way := range [][2]net.Conn{{l.target, l.peer}, {l.peer, l.target}} {
		if err := tell(way[0], way[1]); err != nil {
			t.Errorf("%s: TCP with %s: %v", when, l.name, err)
		}
	}
	if _, err := ask(l.datagrams, []byte("still there?")); err != nil {
		t.Errorf("%s: UDP with %s: %v", when, l.name, err)
	}
}

// tell has a say something that b must hear.
func tell(a, b net.Conn) error {
	want := []byte("still there, " + time.Now().String())
	if _, err := a.Write(want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(b, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%q arrives as %q", want, got)
	}
	return nil
}

// fewFiles lets the translator open no more than left files beside those it has, until the function
// returned is called.
func (c *connection) fewFiles(t *testing.T, left int) (enough func()) {
	t.Helper()
	pid := c.translator(t)
	// as the user who may without privileges (getrlimit(2))
	prlimit := func(args ...string) string {
		out, err := c.Host.Output(patience(t, limit), bed.Nobody, "prlimit", append(args, "--pid", strconv.Itoa(pid))...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	many := prlimit("--nofile", "--output", "SOFT", "--noheadings")
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	used := make(map[int]bool)
	for _, e := range d {
		n, _ := strconv.Atoi(e.Name())
		used[n] = true
	}
	// The lowest numbers that are free are given out; those from the limit on are not.
	few := 0
	for ; used[few] || left > 0; few++ {
		if !used[few] {
			left--
		}
	}
	prlimit(fmt.Sprintf("--nofile=%d:", few))
	return func() { prlimit("--nofile=" + many + ":") }
}

// translator is the process that has the tap: that of c with the most files.
func (c *connection) translator(t *testing.T) (pid int) {
	t.Helper()
	most := 0
	for _, p := range c.usage(t).PIDs {
		if d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p)); err == nil && len(d) > most {
			pid, most = p, len(d)
		}
	}
	return pid
}

// settled is what the translator has in use when connections that were closed have ended.
func (c *connection) settled(t *testing.T) (u bed.Usage) {
	t.Helper()
	same := 0
	waitFor(t, "connections to end", func() bool {
		now := c.usage(t)
		if same++; now.FDs != u.FDs {
			same = 0
		}
		u = now
		return same == 20
	})
	return u
}

// try has the target connect to addr once and exchange something, within d.
func (c *connection) try(t *testing.T, ns *bed.NS, addr string, d time.Duration) error {
	t.Helper()
	conn, err := ns.Dial(patience(t, d), "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(d))
	return tell(conn, conn)
}

// tryDatagram sends one datagram from a fresh port of ns to addr, and waits for it to come back.
func (c *connection) tryDatagram(t *testing.T, ns *bed.NS, addr string, d time.Duration) error {
	t.Helper()
	conn, err := ns.Dial(patience(t, d), "udp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(d))
	return errors.Join(tell(conn, conn), tell(conn, conn))
}

// tryPing pings far once.
func (c *connection) tryPing(t *testing.T, far string, d time.Duration) error {
	_, err := c.target.Output(patience(t, limit), bed.Root, "ping", "-n", "-c", "1", "-W", fmt.Sprint(d.Seconds()), far)
	return err
}

// The translator runs out of files: what is new is refused or waits, what is there goes on, and
// when there are files again, all is as before.
func TestTranslatorRunsOutOfFiles(t *testing.T) {
	t.Parallel()
	const short = time.Second
	c := connect(t, newBed(t, defaultBed), "-t", "7000", "-u", "7001", "-T", "7002", "-U", "7003")
	echoStreams(t, c.Far, ":7000")
	echoStreams(t, c.target.NS, ":7000")
	echoStreams(t, c.Host, ":7002")
	for _, f := range families {
		echoDatagrams(t, c.Far, net.JoinHostPort(f.far, "7001"))
	}
	echoDatagrams(t, c.target.NS, ":7001")
	echoDatagrams(t, c.Host, "127.0.0.1:7003")
	old := []*living{c.living(t, bed.FarAddr4), c.living(t, bed.FarAddr6)}
	ways := []struct {
		name, network string
		ns            *bed.NS
		addr          string
	}{
		{"TCP out", "tcp", c.target.NS, net.JoinHostPort(bed.FarAddr4, "7000")},
		{"TCP out, IPv6", "tcp", c.target.NS, net.JoinHostPort(bed.FarAddr6, "7000")},
		{"TCP in", "tcp", c.Far, net.JoinHostPort(bed.HostAddr4, "7000")},
		{"TCP in, IPv6", "tcp", c.Far, net.JoinHostPort(bed.HostAddr6, "7000")},
		{"TCP spliced in", "tcp", c.Host, "127.0.0.1:7000"},
		{"TCP spliced out", "tcp", c.target.NS, "127.0.0.1:7002"},
		{"UDP out", "udp", c.target.NS, net.JoinHostPort(bed.FarAddr4, "7001")},
		{"UDP out, IPv6", "udp", c.target.NS, net.JoinHostPort(bed.FarAddr6, "7001")},
		{"UDP in", "udp", c.Far, net.JoinHostPort(bed.HostAddr4, "7001")},
		{"UDP in, IPv6", "udp", c.Far, net.JoinHostPort(bed.HostAddr6, "7001")},
		{"UDP spliced in", "udp", c.Host, "127.0.0.1:7001"},
		{"UDP spliced out", "udp", c.target.NS, "127.0.0.1:7003"},
		{"echo", "ping", c.target.NS, bed.FarAddr4},
		{"echo, IPv6", "ping", c.target.NS, bed.FarAddr6},
	}
	try := func(i int, d time.Duration) error {
		switch w := ways[i]; w.network {
		case "tcp":
			return c.try(t, w.ns, w.addr, d)
		case "udp":
			return c.tryDatagram(t, w.ns, w.addr, d)
		default:
			return c.tryPing(t, w.addr, d)
		}
	}
	for i, w := range ways { // what is kept for later is there then
		if w.network == "ping" {
			continue // such a flow would give way to others, and those would work
		}
		if err := try(i, limit); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
	}
	before := c.settled(t)

	enough := c.fewFiles(t, 0)
	late, err := c.Far.Dial(patience(t, limit), "tcp", net.JoinHostPort(bed.HostAddr4, "7000"))
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	// a spliced one may work, or leave its file to another
	for _, spliced := range []bool{false, true} {
		var trying sync.WaitGroup
		for i, w := range ways {
			if strings.Contains(w.name, "spliced") != spliced {
				continue
			}
			trying.Go(func() {
				switch err := try(i, short); {
				case err == nil && !spliced && !strings.HasPrefix(w.name, "UDP in"): // has the listener's socket
					t.Errorf("%s works without a file for it", w.name)
				case strings.HasPrefix(w.name, "TCP out") && !errors.Is(err, unix.ECONNREFUSED):
					t.Errorf("%s: %v, want ECONNREFUSED", w.name, err)
				}
			})
		}
		trying.Wait()
	}
	for _, l := range old {
		l.goOn(t, "without files")
	}
	if used := c.usage(t).CPU - before.CPU; used > 5*time.Second {
		t.Errorf("%v of CPU time to wait for files", used)
	}
	enough()

	late.SetDeadline(time.Now().Add(limit))
	if err := tell(late, late); err != nil {
		t.Errorf("a peer that has waited: %v", err)
	}
	late.Close()
	for i, w := range ways {
		if err := try(i, limit); err != nil {
			t.Errorf("%s, with files again: %v", w.name, err)
		}
	}
	for _, l := range old {
		l.goOn(t, "with files again")
	}
	// What is left are flows of datagrams and echo requests, which stay for a while: of three files
	// where they are spliced, else of one.
	waitFor(t, "connections to end", func() bool { return c.usage(t).FDs <= before.FDs+2*3+4+2 })
	told := make(map[string]int)
	for line := range strings.Lines(c.proc.Stderr()) {
		text, _, _ := strings.Cut(line, " times=")
		if told[text]++; told[text] == 2 {
			t.Errorf("said more than once: %s", text)
		}
	}
	// Whatever was asked for first is what is said.
	if told["TCP: Unable to open socket for new connection"]+told["Dropping datagram with no flow"]+told["No socket for echo requests"] == 0 ||
		told["Can't accept connections"] == 0 {
		t.Errorf("nothing is said of it: %v", told)
	}
}

// nft runs commands of nft(8) on the host.
func (c *connection) nft(t *testing.T, script string) {
	t.Helper()
	if _, err := c.Host.Output(patience(t, limit), bed.Root, "nft", script); err != nil {
		t.Fatal(err)
	}
}

// refusedDatagram sends from a fresh port of the target to addr until it is told why that is
// refused.
func (c *connection) refusedDatagram(t *testing.T, addr string) error {
	t.Helper()
	conn, err := c.target.Dial(patience(t, limit), "udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = ask(conn, []byte("?"))
	return err
}

// A firewall on the host forbids the translator this and that: programs in the namespace notice as
// they would without it between, and everything else goes on.
func TestFirewallOfTheHost(t *testing.T) {
	t.Parallel()
	const short = 500 * time.Millisecond
	c := connect(t, newBed(t, defaultBed), "-t", "none", "-u", "none", "-T", "none", "-U", "none")
	old := []*living{c.living(t, bed.FarAddr4), c.living(t, bed.FarAddr6)}
	for _, f := range families {
		for _, port := range []string{"81", "82", "83"} {
			echoStreams(t, c.Far, net.JoinHostPort(f.far, port))
			echoDatagrams(t, c.Far, net.JoinHostPort(f.far, port))
		}
	}
	const rules = `table inet f {
chain out {
type filter hook output priority 0
tcp dport 81 drop
udp dport 81 drop
tcp dport 82 reject with tcp reset
udp dport 82 reject
tcp dport 83 reject
udp dport 83 reject with icmpx admin-prohibited
}
}`
	c.nft(t, rules)
	for _, f := range families {
		at := func(port string) string { return net.JoinHostPort(f.far, port) }
		for _, port := range []string{"82", "83"} {
			if err := c.try(t, c.target.NS, at(port), limit); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: TCP that is rejected: %v, want ECONNREFUSED", at(port), err)
			}
		}
		if err := c.refusedDatagram(t, at("82")); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: UDP that is rejected: %v, want ECONNREFUSED", at("82"), err)
		}
		if err := c.try(t, c.target.NS, at("81"), short); err == nil {
			t.Errorf("%s: TCP that is dropped is answered", at("81"))
		}
		if err := c.tryDatagram(t, c.target.NS, at("81"), short); err == nil {
			t.Errorf("%s: UDP that is dropped is answered", at("81"))
		}
		if err := c.tryDatagram(t, c.target.NS, at("83"), short); err == nil {
			t.Errorf("%s: UDP that is prohibited is answered", at("83"))
		}
	}
	for _, l := range old {
		l.goOn(t, "beside a firewall")
	}

	// Now it is the flows that there are.
	c.nft(t, "flush chain inet f out; add rule inet f out drop")
	for _, l := range old {
		l.target.Write([]byte("early"))
		l.datagrams.Write([]byte("lost"))
	}
	c.nft(t, "delete table inet f")
	for _, l := range old {
		l.peer.SetDeadline(time.Now().Add(limit))
		if _, err := io.ReadFull(l.peer, make([]byte, 5)); err != nil {
			t.Errorf("%s: what was dropped and sent again: %v", l.name, err)
		}
		l.goOn(t, "without a firewall")
	}
	for _, f := range families {
		for _, port := range []string{"81", "82", "83"} {
			addr := net.JoinHostPort(f.far, port)
			if err := c.try(t, c.target.NS, addr, limit); err != nil {
				t.Errorf("TCP to %s without a firewall: %v", addr, err)
			}
			if err := c.tryDatagram(t, c.target.NS, addr, limit); err != nil {
				t.Errorf("UDP to %s without a firewall: %v", addr, err)
			}
		}
	}
}

// The address that --outbound names is taken from the host: connections are made without it, and
// what cannot be done without it works again when it is back.
func TestOutboundAddressGoesAway(t *testing.T) {
	t.Parallel()
	const short = 500 * time.Millisecond
	b := newBed(t, defaultBed)
	const addresses = "address add 10.77.0.22/24 dev h0\naddress add fd77::22/64 dev h0 nodad preferred_lft 0"
	if err := b.Host.IP(addresses); err != nil {
		t.Fatal(err)
	}
	c := connect(t, b, "-o", "10.77.0.22", "-o", "fd77::22", "-t", "none", "-u", "none", "-T", "none", "-U", "none")
	for _, f := range families {
		echoStreams(t, c.Far, net.JoinHostPort(f.far, "7000"))
		echoDatagrams(t, c.Far, net.JoinHostPort(f.far, "7001"))
	}
	c.living(t, bed.FarAddr4).goOn(t, "with the address")
	if err := b.Host.IP("address del 10.77.0.22/24 dev h0\naddress del fd77::22/64 dev h0"); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if err := c.try(t, c.target.NS, net.JoinHostPort(f.far, "7000"), limit); err != nil {
			t.Errorf("%s: TCP without the address: %v", f.name, err)
		}
		if err := c.tryDatagram(t, c.target.NS, net.JoinHostPort(f.far, "7001"), short); err == nil {
			t.Errorf("%s: UDP works without the address it is to come from", f.name)
		}
		if err := c.tryPing(t, f.far, 5*time.Second); err != nil {
			t.Errorf("%s: echo without the address: %v", f.name, err)
		}
	}
	if err := b.Host.IP(addresses); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if err := c.try(t, c.target.NS, net.JoinHostPort(f.far, "7000"), limit); err != nil {
			t.Errorf("%s: TCP with the address again: %v", f.name, err)
		}
		if err := c.tryDatagram(t, c.target.NS, net.JoinHostPort(f.far, "7001"), limit); err != nil {
			t.Errorf("%s: UDP with the address again: %v", f.name, err)
		}
	}
	for _, text := range []string{"Can't bind TCP outbound socket to 10.77.0.22:0", "Can't bind TCP outbound socket to fd77::22:0"} {
		if !strings.Contains(c.proc.Stderr(), text) {
			t.Errorf("%q is not said: %s", text, c.proc.Stderr())
		}
	}
}

// The host loses its address or its link for a while: connections by that way stall as they would
// on the host, new ones fail at once, everything else goes on, and afterwards all is as before.
func TestLinkOfTheHostGoesAway(t *testing.T) {
	t.Parallel()
	const restore = "route replace default via " + bed.FarAddr4 + "\nroute replace ::/0 via " + bed.FarAddr6
	for _, tt := range []struct{ name, gone, back string }{
		{"address", "address del " + bed.HostAddr4 + "/24 dev h0\naddress del " + bed.HostAddr6 + "/64 dev h0\nroute del ::/0",
			"address add " + bed.HostAddr4 + "/24 dev h0\naddress add " + bed.HostAddr6 + "/64 dev h0 nodad\n" + restore},
		{"link", "link set h0 down",
			"link set h0 up\naddress replace " + bed.HostAddr6 + "/64 dev h0 nodad\n" + restore},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, defaultBed)
			c := connect(t, b, "-t", "7000", "-u", "none", "-T", "7002", "-U", "none", "--map-host-loopback", "10.99.0.1", "--map-host-loopback", "fd99::1")
			for _, f := range families {
				echoStreams(t, c.Far, net.JoinHostPort(f.far, "7000"))
				echoDatagrams(t, c.Far, net.JoinHostPort(f.far, "7001"))
			}
			echoStreams(t, c.target.NS, ":7000")
			echoStreams(t, c.Host, ":7002")
			old := []*living{c.living(t, bed.FarAddr4), c.living(t, bed.FarAddr6)}
			// by the tap to the host's loopback
			own, err := c.target.Dial(patience(t, limit), "tcp", "10.99.0.1:7002")
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			beside := func(when string) {
				t.Helper()
				own.SetDeadline(time.Now().Add(limit))
				if err := tell(own, own); err != nil {
					t.Errorf("%s: connection to the host's loopback: %v", when, err)
				}
				for addr, ns := range map[string]*bed.NS{"127.0.0.1:7000": c.Host, "127.0.0.1:7002": c.target.NS, "10.99.0.1:7002": c.target.NS, "[fd99::1]:7002": c.target.NS} {
					if err := c.try(t, ns, addr, limit); err != nil {
						t.Errorf("%s: new connection to %s: %v", when, addr, err)
					}
				}
			}
			beside("before")

			if err := b.Host.IP(tt.gone); err != nil {
				t.Fatal(err)
			}
			for _, l := range old {
				l.target.SetDeadline(time.Now().Add(limit))
				if _, err := l.target.Write([]byte("early")); err != nil {
					t.Errorf("%s: %v", l.name, err)
				}
				l.datagrams.Write([]byte("lost"))
			}
			for _, f := range families {
				if err := c.try(t, c.target.NS, net.JoinHostPort(f.far, "7000"), limit); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: new connection without a way: %v, want an error at once", f.name, err)
				}
				if err := c.tryDatagram(t, c.target.NS, net.JoinHostPort(f.far, "7001"), 300*time.Millisecond); err == nil {
					t.Errorf("%s: a datagram is answered without a way", f.name)
				}
			}
			beside("meanwhile")
			if err := b.Host.IP(tt.back); err != nil {
				t.Fatal(err)
			}
			for _, l := range old {
				l.peer.SetDeadline(time.Now().Add(limit))
				if _, err := io.ReadFull(l.peer, make([]byte, 5)); err != nil {
					t.Errorf("%s: what was sent meanwhile: %v", l.name, err)
				}
				l.goOn(t, "afterwards")
			}
			for _, f := range families {
				if err := c.try(t, c.target.NS, net.JoinHostPort(f.far, "7000"), limit); err != nil {
					t.Errorf("%s: new connection afterwards: %v", f.name, err)
				}
				if err := c.tryDatagram(t, c.target.NS, net.JoinHostPort(f.far, "7001"), limit); err != nil {
					t.Errorf("%s: datagram afterwards: %v", f.name, err)
				}
			}
			beside("afterwards")
		})
	}
}

// The resolver falls silent, is gone, and comes back, under the address that stands for it: each
// time a program in the namespace gets what it would get on the host.
func TestResolverComesAndGoes(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "--dns-forward", "198.51.100.1", "--dns-forward", "2001:db8::53", "--dns-host", bed.FarAddr6)
	old := c.living(t, bed.FarAddr4)
	for i, alias := range []string{"198.51.100.1:53", "[2001:db8::53]:53"} {
		t.Run(families[i].name, func(t *testing.T) {
			real := net.JoinHostPort(families[i].far, "53")
			// One that asks from the same port all the time.
			stub, err := c.target.Dial(patience(t, limit), "udp", alias)
			if err != nil {
				t.Fatal(err)
			}
			defer stub.Close()
			for round := range 2 {
				t.Run(fmt.Sprintf("answers %d", round), func(t *testing.T) {
					resolver(t, b.Far, real)
					for _, network := range []string{"udp", "tcp"} {
						if got, err := c.resolve(t, network, alias); err != nil || got != real {
							t.Errorf("%s: answered by %q, %v", network, got, err)
						}
					}
					// Errors of earlier queries come first.
					waitFor(t, "an answer to the old port", func() bool {
						got, err := ask(stub, query(t))
						return err == nil && len(got) > 12
					})
				})
				t.Run(fmt.Sprintf("silent %d", round), func(t *testing.T) {
					silent, err := b.Far.ListenPacket("udp", real)
					if err != nil {
						t.Fatal(err)
					}
					defer silent.Close()
					stub.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
					stub.Write(query(t))
					if n, err := stub.Read(make([]byte, 512)); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("%d bytes, %v, want silence", n, err)
					}
					silent.SetDeadline(time.Now().Add(limit))
					if _, _, err := silent.ReadFrom(make([]byte, 512)); err != nil {
						t.Errorf("the query has not come: %v", err)
					}
				})
				t.Run(fmt.Sprintf("gone %d", round), func(t *testing.T) {
					if _, err := ask(stub, query(t)); !errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("UDP from the old port: %v, want ECONNREFUSED", err)
					}
					for _, network := range []string{"udp", "tcp"} {
						if _, err := c.resolve(t, network, alias); !errors.Is(err, unix.ECONNREFUSED) {
							t.Errorf("%s: %v, want ECONNREFUSED", network, err)
						}
					}
				})
			}
		})
	}
	old.goOn(t, "at the end")
}
