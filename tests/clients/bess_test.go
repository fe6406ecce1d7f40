package clients

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// TestSlirpBESS: with --target-type=bess a machine, of User Mode Linux, connects to a socket and
// sends and receives its frames in packets. Here it is a namespace.
func TestSlirpBESS(t *testing.T) {
	t.Parallel()
	beside(t, func(t *testing.T, program string) {
		b := newBed(t)
		greet(t, b.Far, ":5000")
		echo(t, b.Far, bed.FarAddr4+":5000")
		greet(t, b.Host, "127.0.0.1:5001")
		target, err := b.Target(patience(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(scratch(t), "socket")
		ready, readyW := pipe(t)
		exitR, exit := pipe(t)
		cmd := exec.Command(program, "--target-type=bess", "-r", "3", "-e", "4", path)
		cmd.ExtraFiles = []*os.File{readyW, exitR}
		s := &slirp{Bed: b, target: target}
		if s.proc, err = b.Host.Spawn(bed.Nobody, cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.proc.Stop(limit) })
		readyW.Close()
		exitR.Close()
		var conn net.Conn
		waitFor(t, "the socket", func() bool { conn, err = net.Dial("unixpacket", path); return err == nil })
		machine(t, target.NS, conn)
		// It is ready now that it is connected, and for nobody else.
		if said, err := io.ReadAll(ready); string(said) != "1" {
			t.Fatalf("ready: %q, %v: %s", said, err, s.proc.Stderr())
		}
		if other, err := net.Dial("unixpacket", path); err == nil {
			t.Error("another one can connect")
			other.Close()
		}
		s.reaches(t, bed.FarAddr4+":5000", bed.HostAddr4)
		s.asks(t, bed.FarAddr4+":5000", bed.HostAddr4)
		s.reaches(t, "10.0.2.2:5001", "127.0.0.1")
		exit.Close()
		if status := s.proc.Status(); status != 0 {
			t.Errorf("status %d: %s", status, s.proc.Stderr())
		}
		if !strings.Contains(s.proc.Stderr(), "Waiting for connection to "+path+"\n") {
			t.Errorf("standard error %q", s.proc.Stderr())
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the socket: %v", err)
		}
	})
}

// machine gives the namespace ns a tap whose frames conn carries.
func machine(t *testing.T, ns *bed.NS, conn net.Conn) {
	t.Helper()
	var tap *os.File
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("vec0")
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		tap = os.NewFile(uintptr(fd), "tap") // not before: what is no tap yet cannot be waited for
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = ns.IP("link set vec0 up\naddress add 10.0.2.100/24 dev vec0\nroute add default via 10.0.2.2")
	if err != nil {
		t.Fatal(err)
	}
	var wires sync.WaitGroup
	for _, wire := range []struct {
		from io.Reader
		to   io.Writer
	}{{tap, conn}, {conn, tap}} {
		wires.Go(func() {
			b := make([]byte, 1<<16)
			for {
				n, err := wire.from.Read(b)
				if err != nil {
					return
				}
				if _, err := wire.to.Write(b[:n]); err != nil {
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		conn.Close()
		tap.Close()
		wires.Wait()
	})
}
