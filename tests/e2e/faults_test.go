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
	prlimit := func(args ...string) string { // as the user who may without privileges (getrlimit(2))
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

// The translator runs out of files: what is new is refused or waits, what is there goes on, and when
// there are files again, all is as before.
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
	for _, spliced := range []bool{false, true} { // a spliced one may work, or leave its file to another
		var trying sync.WaitGroup
		for i, w := range ways {
			if strings.Contains(w.name, "spliced") != spliced {
				continue
			}
			trying.Go(func() {
				switch err := try(i, short); {
				case err == nil && !spliced:
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
	// What is left are flows of datagrams and echo requests, which stay for a while: of three files where
	// they are spliced, else of one.
	waitFor(t, "connections to end", func() bool { return c.usage(t).FDs <= before.FDs+2*3+4+2 })
	told := make(map[string]int)
	for line := range strings.Lines(c.proc.Stderr()) {
		text, _, _ := strings.Cut(line, " {")
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
