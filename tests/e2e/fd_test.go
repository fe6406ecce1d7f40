package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// ownTap opens a tap in t's namespace, configured and up, as the one who calls pasta with --fd
// does. mode is that of the descriptor.
func ownTap(t *testing.T, ns *bed.NS, mode int) *os.File {
	t.Helper()
	var f *os.File
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", mode|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("own0")
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		f = os.NewFile(uintptr(fd), "tap") // not before: what is no tap yet cannot be waited for
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	// With an address of its own, for which the kernel asks at once.
	err = ns.IP(fmt.Sprintf("link set own0 up\naddress add %s/24 dev own0\naddress add %s/64 dev own0 nodad\n"+
		"route add default via %s\nroute add default via %s", bed.HostAddr4, bed.HostAddr6, bed.FarAddr4, bed.FarAddr6))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestTapOfTheCaller: pasta uses a tap that its caller has opened, wherever that is, and ends with
// it.
func TestTapOfTheCaller(t *testing.T) {
	t.Parallel()
	ours := func(t *testing.T, mode int) *connection {
		c := &connection{Bed: newBed(t, defaultBed)}
		var err error
		if c.target, err = c.Bed.Target(patience(t, limit)); err != nil {
			t.Fatal(err)
		}
		f := ownTap(t, c.target.NS, mode)
		cmd := exec.Command(program, "-f", "-q", "--no-map-gw", "--fd", "3")
		cmd.ExtraFiles = []*os.File{f}
		if c.proc, err = c.Host.Spawn(bed.Nobody, cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.end(t) })
		f.Close()
		return c
	}
	t.Run("used", func(t *testing.T) {
		c := ours(t, unix.O_RDWR)
		for _, f := range families {
			c.transfer(t, f.far, both, 1, 1<<20)
		}
		if err := c.target.IP("link delete own0"); err != nil {
			t.Fatal(err)
		}
		if status := c.proc.Status(); status != 1 || c.proc.Stderr() != "EOF on tap device, exiting\n" {
			t.Errorf("status %d, %q", status, c.proc.Stderr())
		}
	})
	// Each of the device's errors by its name. A descriptor that cannot be written to is as good as
	// a device that takes nothing.
	for _, tc := range []struct {
		name string
		mode int
		text string
	}{
		{"not written to", unix.O_RDONLY, "Write error on tap device, exiting\n"},
		{"not read from", unix.O_WRONLY, "Error on tap device, exiting\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := ours(t, tc.mode)
			to, err := c.target.Dial(patience(t, limit), "udp", net.JoinHostPort(bed.FarAddr4, "9"))
			if err != nil {
				t.Fatal(err)
			}
			defer to.Close()
			waitFor(t, "the end", func() bool {
				to.Write([]byte("?")) // has the kernel ask for the gateway's address
				select {
				case <-c.proc.Done():
					return true
				default:
					return false
				}
			})
			if status := c.proc.Status(); status != 1 || !strings.HasSuffix(c.proc.Stderr(), tc.text) {
				t.Errorf("status %d, %q; want %q", status, c.proc.Stderr(), tc.text)
			}
		})
	}
}
