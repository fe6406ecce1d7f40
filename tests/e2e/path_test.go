package e2e

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// Addresses beyond the far peer, which is a router to them.
var beyond = []struct {
	host, prohibited, unreachable, unrouted string
	// traceroute's, of what is unreachable: the kernel says less over IPv6
	mark string
}{
	{"10.78.0.1", "198.51.100.1", "198.51.100.65", "203.0.113.1", "!H"},
	{"fd78::1", "fd79::1", "fd80::1", "fd81::1", "!N"},
}

// beyondMTU is the MTU of the link from far to what is beyond.
const beyondMTU = 1300

// newRoutedBed makes a bed whose far peer is a router: to a network with a host, over a link of a
// small MTU, and to others that cannot be reached for this reason or that.
func newRoutedBed(t *testing.T) (*bed.Bed, *bed.NS) {
	t.Helper()
	b := newBed(t, defaultBed)
	end, err := bed.NewNS("beyond")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end.Close() })
	err = b.Far.IP(fmt.Sprintf("link add f1 mtu %d type veth peer name b0 netns %s", beyondMTU, end.Path()))
	if err != nil {
		t.Fatal(err)
	}
	// Without a link-local address, which duplicate detection holds back for two seconds and more,
	// a router does not ask for its neighbours, and drops what it is to forward.
	if err := errors.Join(b.Far.Sysctl("ipv6/conf/f1/accept_dad", "0"), end.Sysctl("ipv6/conf/b0/accept_dad", "0")); err != nil {
		t.Fatal(err)
	}
	err = b.Far.IP(`link set f1 up
addr add 10.78.0.2/24 dev f1
addr add fd78::2/64 dev f1 nodad
route add prohibit 198.51.100.0/26
route add unreachable 198.51.100.64/26
route add prohibit fd79::/64
route add unreachable fd80::/64`)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0",
	} {
		for _, n := range []*bed.NS{b.Far, end} {
			if err := n.Sysctl(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range []*bed.NS{b.Far, end} {
		// of both families; a namespace's own since Linux 6.13
		n.Sysctl("ipv4/icmp_msgs_burst", "10000")
	}
	err = end.IP(fmt.Sprintf(`link set b0 mtu %d up
addr add 10.78.0.1/24 dev b0
addr add fd78::1/64 dev b0 nodad
route add default via 10.78.0.2
route add ::/0 via fd78::2`, beyondMTU))
	if err != nil {
		t.Fatal(err)
	}
	return b, end
}

// hop is a line of traceroute's. A probe may be lost: kernels limit how many errors a second they
// send.
var hop = regexp.MustCompile(`(?m)^ *\d+ +(?:\* +)*([0-9a-f.:*]+)(?:  [0-9.]+ ms)?( !\S+)?`)

// A user types traceroute in the namespace and sees the routers behind the host.
func TestTraceroute(t *testing.T) {
	t.Parallel()
	b, _ := newRoutedBed(t)
	c := connect(t, b)
	for i, f := range families {
		to := beyond[i]
		for _, tt := range []struct {
			name string
			args []string
			to   string
			want []string
		}{
			{"UDP", nil, to.host, []string{f.far, to.host}},
			{"UDP from one port", []string{"-U", "-p", "40000"}, to.host, []string{f.far, to.host}},
			{"echo", []string{"-I"}, to.host, []string{f.far, to.host}},
			{"UDP prohibited", nil, to.prohibited, []string{f.far + " !X"}},
			{"echo prohibited", []string{"-I"}, to.prohibited, []string{f.far + " !X"}},
			{"UDP unreachable", nil, to.unreachable, []string{f.far + " " + to.mark}},
			{"echo unreachable", []string{"-I"}, to.unreachable, []string{f.far + " " + to.mark}},
			{"UDP unrouted", nil, to.unrouted, []string{f.far + " !N"}},
			{"echo unrouted", []string{"-I"}, to.unrouted, []string{f.far + " !N"}},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				args := append([]string{"-n", "-q", "3", "-N", "1", "-w", "2", "-m", "5"}, tt.args...)
				// On a busy machine all probes of a hop may be late or lost; then once more.
				var got []string
				var out string
				for try := 0; try < 3 && !slices.Equal(got, tt.want); try++ {
					var err error
					if out, err = c.target.Output(patience(t, limit), bed.Root, "traceroute", append(args, tt.to)...); err != nil {
						t.Fatal(err)
					}
					got = nil
					for _, m := range hop.FindAllStringSubmatch(out, -1) {
						got = append(got, m[1]+m[2])
					}
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("hops %q, want %q\n%s", got, tt.want, out)
				}
			})
		}
	}
}

// What the path says about a datagram is what a program in the namespace gets for it.
func TestErrorsOfThePath(t *testing.T) {
	t.Parallel()
	b, _ := newRoutedBed(t)
	c := connect(t, b)
	for i, f := range families {
		to := beyond[i]
		for _, tt := range []struct {
			name, to string
			want     [2]error // IPv4, IPv6
		}{
			{"port", to.host, [2]error{unix.ECONNREFUSED, unix.ECONNREFUSED}},
			{"prohibited", to.prohibited, [2]error{unix.EHOSTUNREACH, unix.EACCES}},
			{"unreachable", to.unreachable, [2]error{unix.EHOSTUNREACH, unix.ENETUNREACH}},
			{"unrouted", to.unrouted, [2]error{unix.ENETUNREACH, unix.ENETUNREACH}},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				conn, err := c.target.Dial(t.Context(), "udp", net.JoinHostPort(tt.to, "9"))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				// Without this the kernel keeps errors that may pass to itself (ip(7)).
				raw, _ := conn.(*net.UDPConn).SyscallConn()
				raw.Control(func(fd uintptr) {
					unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
					unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
				})
				if _, err := ask(conn, []byte("?")); !errors.Is(err, tt.want[i]) {
					t.Errorf("%v, want %v", err, tt.want[i])
				}
			})
		}
	}
}

// A program that asks for the path's MTU learns it.
func TestPathMTUIsFound(t *testing.T) {
	t.Parallel()
	b, _ := newRoutedBed(t)
	c := connect(t, b)
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, err := c.target.Dial(t.Context(), "udp", net.JoinHostPort(beyond[i].host, "9"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, _ := conn.(*net.UDPConn).SyscallConn()
			level, discover, do, mtu := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU
			if i == 1 {
				level, discover, do, mtu = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU
			}
			raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, discover, do) })
			if err != nil {
				t.Fatal(err)
			}
			var got int
			waitFor(t, "the path's MTU", func() bool {
				conn.Write(make([]byte, 1400)) // refused for its length once that is known
				raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), level, mtu) })
				return err != nil || got == beyondMTU
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// ping says which hop has dropped its request, and how far the answer has come.
func TestPingSeesTheHops(t *testing.T) {
	t.Parallel()
	b, _ := newRoutedBed(t)
	c := connect(t, b)
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			out, err := c.target.Output(patience(t, limit), bed.Root, "ping", "-n", "-c", "1", "-W", "5", beyond[i].host)
			if err != nil || !strings.Contains(out, "ttl=63") {
				t.Errorf("%v, %s", err, out)
			}
			out, _ = c.target.Output(patience(t, limit), bed.Root, "ping", "-n", "-c", "1", "-W", "5", "-t", "1", beyond[i].host)
			if !strings.Contains(strings.ToLower(out), "from "+f.far) || !strings.Contains(strings.ToLower(out), "time") || !strings.Contains(out, "xceeded") {
				t.Errorf("ping with a TTL of 1: %s", out)
			}
		})
	}
}

// A resolver that is down is noticed at once, also by the address that stands for it.
func TestResolverThatIsDownIsRefused(t *testing.T) {
	t.Parallel()
	const alias = "10.99.0.1"
	c := connect(t, newBed(t, defaultBed), "--dns-forward", alias, "--dns-host", bed.FarAddr4)
	conn, err := c.target.Dial(t.Context(), "udp", alias+":53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := ask(conn, []byte("?")); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%v, want ECONNREFUSED", err)
	}
}
