package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// More addresses of the target.
const (
	second4 = "10.77.0.20"
	second6 = "fd77::20"
)

// witness is what a server tells a client about their connection: the ends as the server sees them.
type witness struct{ remote, local netip.AddrPort }

func (w witness) String() string { return w.remote.String() + " > " + w.local.String() }

// plain is a without zone and IPv4-in-IPv6 form.
func plain(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

func parseWitness(line string) (w witness, err error) {
	remote, local, ok := strings.Cut(strings.TrimSpace(line), " > ")
	if !ok {
		return w, fmt.Errorf("%q does not say who is connected", line)
	}
	if w.remote, err = netip.ParseAddrPort(remote); err == nil {
		w.local, err = netip.ParseAddrPort(local)
	}
	return w, err
}

// serveStreams accepts connections on ports of all of n's addresses. Each is told its witness, and
// gets back what it sends until it says that it has no more.
func serveStreams(t *testing.T, n *bed.NS, ports ...int) {
	t.Helper()
	for _, port := range ports {
		serving(t)(n.ServeTCP(fmt.Sprintf(":%d", port), func(c net.Conn) {
			c.SetDeadline(time.Now().Add(limit))
			fmt.Fprintln(c, witness{plain(c.RemoteAddr()), plain(c.LocalAddr())})
			io.Copy(c, c)
			c.(*net.TCPConn).CloseWrite()
		}))
	}
}

// serveDatagrams answers datagrams to ports of each of addrs, addresses of n, with the witness of
// their flow, a newline and what was sent.
func serveDatagrams(t *testing.T, n *bed.NS, addrs []string, ports ...int) {
	t.Helper()
	for _, addr := range addrs {
		for _, port := range ports {
			serving(t)(n.ServeUDP(net.JoinHostPort(addr, fmt.Sprint(port)), func(local, from net.Addr, b []byte) []byte {
				return fmt.Appendf(nil, "%v\n%s", witness{plain(from), plain(local)}, b)
			}))
		}
	}
}

// exchange sends size bytes from n to addr over TCP, all of which must come back.
func exchange(t *testing.T, n *bed.NS, addr string, size int) (w witness, client netip.AddrPort, err error) {
	t.Helper()
	c, err := n.Dial(patience(t, limit), "tcp", addr)
	if err != nil {
		return w, client, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	sent := make(chan error, 1)
	go func() {
		err := send(c, 7, size)
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	r := bufio.NewReaderSize(c, chunk)
	line, err := r.ReadString('\n')
	if err == nil {
		w, err = parseWitness(line)
	}
	if err != nil {
		c.Close()
		return w, client, errors.Join(err, <-sent)
	}
	return w, plain(c.LocalAddr()), errors.Join(receive(&buffered{c, r}, 7, size), <-sent)
}

// buffered is a connection part of which was read ahead.
type buffered struct {
	net.Conn
	r io.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// exchangeDatagrams sends count datagrams from n to addr, one after the other; each must come back.
func exchangeDatagrams(t *testing.T, n *bed.NS, addr string, count int) (w witness, client netip.AddrPort, err error) {
	t.Helper()
	c, err := n.Dial(patience(t, limit), "udp", addr)
	if err != nil {
		return w, client, err
	}
	defer c.Close()
	for i := range count {
		want := binary.BigEndian.AppendUint16(make([]byte, 300*i), uint16(i))
		b, err := ask(c, want)
		if err != nil {
			return w, client, fmt.Errorf("datagram %d: %w", i, err)
		}
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		if w, err = parseWitness(string(line)); err != nil {
			return w, client, err
		}
		if !bytes.Equal(rest, want) {
			return w, client, fmt.Errorf("datagram %d of %d bytes came back with %d", i, len(want), len(rest))
		}
	}
	return w, plain(c.LocalAddr()), nil
}

// linkLocal is the link-local address of dev in n, once it is usable.
func linkLocal(t *testing.T, n *bed.NS, dev string) (found string) {
	t.Helper()
	waitFor(t, "a link-local address of "+dev, func() bool {
		var links []struct {
			Addrs []struct {
				Local, Scope string
				Tentative    bool
			} `json:"addr_info"`
		}
		ipJSON(t, n, &links, "-6", "address", "show", "dev", dev)
		for _, l := range links {
			for _, a := range l.Addrs {
				if a.Scope == "link" && !a.Tentative && a.Local != "" {
					found = a.Local
				}
			}
		}
		return found != ""
	})
	return found
}

// Each way in, by each kind of rule, for both protocols and families: the data arrives, and the
// server sees the addresses it should.
func TestForwarding(t *testing.T) {
	b := newBed(t, defaultBed)
	args := []string{}
	for _, letter := range []string{"t", "u"} {
		for _, spec := range []string{
			"1100",
			"1200-1202",
			"1300-1302:2300-2302",
			"127.0.0.1/1400", "::1/1401", bed.HostAddr4 + "/1402", bed.HostAddr6 + "/1403",
			"%lo/1500", "%h0/1501",
			"1700-1702,auto",
			"1800:1800,~1801",
		} {
			args = append(args, "-"+letter, spec)
		}
	}
	for _, letter := range []string{"T", "U"} {
		for _, spec := range []string{"3100", "3200-3202", "3300-3302:4300-4302", "3700-3702,auto"} {
			args = append(args, "-"+letter, spec)
		}
	}
	c := connect(t, b, args...)
	// What comes from the target moves where it is taken to be: other addresses need another one.
	other := connect(t, b, "-t", "0.0.0.0/1600:"+second4+"/2600", "-t", "::/1601:"+second6+"/2601",
		"-u", "0.0.0.0/1600:"+second4+"/2600", "-u", "::/1601:"+second6+"/2601", "-T", "none", "-U", "none")
	if err := other.target.IP("addr add " + second4 + "/32 dev h0\naddr add " + second6 + "/128 dev h0 nodad"); err != nil {
		t.Fatal(err)
	}
	hostLL, targetLL := linkLocal(t, b.Host, "h0"), linkLocal(t, c.target.NS, "h0")
	inside := []int{1100, 1200, 1201, 1202, 2300, 2301, 2302, 1400, 1401, 1402, 1403, 1500, 1501, 1701}
	serveStreams(t, c.target.NS, inside...)
	serveDatagrams(t, c.target.NS, []string{bed.HostAddr4, bed.HostAddr6, targetLL + "%h0"}, inside...)
	serveStreams(t, other.target.NS, 2600, 2601)
	serveDatagrams(t, other.target.NS, []string{second4, second6}, 2600, 2601)
	outside := []int{3100, 3200, 3201, 3202, 4300, 4301, 4302, 3701}
	serveStreams(t, b.Host, outside...)
	serveDatagrams(t, b.Host, []string{"127.0.0.1", "127.0.0.53", "::1"}, outside...)

	type kind struct {
		name       string
		port, want int // the one that is forwarded, and the server's
	}
	// way is a way to a server: from where, to which address, and what the server sees.
	type way struct {
		name          string
		from          *bed.NS
		to            string
		remote, local string
		samePort      bool // the client's port is what the server sees
		kinds         []kind
	}
	kinds := func(bound, device int) []kind {
		return []kind{
			{"single port", 1100, 1100}, {"range", 1202, 1202}, {"translated range", 1301, 2301},
			{"bound address", bound, bound}, {"bound interface", device, device},
			{"auto", 1701, 1701},
		}
	}
	out := []kind{{"single port", 3100, 3100}, {"range", 3202, 3202}, {"translated range", 3301, 4301}, {"auto", 3701, 3701}}
	target4, target6 := []kind{{"target address", 1600, 2600}}, []kind{{"target address", 1601, 2601}}
	ways := []way{
		{"loopback IPv4", b.Host, "127.0.0.1", bed.HostAddr4, bed.HostAddr4, false, kinds(1400, 1500)},
		{"loopback IPv6", b.Host, "::1", bed.HostAddr6, bed.HostAddr6, false, kinds(1401, 1500)},
		{"own address IPv4", b.Host, bed.HostAddr4, bed.FarAddr4, bed.HostAddr4, true, kinds(1402, 1501)},
		{"own address IPv6", b.Host, bed.HostAddr6, hostLL, targetLL, true, kinds(1403, 1501)},
		{"far peer IPv4", b.Far, bed.HostAddr4, bed.FarAddr4, bed.HostAddr4, true, kinds(1402, 1501)},
		{"far peer IPv6", b.Far, bed.HostAddr6, bed.FarAddr6, bed.HostAddr6, true, kinds(1403, 1501)},
		{"loopback IPv4", b.Host, "127.0.0.1", bed.FarAddr4, second4, true, target4},
		{"loopback IPv6", b.Host, "::1", hostLL, second6, true, target6},
		{"own address IPv4", b.Host, bed.HostAddr4, bed.FarAddr4, second4, true, target4},
		{"own address IPv6", b.Host, bed.HostAddr6, hostLL, second6, true, target6},
		{"far peer IPv4", b.Far, bed.HostAddr4, bed.FarAddr4, second4, true, target4},
		{"far peer IPv6", b.Far, bed.HostAddr6, bed.FarAddr6, second6, true, target6},
		{"out IPv4", c.target.NS, "127.0.0.1", "127.0.0.1", "127.0.0.1", false, out},
		{"out IPv4, another loopback address", c.target.NS, "127.0.0.53", "127.0.0.1", "127.0.0.53", false, out},
		{"out IPv6", c.target.NS, "::1", "::1", "::1", false, out},
	}
	// The listeners of "auto" follow the servers.
	for _, at := range []struct {
		n    *bed.NS
		addr string
	}{{b.Host, "127.0.0.1:1701"}, {c.target.NS, "127.0.0.1:3701"}} {
		waitFor(t, "listener on "+at.addr, func() bool {
			conn, err := at.n.Dial(patience(t, limit), "tcp", at.addr)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	for _, proto := range []string{"TCP", "UDP"} {
		for _, w := range ways {
			for _, k := range w.kinds {
				for _, large := range []bool{false, true} {
					size := "small"
					if large {
						size = "large"
					}
					t.Run(strings.Join([]string{proto, w.name, k.name, size}, "/"), func(t *testing.T) {
						addr := net.JoinHostPort(w.to, fmt.Sprint(k.port))
						var got witness
						var client netip.AddrPort
						var err error
						switch {
						case proto == "TCP" && large:
							got, client, err = exchange(t, w.from, addr, sized(10<<20))
						case proto == "TCP":
							got, client, err = exchange(t, w.from, addr, 10)
						case large:
							got, client, err = exchangeDatagrams(t, w.from, addr, 5)
						default:
							got, client, err = exchangeDatagrams(t, w.from, addr, 1)
						}
						if err != nil {
							t.Fatal(err)
						}
						want := witness{
							netip.AddrPortFrom(netip.MustParseAddr(w.remote), got.remote.Port()),
							netip.AddrPortFrom(netip.MustParseAddr(w.local), uint16(k.want)),
						}
						// a spliced connection has a port of its own
						if w.samePort || proto == "UDP" {
							want.remote = netip.AddrPortFrom(want.remote.Addr(), client.Port())
						}
						if got != want {
							t.Errorf("the server sees %v, want %v", got, want)
						}
					})
				}
			}
		}
	}
}
