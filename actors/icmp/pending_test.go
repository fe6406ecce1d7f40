package icmp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// exceed has the namespace's kernel hear that the requests of the ping socket fd to its loopback
// address were dropped on the way, so many times.
func (n *namespace) exceed(fam family, fd, times int) (err error) {
	done := make(chan struct{})
	n.calls <- func() {
		defer close(done)
		local, _ := sock.Local(fd)
		echo := make([]byte, 16)
		echo[0] = fam.request
		binary.BigEndian.PutUint16(echo[4:], local.Port()) // its identifier
		lo := frame.AddrOf(fam.loopback)
		ip := frame.IP{Src: lo, Dst: lo, Proto: frame.ProtoICMP, TTL: 1, Len: len(echo)}
		m, domain, proto := []byte{11, 0, 0, 0, 0, 0, 0, 0}, unix.AF_INET, unix.IPPROTO_ICMP
		var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
		if fam.request == 128 {
			ip.Proto = frame.ProtoICMPv6
			m[0], domain, proto = 3, unix.AF_INET6, unix.IPPROTO_ICMPV6
			to = &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}
		}
		head := make([]byte, frame.IPv6Len)
		m = append(append(m, head[:frame.PutIP(head, &ip)]...), echo...)
		if domain == unix.AF_INET { // over IPv6 the kernel puts it in
			binary.BigEndian.PutUint16(m[2:], frame.Checksum(m, 0))
		}
		var raw int
		if raw, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto); err != nil {
			return
		}
		defer unix.Close(raw)
		for range times {
			if err = unix.Sendto(raw, m, 0, to); err != nil {
				return
			}
		}
	}
	<-done
	return err
}

// dialed tells of the socket it has made.
type dialed struct {
	*namespace
	fds chan int
}

func (d dialed) Ping(a netip.Addr) (int, error) {
	fd, err := d.namespace.Ping(a)
	d.fds <- fd
	return fd, err
}

// TestNextProbeIsNotLostAfterAnError: what has become of one request is reported by the call that
// sends the next one, which goes out all the same: traceroute in the guest has no gap behind a
// router.
func TestNextProbeIsNotLostAfterAnError(t *testing.T) {
	n := newNamespace(t)
	forFamilies(t, func(t *testing.T, fam family) {
		d := dialed{n, make(chan int, 1)}
		b := newBed(t, fam, d, zap.NewNop())
		fd := <-d.fds
		for seq := range uint16(300) {
			reported := int(seq % 4)
			if err := n.exceed(fam, fd, reported); err != nil {
				t.Skipf("no error can be made: %v", err)
			}
			data := bytes.Repeat([]byte{byte(seq)}, int(seq))
			b.request(seq, data)
			for answered := false; !answered || reported > 0; {
				var f []byte
				select {
				case f = <-b.frames:
				case <-time.After(patience):
					t.Fatalf("request %d: answered %v, %d errors are missing", seq, answered, reported)
				}
				if typ := f[frame.L3Off+frame.IPv4Len]; fam.request == 8 && typ == 11 || fam.request == 128 && f[frame.L3Off+frame.IPv6Len] == 3 {
					reported--
					continue
				}
				got, with := b.replyIn(f)
				if got != seq || !bytes.Equal(with, data) {
					t.Fatalf("request %d is answered by %d with %d bytes", seq, got, len(with))
				}
				answered = true
			}
		}
	})
}
