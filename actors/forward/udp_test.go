package forward

import (
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/config"
)

// control builds one control message.
func control(level, typ int32, body []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(body)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(body)))
	copy(b[unix.CmsgLen(0):], body)
	return b
}

func pktinfo4(a string, index int32) []byte {
	info := unix.Inet4Pktinfo{Ifindex: index, Addr: netip.MustParseAddr(a).As4()}
	return control(unix.SOL_IP, unix.IP_PKTINFO, (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))[:])
}

func pktinfo6(a string, index uint32) []byte {
	info := unix.Inet6Pktinfo{Ifindex: index, Addr: netip.MustParseAddr(a).As16()}
	return control(unix.SOL_IPV6, unix.IPV6_PKTINFO, (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))[:])
}

func TestDestination(t *testing.T) {
	other := control(unix.SOL_SOCKET, unix.SCM_TIMESTAMP, make([]byte, 16))
	for _, tt := range []struct {
		name  string
		b     []byte
		want  string
		index uint32
	}{
		{"IPv4", pktinfo4("192.0.2.1", 3), "192.0.2.1", 3},
		{"IPv6", pktinfo6("2001:db8::1", 4), "2001:db8::1", 4},
		{"IPv4 in IPv6", pktinfo6("::ffff:192.0.2.1", 5), "192.0.2.1", 5},
		{"behind another message", append(other, pktinfo4("192.0.2.1", 3)...), "192.0.2.1", 3},
		{"another message", other, "", 0},
		{"none", nil, "", 0},
		{"cut short", pktinfo6("2001:db8::1", 4)[:30], "", 0},
		{"too short", control(unix.SOL_IP, unix.IP_PKTINFO, make([]byte, 4)), "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, index := destination(tt.b)
			if want := (netip.Addr{}); tt.want != "" {
				want = netip.MustParseAddr(tt.want)
				if got != want || index != tt.index {
					t.Errorf("%v by %d, want %v by %d", got, index, want, tt.index)
				}
			} else if got != want {
				t.Errorf("%v, want none", got)
			}
		})
	}
}

func FuzzDestination(f *testing.F) {
	f.Add(pktinfo4("192.0.2.1", 3))
	f.Add(pktinfo6("2001:db8::1", 4))
	f.Add(append(control(0, 0, nil), pktinfo4("192.0.2.1", 3)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, _ := destination(b); a.IsValid() && len(b) < unix.CmsgLen(unix.SizeofInet4Pktinfo) {
			t.Errorf("%v out of %d bytes", a, len(b))
		}
	})
}

// TestTapKnowsListenedPorts: the engine is told which UDP ports of the host are listened on, and
// when they are no more, also of rules that fail.
func TestTapKnowsListenedPorts(t *testing.T) {
	p := newPlace(t, nil)
	know := func(want map[uint16]int) {
		t.Helper()
		p.twin.mu.Lock()
		defer p.twin.mu.Unlock()
		for port, n := range p.twin.listens {
			if n != want[port] {
				t.Errorf("port %d: %d listeners, want %d", port, n, want[port])
			}
		}
		for port, n := range want {
			if p.twin.listens[port] != n {
				t.Errorf("port %d: %d listeners, want %d", port, p.twin.listens[port], n)
			}
		}
	}
	table := parse(t, "-u 7000-7002", "-u 192.0.2.10/7100", "-t 7200").Inbound
	if _, err := p.Add(config.Inbound, table...); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(config.Outbound, parse(t, "-U 7300").Outbound...); err != nil {
		t.Fatal(err)
	}
	all := map[uint16]int{7000: 1, 7001: 1, 7002: 1, 7100: 1}
	know(all)
	taken, err := p.host.ListenPacket("udp", ":7401")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	failing := parse(t, "-u 7400-7402").Inbound
	if _, err := p.Add(config.Inbound, failing...); err == nil {
		t.Fatal("a port is listened on twice")
	}
	know(all)
	if err := p.Remove(config.Inbound, table...); err != nil {
		t.Fatal(err)
	}
	know(nil)
}
