package e2e

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"fusilli/tests/bed"
)

// Which services the link has is up to the user. A question nobody answers is asked a second time
// by the test, since a datagram may be lost, and not more.
func TestServicesThatAreSwitchedOff(t *testing.T) {
	t.Parallel()
	type services struct{ arp, dhcp, dhcpv6, ns, ra bool }
	all := services{true, true, true, true, true}
	for _, tc := range []struct {
		name string
		args []string
		want services
	}{
		{"all", nil, all},
		{"no UDP is no matter of DHCP", []string{"--no-udp"}, all},
		{"no TCP", []string{"--no-tcp"}, all},
		{"no DHCP", []string{"--no-dhcp"}, services{true, false, true, true, true}},
		{"no DHCPv6", []string{"--no-dhcpv6"}, services{true, true, false, true, true}},
		{"no advertisements", []string{"--no-ra"}, services{true, true, true, true, false}},
		{"no NDP", []string{"--no-ndp"}, services{true, true, true, false, false}},
		{"no ICMP is no NDP", []string{"--no-icmp"}, services{true, true, true, false, false}},
		{"IPv4 only", []string{"-4"}, services{true, true, false, false, false}},
		{"IPv6 only", []string{"-6"}, services{false, false, true, true, true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := unconfigured(t, tc.args...)
			c.linkLocal(t)
			if err := c.target.IP("address add 10.77.0.9/24 dev h0\nroute add default dev h0"); err != nil {
				t.Fatal(err)
			}
			run := func(name string, args ...string) bool {
				out, _ := c.target.Output(patience(t, limit), bed.Root, name, args...)
				return strings.Contains(strings.ToLower(out), "9a:55:9a:55:9a:55")
			}
			got := services{
				arp:    run("arping", "-c", "1", "-w", "2", "-I", "h0", bed.FarAddr4),
				dhcp:   c.dhcpAnswers(t),
				dhcpv6: c.dhcpv6Answers(t),
				ra:     run("rdisc6", "-1", "-r", "2", "-w", "1000", "h0"),
				ns:     c.neighbourAnswers(t),
			}
			if got != tc.want {
				t.Errorf("answered %+v, want %+v", got, tc.want)
			}
		})
	}
}

// Without a network on the host there are services all the same, but for DHCPv6, which has no
// address to assign: the guest makes itself a link-local one, and we are its router.
func TestServicesWithoutANetwork(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	if err := b.Host.IP("link set h0 down"); err != nil {
		t.Fatal(err)
	}
	c := &client{connection: attach(t, b, "-q", "-D", "none", "-I", "h0"), dir: scratch(t)}
	if err := c.target.IP("link set h0 up"); err != nil {
		t.Fatal(err)
	}
	pc, err := c.target.ListenPacket("udp4", ":68")
	if err != nil {
		t.Fatal(err)
	}
	m, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 9}, dhcpv4.WithBroadcast(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.target.IP("address add 169.254.2.9/16 dev h0\nroute add default dev h0"); err != nil {
		t.Fatal(err)
	}
	r := c.exchange4(t, pc, m)
	pc.Close()
	if r == nil || r.YourIPAddr.String() != "169.254.2.1" || r.SubnetMask().String() != "ffff0000" || len(r.Router()) != 1 || r.Router()[0].String() != "169.254.2.2" {
		t.Errorf("DHCP: %v", r)
	}
	c.linkLocal(t)
	waitFor(t, "a route by router advertisement", func() bool {
		out, err := c.target.Output(t.Context(), bed.Root, "ip", "-6", "route", "show", "default")
		return err == nil && strings.Contains(out, "via fe80::1 dev h0 proto ra")
	})
	if c.dhcpv6Answers(t) {
		t.Error("an answer of DHCPv6")
	}
}

// answers sends query to addr, twice at most, and reports whether anything comes back.
func (c *client) answers(t *testing.T, network, own string, to *net.UDPAddr, query []byte) bool {
	t.Helper()
	pc, err := c.target.ListenPacket(network, own)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	for range 2 {
		if _, err := pc.WriteTo(query, to); err != nil {
			return false // as with IPv6 before there is an address
		}
		pc.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := pc.ReadFrom(make([]byte, 2048)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err == nil
		}
	}
	return false
}

func (c *client) dhcpAnswers(t *testing.T) bool {
	m, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 9}, dhcpv4.WithBroadcast(true))
	if err != nil {
		t.Fatal(err)
	}
	return c.answers(t, "udp4", ":68", &net.UDPAddr{IP: net.IPv4bcast, Port: 67}, m.ToBytes())
}

func (c *client) dhcpv6Answers(t *testing.T) bool {
	m, err := dhcpv6.NewSolicit(net.HardwareAddr{2, 0, 0, 0, 0, 9})
	if err != nil {
		t.Fatal(err)
	}
	return c.answers(t, "udp6", "[::]:546", &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: "h0"}, m.ToBytes())
}

// neighbourAnswers reports whether the kernel learns the address of an address on the link.
func (c *client) neighbourAnswers(t *testing.T) bool {
	t.Helper()
	conn, err := c.target.Dial(patience(t, limit), "udp", "[fe80::77%h0]:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("x"))
	learned := false
	err = bed.Wait(patience(t, limit), "the kernel's verdict", func() (bool, error) {
		out, err := c.target.Output(t.Context(), bed.Root, "ip", "-6", "neighbour", "show", "fe80::77", "dev", "h0")
		learned = strings.Contains(out, "9a:55:9a:55:9a:55")
		return learned || strings.Contains(out, "FAILED"), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return learned
}
