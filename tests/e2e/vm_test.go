package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// connectVM starts passt with args and connects a namespace to it as a hypervisor does a virtual
// machine: what the namespace's tap carries goes over the socket, frame by frame. The namespace has
// the addresses that passt assigns. The end is as with connect.
func connectVM(t *testing.T, b *bed.Bed, mtu int, args ...string) *connection {
	t.Helper()
	c := &connection{Bed: b}
	var err error
	if c.target, err = b.Target(patience(t, limit)); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(scratch(t), "socket")
	c.proc = passt(t, b, nil, append([]string{"-s", socket, "--no-map-gw", "-m", fmt.Sprint(mtu)}, args...)...)
	h := plugIn(t, socket)
	tap := ownTap(t, c.target.NS, unix.O_RDWR|unix.O_NONBLOCK)
	if err := c.target.IP(fmt.Sprintf("link set own0 mtu %d", mtu)); err != nil {
		t.Fatal(err)
	}
	var wires sync.WaitGroup
	wires.Go(func() { fromTap(h, tap) })
	wires.Go(func() { toTap(t, tap, h) })
	t.Cleanup(func() {
		h.Close()
		tap.Close()
		wires.Wait()
	})
	return c
}

func fromTap(to net.Conn, tap *os.File) {
	b := make([]byte, 4+1<<16)
	for {
		n, err := tap.Read(b[4:])
		if err != nil {
			return
		}
		binary.BigEndian.PutUint32(b, uint32(n))
		if _, err := to.Write(b[:4+n]); err != nil {
			return
		}
	}
}

func toTap(t *testing.T, tap *os.File, from net.Conn) {
	b := make([]byte, 1<<16)
	for {
		if _, err := io.ReadFull(from, b[:4]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(b)
		if n > uint32(len(b)) {
			t.Errorf("frame of %d bytes", n)
			return
		}
		if _, err := io.ReadFull(from, b[:n]); err != nil {
			return
		}
		if _, err := tap.Write(b[:n]); err != nil && !errors.Is(err, unix.EIO) { // not up yet
			return
		}
	}
}
