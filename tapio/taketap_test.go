package tapio

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// TestTakeTap uses taps that somebody else has opened, with and without virtio_net_hdr.
func TestTakeTap(t *testing.T) {
	needRoot(t)
	for name, flags := range map[string]uint16{"plain": 0, "with header": unix.IFF_VNET_HDR} {
		t.Run(name, func(t *testing.T) {
			err := unshared(func() error {
				fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				ifr, err := unix.NewIfreq("given0")
				if err != nil {
					return err
				}
				ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
				if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
					return err
				}
				tap, err := TakeTap(fd, TapOptions{})
				if err != nil {
					return err
				}
				defer tap.Close()
				if tap.Name() != "given0" || (tap.Features()&VnetHeader != 0) != (flags != 0) {
					t.Errorf("%s has %v", tap.Name(), tap.Features())
				}
				if err := up("given0", 1500); err != nil {
					return err
				}
				b := make([]byte, frame.MaxFrame)
				// the kernel announces itself
				if n, err := tap.Read(b); err != nil || n < frame.L3Off {
					t.Errorf("Read = %d, %v", n, err)
				}
				if err := tap.Write(numbered(1)); err != nil && !errors.Is(err, ErrDropped) {
					t.Errorf("Write = %v", err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	if _, err := TakeTap(p[0], TapOptions{}); err == nil {
		t.Error("a socket is a tap")
	}
}
