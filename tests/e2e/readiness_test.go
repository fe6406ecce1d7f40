package e2e

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// A port is forwarded when the launcher returns: a connection right after that, from afar and from
// the host itself, is never refused.
func TestForwardingIsReadyWhenTheLauncherEnds(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	target, err := b.Target(patience(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	l, err := target.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	pidFile := filepath.Join(scratch(t), "pid")
	rounds := 200
	if raceEnabled {
		rounds = 8
	}
	for i := range rounds {
		p, _ := start(t, b, "--config-net", "-q", "-P", pidFile, "-t", port, "-u", "none", "-T", "none", "-U", "none", strconv.Itoa(target.PID))
		if status := p.Status(); status != 0 {
			t.Fatalf("round %d: status %d: %s", i, status, p.Stderr())
		}
		from, to := b.Far, bed.HostAddr4
		switch i % 4 {
		case 1:
			to = bed.HostAddr6
		case 2:
			from, to = b.Host, "127.0.0.1"
		case 3:
			from, to = b.Host, "::1"
		}
		conn, err := from.Dial(patience(t, limit), "tcp", net.JoinHostPort(to, port))
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		conn.SetDeadline(time.Now().Add(limit))
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Fatalf("round %d: %q, %v", i, got, err)
		}
		conn.Close()
		pid, err := strconv.Atoi(strings.TrimSpace(text(t, pidFile)))
		if err != nil {
			t.Fatal(err)
		}
		unix.Kill(pid, unix.SIGTERM)
		if err := bed.Wait(patience(t, limit), "the daemon to end", func() (bool, error) {
			_, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
			return err != nil, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
