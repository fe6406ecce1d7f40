package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// TestTapIsDownForAWhile: frames for a device that is down are lost, and what has begun goes on
// when it is up again.
func TestTapIsDownForAWhile(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed), "-t", "7000")
	old := c.living(t, bed.FarAddr4)
	if err := c.target.IP("link set h0 down"); err != nil {
		t.Fatal(err)
	}
	const text = "while it is down"
	old.peer.SetDeadline(time.Now().Add(limit))
	if _, err := old.peer.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	// A connection from outside has the translator write to the device, too; the guest does not
	// answer.
	if conn, err := c.Far.Dial(patience(t, 300*time.Millisecond), "tcp", bed.HostAddr4+":7000"); err == nil {
		conn.Close()
	}
	// the far peer is on the link of its address
	if err := c.target.IP("link set h0 up"); err != nil {
		t.Fatal(err)
	}
	old.target.SetDeadline(time.Now().Add(limit))
	got := make([]byte, len(text))
	if _, err := io.ReadFull(old.target, got); err != nil || string(got) != text {
		t.Errorf("%q, %v", got, err)
	}
	old.goOn(t, "up again")
	select {
	case <-c.proc.Done():
		t.Errorf("ended with status %d: %s", c.proc.Status(), c.proc.Stderr())
	default:
	}
}

// TestReaderOfMessagesGoesAway: pasta -d 2>&1 | head does not end pasta.
func TestReaderOfMessagesGoesAway(t *testing.T) {
	t.Parallel()
	c := &connection{Bed: newBed(t, defaultBed)}
	var err error
	if c.target, err = c.Bed.Target(patience(t, limit)); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pidFile := filepath.Join(scratch(t), "pid")
	cmd := exec.Command(program, "-f", "-d", "--config-net", "--no-map-gw", "-P", pidFile, strconv.Itoa(c.target.PID))
	cmd.Stderr = w
	c.proc, err = c.Host.Spawn(bed.Nobody, cmd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.end(t) })
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the PID file", func() bool {
		text, err := os.ReadFile(pidFile)
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	r.Close()
	for i := range 3 { // each flow is a line
		c.living(t, bed.FarAddr4).goOn(t, fmt.Sprint("without a reader, ", i))
	}
	select {
	case <-c.proc.Done():
		t.Errorf("ended with status %d", c.proc.Status())
	default:
	}
}
