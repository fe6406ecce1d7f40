package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fusilli/config"
	"fusilli/tests/bed"
)

func dial(t testing.TB, n *bed.NS, network, from, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	d.SetMultipathTCP(false)
	if from != "" {
		ap := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
		d.LocalAddr = ap
		if strings.HasPrefix(network, "udp") {
			d.LocalAddr = &net.UDPAddr{IP: ap.IP, Port: ap.Port}
		}
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.Dial(network, addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Each row is one flow, from a client's address to one that is listened on.
func TestFlowsBegin(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-t 80:8080", "-t 1000-1002:2000-2002", "-t 192.0.2.10/90", "-t ::1/91", "-t %h0/92",
		"-t 0.0.0.0/93:192.0.2.30/9300", "-T 70:7070",
		"-u 80:8080", "-u 1000-1002:2000-2002", "-u 192.0.2.10/90", "-u ::1/91", "-u 0.0.0.0/93:192.0.2.30/9300", "-U 70:7070")
	for _, tt := range []struct {
		name     string
		inside   bool // the client is in the namespace
		network  string
		from, to string
		want     begun
	}{
		{"loopback", false, "tcp", "127.0.0.1:5001", "127.0.0.1:80", begun{"SPLICE TCP", "", "192.0.2.10:8080", nil}},
		{"IPv6 loopback", false, "tcp", "[::1]:5001", "[::1]:80", begun{"SPLICE TCP", "", "[2001:db8::10]:8080", nil}},
		{"own address", false, "tcp", "192.0.2.10:5001", "192.0.2.10:80", begun{"tap TCP", "192.0.2.1:5001", "192.0.2.10:8080", nil}},
		{"own IPv6 address", false, "tcp", "[2001:db8::10]:5001", "[2001:db8::10]:80", begun{"tap TCP", "[fe80::1]:5001", "[fe80::10]:8080", nil}},
		{"range", false, "tcp", "127.0.0.1:5002", "127.0.0.1:1001", begun{"SPLICE TCP", "", "192.0.2.10:2001", nil}},
		{"bound address", false, "tcp", "192.0.2.10:5003", "192.0.2.10:90", begun{"tap TCP", "192.0.2.1:5003", "192.0.2.10:90", nil}},
		{"bound IPv6 address", false, "tcp", "[::1]:5003", "[::1]:91", begun{"SPLICE TCP", "", "[2001:db8::10]:91", nil}},
		{"target address", false, "tcp", "127.0.0.1:5004", "127.0.0.1:93", begun{"tap TCP", "192.0.2.1:5004", "192.0.2.30:9300", nil}},
		{"out of the namespace", true, "tcp", "127.0.0.1:5001", "127.0.0.53:70", begun{"HOST TCP", "", "127.0.0.53:7070", nil}},
		{"out of the namespace, IPv6", true, "tcp", "[::1]:5001", "[::1]:70", begun{"HOST TCP", "", "[::1]:7070", nil}},
		{"UDP, loopback", false, "udp", "127.0.0.1:5001", "127.0.0.1:80", begun{"SPLICE UDP", "0.0.0.0:5001", "192.0.2.10:8080", []string{"hello"}}},
		{"UDP, IPv6 loopback", false, "udp", "[::1]:5001", "[::1]:80", begun{"SPLICE UDP", "[::]:5001", "[2001:db8::10]:8080", []string{"hello"}}},
		{"UDP, own address", false, "udp", "192.0.2.10:5001", "192.0.2.10:80", begun{"tap UDP", "192.0.2.1:5001", "192.0.2.10:8080", []string{"hello"}}},
		{"UDP, own IPv6 address", false, "udp", "[2001:db8::10]:5001", "[2001:db8::10]:80", begun{"tap UDP", "[fe80::1]:5001", "[fe80::10]:8080", []string{"hello"}}},
		{"UDP, range", false, "udp", "127.0.0.1:5002", "127.0.0.1:1002", begun{"SPLICE UDP", "0.0.0.0:5002", "192.0.2.10:2002", []string{"hello"}}},
		{"UDP, bound address", false, "udp", "192.0.2.10:5003", "192.0.2.10:90", begun{"tap UDP", "192.0.2.1:5003", "192.0.2.10:90", []string{"hello"}}},
		{"UDP, bound IPv6 address", false, "udp", "[::1]:5003", "[::1]:91", begun{"SPLICE UDP", "[::]:5003", "[2001:db8::10]:91", []string{"hello"}}},
		{"UDP, target address", false, "udp", "127.0.0.1:5004", "127.0.0.1:93", begun{"tap UDP", "192.0.2.1:5004", "192.0.2.30:9300", []string{"hello"}}},
		{"UDP, out of the namespace", true, "udp", "127.0.0.1:5001", "127.0.0.53:70", begun{"HOST UDP", "127.0.0.1:5001", "127.0.0.53:7070", []string{"hello"}}},
		{"UDP, out of the namespace, IPv6", true, "udp", "[::1]:5001", "[::1]:70", begun{"HOST UDP", "[::1]:5001", "[::1]:7070", []string{"hello"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := p.host
			if tt.inside {
				n = p.ns
			}
			p.twin.t = t
			c := dial(t, n, tt.network, tt.from, tt.to)
			if tt.network == "udp" {
				if _, err := c.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
			}
			got, fd := p.twin.take()
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("- want, + got:\n%s", diff)
			}
			// The descriptor is connected to the client: what is written arrives there.
			if _, err := unix.Write(fd, []byte("answer")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := c.Read(b); err != nil || string(b[:n]) != "answer" {
				t.Errorf("read %q, %v", b[:n], err)
			}
			p.twin.none()
		})
	}
}

// What leads nowhere is reset, not left waiting.
func TestConnectionThatLeadsNowhereIsReset(t *testing.T) {
	p := newPlace(t, func(c *Config) { c.Policy.SpliceOnly, c.Policy.KeepLoopback = true, true })
	p.add(t, "-t 80", "-u 80")
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 10), Port: 4000}, Timeout: 10 * time.Second}
	err := p.host.Do(func() error {
		c, err := d.Dial("tcp", "192.0.2.10:80")
		if err != nil {
			return err // so soon
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
		return err
	})
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	const text = "No rules to forward HOST TCP [192.0.2.10]:4000 -> [192.0.2.10]:80"
	await(t, text, func() bool { return p.logs.FilterMessage(text).Len() == 1 })

	u := dial(t, p.host, "udp", "192.0.2.10:4000", "192.0.2.10:80")
	u.Write([]byte("lost"))
	const text2 = "No rules to forward HOST UDP [192.0.2.10]:4000 -> [192.0.2.10]:80"
	await(t, text2, func() bool { return p.logs.FilterMessage(text2).Len() == 1 })
	// It was read: the listener is free for the next.
	ok := dial(t, p.host, "udp", "127.0.0.1:4000", "127.0.0.1:80")
	ok.Write([]byte("kept"))
	if got, _ := p.twin.take(); !slices.Equal(got.First, []string{"kept"}) {
		t.Errorf("got %+v", got)
	}
	p.twin.none()
}

// A burst on a new flow arrives in order: first what the listener had, then what the flow's own
// socket has.
func TestBurstOnANewFlowKeepsOrder(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-u 80")
	const flows, burst = 20, 200
	for round := range flows {
		c := dial(t, p.host, "udp", "", "127.0.0.1:80")
		for i := range burst {
			if _, err := fmt.Fprintf(c, "%d", i); err != nil {
				t.Fatal(err)
			}
		}
		got, fd := p.twin.take()
		next := 0
		check := func(text string) {
			t.Helper()
			if text != fmt.Sprint(next) {
				t.Fatalf("round %d: %s came, %d was next", round, text, next)
			}
			next++
		}
		for _, text := range got.First {
			check(text)
		}
		b := make([]byte, 100)
		for next < burst {
			n, err := unix.Read(fd, b)
			if err != nil {
				t.Fatalf("round %d: after %d datagrams: %v", round, next, err)
			}
			check(string(b[:n]))
		}
	}
	p.twin.none()
}

// Many peers at once: every datagram is in the flow of its sender, once. One that the socket of
// another's flow has received may be overtaken by a later one.
func TestDatagramsOfManyPeers(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-u 80")
	const peers, each = 50, 4
	var conns []net.Conn
	for range peers {
		conns = append(conns, dial(t, p.host, "udp", "", "127.0.0.1:80"))
	}
	for i := range each {
		for _, c := range conns {
			fmt.Fprintf(c, "%s %d", c.LocalAddr(), i)
		}
	}
	got := map[string]int{}
	for range peers {
		b, fd := p.twin.take()
		port := netip.MustParseAddrPort(b.From).Port()
		if port == 0 {
			t.Errorf("flow %+v", b)
		}
		for i := range each {
			text := ""
			if i < len(b.First) {
				text = b.First[i]
			} else {
				buf := make([]byte, 100)
				n, err := unix.Read(fd, buf)
				if err != nil {
					t.Fatal(err)
				}
				text = string(buf[:n])
			}
			if want := fmt.Sprintf("127.0.0.1:%d ", port); !strings.HasPrefix(text, want) {
				t.Errorf("%q in the flow of port %d", text, port)
			}
			got[text]++
		}
	}
	if len(got) != peers*each {
		t.Errorf("%d different datagrams, want %d", len(got), peers*each)
	}
	p.twin.none()
}

// TestDatagramsOfNobody: what has no port to answer to begins no flow, the log says whose it was,
// and what comes behind it is not held up.
func TestDatagramsOfNobody(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-u 80")
	err := p.host.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		from0 := []byte{0, 0, 0, 80, 0, 9, 0, 0, 'x'}
		return unix.Sendto(fd, from0, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(dial(t, p.host, "udp", "", "127.0.0.1:80"), "hello")
	if b, _ := p.twin.take(); !slices.Equal(b.First, []string{"hello"}) {
		t.Errorf("flow %+v", b)
	}
	p.twin.none()
	if n := p.logs.FilterMessage("Invalid endpoint on UDP recvfrom(): [127.0.0.1]:0").Len(); n != 1 {
		t.Errorf("said %d times: %v", n, p.logs.All())
	}
}

func TestAddIsAllOrNothing(t *testing.T) {
	p := newPlace(t, nil)
	taken, err := p.host.Listen("tcp4", "0.0.0.0:81")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	table := parse(t, "-t 80-82", "-t 90")
	failures, err := p.Add(config.Inbound, table.Inbound...)
	if err == nil || err.Error() != "Couldn't listen on requested ports" {
		t.Errorf("error %v", err)
	}
	if len(failures) != 1 || failures[0].Error() != "Listen failed for HOST TCP port */81: Address already in use" {
		t.Errorf("failures %v", failures)
	}
	for _, port := range []string{"80", "82", "90"} {
		if c, err := p.host.Dial(t.Context(), "tcp", "127.0.0.1:"+port); err == nil {
			c.Close()
			t.Errorf("port %s is listened on", port)
		}
	}
	if n := p.Listeners(config.Inbound); n != 0 || len(p.List(config.Inbound)) != 0 {
		t.Errorf("%d listeners, rules %v", n, p.List(config.Inbound))
	}
	taken.Close()
	p.add(t, "-t 80-82", "-t 90")
	if diff := cmp.Diff(table.Inbound, p.List(config.Inbound), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("rules, - added, + listed:\n%s", diff)
	}
	if _, err := p.Add(config.Inbound, parse(t, "-t 82:1").Inbound...); !errors.Is(err, errConflict) {
		t.Errorf("a port that is forwarded already: %v", err)
	}

	other := parse(t, "-t 7").Inbound[0]
	if err := p.Remove(config.Inbound, table.Inbound[0], other); !errors.Is(err, errNoRule) {
		t.Errorf("remove what is not there: %v", err)
	}
	if n := p.Listeners(config.Inbound); n != 4 {
		t.Errorf("%d listeners, want 4", n)
	}
	if err := p.Remove(config.Inbound, table.Inbound[0]); err != nil {
		t.Fatal(err)
	}
	l, err := p.host.Listen("tcp", ":80")
	if err != nil {
		t.Errorf("a port that is forwarded no more: %v", err)
	} else {
		l.Close()
	}
	dial(t, p.host, "tcp", "", "127.0.0.1:90")
	p.twin.take()
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec string
		dir  config.Direction
		want []string
		err  string
	}{
		{"address in use", "-t 1000", config.Inbound,
			[]string{"Listen failed for HOST TCP port */1000: Address already in use"}, "Couldn't listen on requested ports"},
		{"address in use, UDP", "-u 1000", config.Inbound,
			[]string{"Listen failed for HOST UDP port */1000: Address already in use"}, "Couldn't listen on requested ports"},
		{"in the namespace", "-T 1000", config.Outbound,
			[]string{"Listen failed for SPLICE TCP port *%lo/1000: Address already in use"}, "Couldn't listen on requested ports"},
		{"an address the host has not", "-t 198.51.100.1/1000", config.Inbound,
			[]string{"Listen failed for HOST TCP port 198.51.100.1/1000: Cannot assign requested address"}, "Couldn't listen on requested ports"},
		{"an IPv6 address the host has not", "-u 2001:db8::7/1001", config.Inbound,
			[]string{"Listen failed for HOST UDP port 2001:db8::7/1001: Cannot assign requested address"}, "Couldn't listen on requested ports"},
		{"an interface the host has not", "-t %nil0/1001", config.Inbound,
			[]string{"SO_BINDTODEVICE nil0 failed for TCP on *%nil0/1001: No such device"}, "Couldn't listen on requested ports"},
		{"a row of ports in use", "-t 999-1003", config.Inbound,
			[]string{"Listen failed for HOST TCP port */1000-1002: Address already in use"}, "Couldn't listen on requested ports"},
		{"all but some", "-t ~1-998,~1010-65535", config.Inbound,
			[]string{"Listen failed for HOST TCP port */1000-1002: Address already in use"}, ""},
		{"all, and none is free", "-t ~1-999,~1003-65535", config.Inbound,
			[]string{"Listen failed for HOST TCP port */1000-1002: Address already in use"}, "All listens failed for HOST TCP */1000-1002"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t, nil)
			for _, n := range []*bed.NS{p.host, p.ns} {
				for port := 1000; port <= 1002; port++ {
					l, err := n.Listen("tcp", fmt.Sprintf(":%d", port))
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
				}
				u, err := n.ListenPacket("udp", ":1000")
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
			}
			table := parse(t, tt.spec)
			failures, err := p.Add(tt.dir, append(table.Inbound, table.Outbound...)...)
			var got []string
			for _, f := range failures {
				got = append(got, f.Error())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("failures, - want, + got:\n%s", diff)
			}
			if text := fmt.Sprint(err); text != tt.err && (err != nil || tt.err != "") {
				t.Errorf("error %q, want %q", text, tt.err)
			}
		})
	}
}

func TestFamilies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		v4, v6 bool
		spec   string
		on4    bool
		on6    bool
		err    error
	}{
		{"both", true, true, "-t 80", true, true, nil},
		{"IPv4 alone", true, false, "-t 80", true, false, nil},
		{"IPv6 alone", false, true, "-t 80", false, true, nil},
		{"IPv4 of both", true, true, "-t 0.0.0.0/80", true, false, nil},
		{"IPv6 of both", true, true, "-t ::/80", false, true, nil},
		{"address of a disabled family", true, false, "-t ::1/80", false, false, unix.EAFNOSUPPORT},
	} {
		for _, only := range []string{"0", "1"} { // net.ipv6.bindv6only makes no difference
			t.Run(tt.name+", bindv6only "+only, func(t *testing.T) {
				p := newPlace(t, func(c *Config) { c.IPv4, c.IPv6 = tt.v4, tt.v6 })
				if err := p.host.Sysctl("ipv6/bindv6only", only); err != nil {
					t.Fatal(err)
				}
				failures, err := p.Add(config.Inbound, parse(t, tt.spec).Inbound...)
				if (err != nil) != (tt.err != nil) || tt.err != nil && !errors.Is(&failures[0], tt.err) {
					t.Fatalf("%v, %v", failures, err)
				}
				for addr, want := range map[string]bool{"127.0.0.1:80": tt.on4, "[::1]:80": tt.on6} {
					c, err := p.host.Dial(t.Context(), "tcp", addr)
					if (err == nil) != want {
						t.Errorf("connect to %s: %v", addr, err)
					}
					if err == nil {
						p.twin.take()
						c.Close()
					}
				}
			})
		}
	}
}

// A port can be listened on again although connections to it have only just ended, on our side
// first.
func TestListenedOnAgainAtOnce(t *testing.T) {
	for _, tt := range []struct{ spec, to string }{
		{"-t 80", "127.0.0.1:80"},
		{"-t 80", "[::1]:80"},
		{"-t 0.0.0.0/80", "127.0.0.1:80"},
		{"-t ::1/80", "[::1]:80"},
	} {
		t.Run(tt.spec+" "+tt.to, func(t *testing.T) {
			p := newPlace(t, nil)
			rule := parse(t, tt.spec).Inbound
			for range 2 {
				if failures, err := p.Add(config.Inbound, rule...); err != nil {
					t.Fatalf("%v, %v", failures, err)
				}
				c := dial(t, p.host, "tcp", "", tt.to)
				_, fd := p.twin.take()
				if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Fatal(err)
				}
				c.Close() // and what is left is in TIME_WAIT with us
				if err := p.Remove(config.Inbound, rule...); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestAddressNeedNotExist(t *testing.T) {
	p := newPlace(t, func(c *Config) { c.FreeBind = true })
	p.add(t, "-t 198.51.100.1/80", "-u 198.51.100.1/80", "-t 2001:db8:9::1/80")
	if err := p.host.IP("addr add 198.51.100.1/32 dev h0"); err != nil {
		t.Fatal(err)
	}
	dial(t, p.host, "tcp", "192.0.2.10:4000", "198.51.100.1:80")
	if got, _ := p.twin.take(); got.To != "192.0.2.10:80" {
		t.Errorf("%+v", got)
	}
	c := dial(t, p.host, "udp", "192.0.2.10:4000", "198.51.100.1:80")
	c.Write([]byte("hello"))
	if got, _ := p.twin.take(); got.To != "192.0.2.10:80" {
		t.Errorf("%+v", got)
	}
}

// A flood on one port leaves the others reachable, and rules can change meanwhile.
func TestBusyListenerStarvesNobody(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-t 80", "-u 80", "-u 81")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	// leads to the tap; one flow
	flood := dial(t, p.host, "udp", "192.0.2.10:4000", "192.0.2.10:81")
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			flood.Write(make([]byte, 100))
			runtime.Gosched()
		}
	}()
	defer func() { cancel(); <-ended }()
	p.twin.take()
	for i := range 20 {
		dial(t, p.host, "tcp", "", "127.0.0.1:80")
		for got, _ := p.twin.take(); got.Kind != "SPLICE TCP"; got, _ = p.twin.take() {
			if got.Kind != "tap UDP" {
				t.Errorf("%+v", got)
			}
		}
		rule := parse(t, fmt.Sprintf("-t %d", 1000+i)).Inbound
		if _, err := p.Add(config.Inbound, rule...); err != nil {
			t.Fatal(err)
		}
		if err := p.Remove(config.Inbound, rule...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAcceptsDoNotWaitBehindDatagrams: connections are accepted while what datagrams begin takes as
// long as it likes.
func TestAcceptsDoNotWaitBehindDatagrams(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-t 80", "-T 80", "-u 81", "-U 81")
	free := make(chan struct{})
	p.twin.holdUDP(free)
	// Both sides' goroutines for datagrams are held, and the one that has the listener of the host.
	for _, n := range []*bed.NS{p.host, p.ns} {
		fmt.Fprint(dial(t, n, "udp", "", "127.0.0.1:81"), "x")
	}
	await(t, "datagrams", func() bool { return p.twin.held.Load() == 2 })
	for _, n := range []*bed.NS{p.host, p.ns} {
		for range 20 {
			dial(t, n, "tcp", "", "127.0.0.1:80")
			if got, _ := p.twin.take(); !strings.HasSuffix(got.Kind, "TCP") {
				t.Errorf("%+v", got)
			}
		}
	}
	close(free)
	p.twin.take()
	p.twin.take()
}

// What is sent to a group goes to the guest with the group's address, once.
func TestGroupsAndBroadcasts(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-u 80")
	// Somebody on the host is a member; the client is behind the other end of the link.
	far, err := bed.NewNS("far")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if err := p.host.IP("link set h1 netns " + far.Path()); err != nil {
		t.Fatal(err)
	}
	if err := far.IP("link set h1 up\naddr add 192.0.2.7/24 broadcast 192.0.2.255 dev h1\nroute add 224.0.0.0/4 dev h1"); err != nil {
		t.Fatal(err)
	}
	var member *net.UDPConn
	if err := p.host.Do(func() error {
		h0, err := net.InterfaceByName("h0")
		if err == nil {
			member, err = net.ListenMulticastUDP("udp4", h0, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 99), Port: 9999})
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	for _, tt := range []struct{ name, to, want string }{
		{"group", "224.0.0.99:80", "224.0.0.99:80"},
		{"limited broadcast", "255.255.255.255:80", "255.255.255.255:80"},
		{"broadcast of the network", "192.0.2.255:80", "192.0.2.10:80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p.twin.t = t
			var c net.PacketConn
			lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
				raw.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
					if err == nil {
						err = unix.BindToDevice(int(fd), "h1")
					}
				})
				return err
			}}
			if err := far.Do(func() (err error) {
				c, err = lc.ListenPacket(t.Context(), "udp4", "192.0.2.7:0")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(tt.to))
			if _, err := c.WriteTo([]byte("one"), to); err != nil {
				t.Fatal(err)
			}
			got, fd := p.twin.take()
			if got.Kind != "tap UDP" || got.From != c.LocalAddr().String() || got.To != tt.want || !slices.Equal(got.First, []string{"one"}) {
				t.Errorf("got %+v", got)
			}
			// So does the next: the engine knows the flow.
			if _, err := c.WriteTo([]byte("two"), to); err != nil {
				t.Fatal(err)
			}
			first := got
			if got, _ := p.twin.take(); got.From != first.From || got.To != first.To || !slices.Equal(got.First, []string{"two"}) {
				t.Errorf("then got %+v", got)
			}
			b := make([]byte, 100)
			// The answer comes from an address of the host.
			if _, err := unix.Write(fd, []byte("answer")); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, from, err := c.ReadFrom(b)
			if err != nil || string(b[:n]) != "answer" || from.String() != "192.0.2.10:80" {
				t.Errorf("%q from %v, %v", b[:n], from, err)
			}
			p.twin.none()
		})
	}
}
