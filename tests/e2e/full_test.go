package e2e

import (
	"net"
	"regexp"
	"strconv"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// TestLinkOfTheHostIsFull: the queue of the host's interface takes no more for a while, and says so
// to who sends datagrams (ENOBUFS, udp(7) with IP_RECVERR). Those are lost as on any full link; no
// flow ends, and what does not go that way does not wait.
func TestLinkOfTheHostIsFull(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "-t", "7000", "-u", "none", "-T", "7002", "-U", "none")
	for _, f := range families {
		echoStreams(t, c.Far, net.JoinHostPort(f.far, "7000"))
		echoDatagrams(t, c.Far, net.JoinHostPort(f.far, "7001"))
	}
	echoStreams(t, c.target.NS, ":7000")
	echoStreams(t, c.Host, ":7002")
	old := []*living{c.living(t, bed.FarAddr4), c.living(t, bed.FarAddr6)}

	tc := func(args ...string) string {
		t.Helper()
		out, err := c.Host.Output(patience(t, limit), bed.Root, "tc", args...)
		if err != nil {
			t.Fatalf("tc %v: %v", args, err)
		}
		return string(out)
	}
	tc("qdisc", "add", "dev", "h0", "root", "tbf", "rate", "2mbit", "burst", "2000", "limit", "4000")
	dropped := regexp.MustCompile(`dropped (\d+)`)
	waitFor(t, "datagrams to be dropped", func() bool {
		for range 20 {
			for _, l := range old {
				if _, err := l.datagrams.Write(make([]byte, 1200)); err != nil {
					t.Fatalf("%s: %v", l.name, err)
				}
			}
		}
		n, _ := strconv.Atoi(dropped.FindStringSubmatch(tc("-s", "qdisc", "show", "dev", "h0"))[1])
		return n >= 200
	})
	for _, l := range old { // TCP gets through
		l.target.SetDeadline(time.Now().Add(limit))
		if err := tell(l.target, l.peer); err != nil {
			t.Errorf("TCP with %s beside the datagrams: %v", l.name, err)
		}
	}
	for addr, ns := range map[string]*bed.NS{"127.0.0.1:7000": c.Host, "127.0.0.1:7002": c.target.NS} {
		if err := c.try(t, ns, addr, limit); err != nil {
			t.Errorf("connection to %s beside the full link: %v", addr, err)
		}
	}
	tc("qdisc", "del", "dev", "h0", "root")
	for _, l := range old {
		for buf := make([]byte, 2000); ; { // what comes back of the flood
			l.datagrams.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := l.datagrams.Read(buf); err != nil {
				break
			}
		}
		l.goOn(t, "with room again")
	}
}
