package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"fusilli/tests/bed"
)

// resolver serves DNS over UDP and TCP at addr, "IP:port", in n. Its answer to every question for
// an address is a TXT record that says where the resolver is.
func resolver(t *testing.T, n *bed.NS, addr string) {
	t.Helper()
	serving(t)(n.ServeDNS(addr, func(q []byte) []byte { return answer(q, addr) }))
}

func answer(query []byte, text string) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response = true
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
		Body:   &dnsmessage.TXTResource{TXT: []string{text}},
	}}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

const queryID = 4711

// query is a question as resolvers get it.
func query(t *testing.T) []byte {
	t.Helper()
	name := dnsmessage.MustNewName("www.example.org.")
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: queryID, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}},
	}
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// resolve has the target ask at addr, and returns which resolver has answered.
func (c *connection) resolve(t *testing.T, network, addr string) (string, error) {
	t.Helper()
	b := query(t)
	conn, err := c.target.Dial(patience(t, limit), network, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if network == "udp" {
		b, err = ask(conn, b)
	} else {
		conn.SetDeadline(time.Now().Add(limit))
		if err = bed.WriteDNS(conn, b); err == nil {
			b, err = bed.ReadDNS(conn)
		}
	}
	if err != nil {
		return "", err
	}
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		return "", err
	}
	if m.ID != queryID || len(m.Answers) != 1 {
		return "", fmt.Errorf("answer %v", m)
	}
	return m.Answers[0].Body.(*dnsmessage.TXTResource).TXT[0], nil
}

// resolvConf gives the program under test, started from here on, another resolv.conf. Since that is
// everybody's, the test must not be parallel.
func resolvConf(t *testing.T, lines ...string) {
	t.Helper()
	old, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal("no /etc/resolv.conf to replace:", err)
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile("/etc/resolv.conf", old, 0o644) })
}

// resolves checks that what the target asks at addr, over UDP and TCP and on both ports of DNS, is
// answered by the resolvers at host.
func (c *connection) resolves(t *testing.T, n *bed.NS, addr, host string) {
	t.Helper()
	for _, port := range []string{"53", "853"} {
		want := net.JoinHostPort(host, port)
		resolver(t, n, want)
		for _, network := range []string{"udp", "tcp"} {
			got, err := c.resolve(t, network, net.JoinHostPort(addr, port))
			if err != nil || got != want {
				t.Errorf("%s %s %s: answered by %q, %v, want %s", addr, network, port, got, err, want)
			}
		}
	}
}

func TestQueriesAreForwardedToTheResolver(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	// The bed's resolv.conf names the far peer's IPv4 address.
	c := connect(t, b, "--dns-forward", "198.51.100.1", "--dns-forward", "2001:db8::53", "--dns-host", bed.FarAddr6)
	c.resolves(t, b.Far, "198.51.100.1", bed.FarAddr4)
	c.resolves(t, b.Far, "2001:db8::53", bed.FarAddr6)

	// It is the ports of DNS only that lead to the resolver.
	resolver(t, b.Far, net.JoinHostPort(bed.FarAddr4, "5353"))
	conn, err := c.target.Dial(t.Context(), "udp", "198.51.100.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	conn.Write(make([]byte, 12))
	if n, err := conn.Read(make([]byte, 512)); err == nil {
		t.Errorf("%d bytes came back from port 5353", n)
	}
}

// With a resolver on the host's loopback, DNS to the gateway goes to that, and everything else
// there to the loopback address proper.
func TestQueriesToTheGatewayReachALoopbackResolver(t *testing.T) {
	b := newBed(t, defaultBed)
	resolvConf(t, "nameserver 127.0.0.53", "nameserver ::1")
	c := connect(t, b, "--map-host-loopback", bed.FarAddr4, "--map-host-loopback", bed.FarAddr6)
	c.resolves(t, b.Host, bed.FarAddr4, "127.0.0.53")
	c.resolves(t, b.Host, bed.FarAddr6, "::1")

	resolver(t, b.Host, "127.0.0.1:5353")
	if got, err := c.resolve(t, "udp", bed.FarAddr4+":5353"); err != nil || got != "127.0.0.1:5353" {
		t.Errorf("port 5353: answered by %q, %v", got, err)
	}
}

// A gateway that is the resolver, as most home routers are, answers itself, although everything
// else that is sent to its address comes to the host.
func TestQueriesToAGatewayThatIsTheResolver(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed) // its resolv.conf names the gateway
	c := attach(t, b, "--config-net", "-q")
	c.resolves(t, b.Far, bed.FarAddr4, bed.FarAddr4)
	resolver(t, b.Host, "127.0.0.1:5353")
	if got, err := c.resolve(t, "udp", bed.FarAddr4+":5353"); err != nil || got != "127.0.0.1:5353" {
		t.Errorf("port 5353: answered by %q, %v", got, err)
	}
}

// One program asks the resolver by its own address and by that which stands for it, from one port:
// each answer comes from where it was asked for.
func TestEachAnswerComesFromWhereItWasAskedFor(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "--dns-forward", "198.51.100.1", "--dns-forward", "2001:db8::53", "--dns-host", bed.FarAddr6)
	for i, alias := range []string{"198.51.100.1", "2001:db8::53"} {
		t.Run(families[i].name, func(t *testing.T) {
			far := families[i].far
			serving(t)(b.Far.ServeDNS(net.JoinHostPort(far, "53"), func(q []byte) []byte { return q }))
			conn, err := c.target.ListenPacket("udp", ":0")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			answered := make(map[string]bool)
			waitFor(t, "both to answer", func() bool {
				for _, to := range []string{alias, far} {
					if _, err := conn.WriteTo([]byte(to), &net.UDPAddr{IP: net.ParseIP(to), Port: 53}); err != nil {
						t.Fatal(err)
					}
				}
				conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				for b := make([]byte, 512); len(answered) < 2; {
					n, from, err := conn.ReadFrom(b)
					if err != nil {
						return false
					}
					if got := from.(*net.UDPAddr).IP.String(); got != string(b[:n]) {
						t.Errorf("what %s was asked is answered by %s", b[:n], got)
					}
					answered[string(b[:n])] = true
				}
				return true
			})
		})
	}
}

// With an address of its own for DNS, a loopback resolver is reached there also when nothing else
// of the host's loopback is.
func TestForwardingToALoopbackResolverWithoutTheGateway(t *testing.T) {
	b := newBed(t, defaultBed)
	resolvConf(t, "# comment", "nameserver 127.0.0.53", "nameserver 192.0.2.77", "nameserver ::1")
	c := connect(t, b, "--dns-forward", "169.254.1.1", "--dns-forward", "fd00::3")
	c.resolves(t, b.Host, "169.254.1.1", "127.0.0.53")
	c.resolves(t, b.Host, "fd00::3", "::1")
	resolver(t, b.Far, net.JoinHostPort(bed.FarAddr4, "53"))
	if got, err := c.resolve(t, "udp", bed.FarAddr4+":53"); err != nil || got != bed.FarAddr4+":53" {
		t.Errorf("the gateway's own resolver: answered by %q, %v", got, err)
	}
}
