package sock

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

var loopbacks = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}

// Nobody has these: documentation (RFC 5737, RFC 3849).
var foreign = map[bool]netip.Addr{true: netip.MustParseAddr("192.0.2.77"), false: netip.MustParseAddr("2001:db8::77")}

// host returns a Host as change makes it.
func host(log *zap.Logger, change ...func(*Host)) *Host {
	h := &Host{Log: log}
	for _, f := range change {
		f(h)
	}
	return h
}

func fromForeign(h *Host)   { h.Out4, h.Out6 = foreign[true], foreign[false] }
func throughLo(h *Host)     { h.Device4, h.Device6 = "lo", "lo" }
func throughNone(h *Host)   { h.Device4, h.Device6 = "nonesuch0", "nonesuch0" }
func bindingFreely(h *Host) { h.FreeBind = true }

// TestDialDoesWithout: a connection is made without the source address or the interface that cannot
// be had, and a warning says so in words that others match.
func TestDialDoesWithout(t *testing.T) {
	for _, loop := range loopbacks {
		name := "IPv4"
		if loop.Is6() {
			name = "IPv6"
		}
		for _, tt := range []struct {
			name   string
			change []func(*Host)
			want   []string // warnings
		}{
			{"nothing asked for", nil, nil},
			{"interface", []func(*Host){throughLo}, nil},
			{"address of nobody", []func(*Host){fromForeign}, []string{"Can't bind TCP outbound socket to " + foreign[loop.Is4()].String() + ":0"}},
			{"no such interface", []func(*Host){throughNone}, []string{"Can't bind " + name + " TCP socket to interface nonesuch0"}},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(loop, 0)))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				core, logs := observer.New(zap.WarnLevel)
				to := netip.AddrPortFrom(loop, l.Addr().(*net.TCPAddr).AddrPort().Port())
				fd, err := host(zap.New(core), tt.change...).Dial(to)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				var got []string
				for _, e := range logs.All() {
					got = append(got, e.Message)
				}
				if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
					t.Errorf("warnings %q, want %q", got, tt.want)
				}
				if v, _ := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY); v != 1 {
					t.Error("TCP_NODELAY is not set")
				}
				if p, ok := Peer(fd); !ok || p != to {
					t.Errorf("Peer = %v, %v, want %v", p, ok, to)
				}
			})
		}
	}
}

// TestUDPNeeds: a datagram socket is what was asked for, or is not made. Loopback destinations are
// not reached through any other interface and are left alone.
func TestUDPNeeds(t *testing.T) {
	for _, loop := range loopbacks {
		far := foreign[loop.Is4()]
		for _, tt := range []struct {
			name   string
			to     netip.Addr
			change []func(*Host)
			want   error
		}{
			{"nothing asked for", loop, nil, nil},
			{"address of nobody", loop, []func(*Host){fromForeign}, unix.EADDRNOTAVAIL},
			{"no such interface", far, []func(*Host){throughNone}, unix.ENODEV},
			{"no such interface to loopback", loop, []func(*Host){throughNone}, nil},
		} {
			t.Run(loop.String()+"/"+tt.name, func(t *testing.T) {
				fd, _, err := host(nil, tt.change...).UDP(0, netip.AddrPortFrom(tt.to, 9))
				if err == nil {
					unix.Close(fd)
				}
				if !errors.Is(err, tt.want) {
					t.Errorf("UDP = %v, want %v", err, tt.want)
				}
			})
		}
		t.Run(loop.String()+"/address of nobody, freely", func(t *testing.T) {
			fd, _, err := host(nil, fromForeign, bindingFreely).UDP(0, netip.AddrPortFrom(far, 9))
			if errors.Is(err, unix.ENETUNREACH) {
				t.Skip("no route from here")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
		})
		t.Run(loop.String()+"/no such interface, echo", func(t *testing.T) {
			fd, err := host(nil).Ping(loop)
			if errors.Is(err, os.ErrPermission) {
				t.Skip("no ping sockets here")
			}
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			if _, err := host(nil, throughNone).Ping(far); !errors.Is(err, unix.ENODEV) {
				t.Errorf("Ping = %v, want %v", err, unix.ENODEV)
			}
		})
	}
}

func TestPeer(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if a, ok := Peer(fd); ok {
		t.Errorf("Peer of an unconnected socket is %v", a)
	}
	// IPv4 on a socket of IPv6.
	if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr("127.0.0.1").As16(), Port: 7}); err != nil {
		t.Fatal(err)
	}
	if a, ok := Peer(fd); !ok || a != netip.MustParseAddrPort("127.0.0.1:7") {
		t.Errorf("Peer = %v, %v", a, ok)
	}
	if a, ok := AddrPort(&unix.RawSockaddrInet6{Family: unix.AF_UNIX}); ok {
		t.Errorf("address %v of another family", a)
	}
}
