package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// other is the other implementation: the one that comes with Debian.
const other = "/usr/bin/pasta"

// show prints what a command finds in its namespace, for describe.
const show = `ip -j address; echo; ip -j -4 route; echo; ip -j -6 route; echo; id -u; uname -n; cat /proc/sys/net/ipv4/ping_group_range`

// found is what there is to compare in a namespace.
type found struct {
	Status int
	Links  []string
	Addrs  []string // of wide scope
	Routes []string // without the kernel's own, but for the default
	UID    string
	Ping   string
}

// TestSideBySide runs the same command lines with this program and with Debian's, in the same
// namespace, and compares what becomes of them. Debian 12's is of 2023. A row with a reason is
// one where the program behaves otherwise on purpose; such a row fails when it does not.
func TestSideBySide(t *testing.T) {
	if _, err := os.Stat(other); err != nil {
		t.Fatal(err)
	}
	newBed := func(more string) *bed.Bed {
		b, err := bed.New(bed.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		if err := b.Host.IP("link add d0 type veth peer name d1\nlink set d1 up\nlink set d0 up mtu 1400\n" +
			"address add 198.51.100.7/25 dev d0\naddress add 2001:db8:8::7/64 dev d0 nodad" + more); err != nil {
			t.Fatal(err)
		}
		return b
	}
	simple := newBed("")
	rich := newBed("\naddress add 10.77.0.22/24 dev h0\naddress add 2001:db8:5::1/64 dev h0 nodad\n" +
		"route add 198.51.100.0/24 via 10.77.0.1 dev h0\nroute add 2001:db8:7::/48 via fd77::1 dev h0")

	const none = "-t none -u none -T none -U none "
	for _, tt := range []struct {
		args   string
		rich   bool   // on a host with several addresses and routes
		reason string // why the outcome differs
	}{
		{args: none},
		{args: none + "--config-net"},
		{args: none + "--config-net", rich: true, reason: "all addresses and routes are copied"},
		{args: none + "--config-net -4 -a 192.0.2.9 -g 192.0.2.1", rich: true},
		{args: none + "--config-net -4"},
		{args: none + "--config-net -6"},
		{args: none + "--config-net -4f"},
		{args: none + "--config-net -m 1500"},
		{args: none + "--config-net -m1500 -4"},
		{args: none + "--config-net --mtu=1280"},
		{args: none + "--config-net -m 0", reason: "the interface is set up without an MTU, too"},
		{args: none + "-m 9000"},
		{args: none + "--config-net -I tap7"},
		{args: none + "--config-net --ns-ifname=tap7"},
		{args: none + "--config-net --ns-mac-addr 02:00:00:00:00:09"},
		{args: none + "--config-net -4 -a 192.0.2.9", reason: "routes are copied unless a gateway is given"},
		{args: none + "--config-net -4 -a 172.20.1.2", reason: "routes are copied unless a gateway is given"},
		{args: none + "--config-net -4 -a 192.0.2.9 -n 28", reason: "routes are copied unless a gateway is given"},
		{args: none + "--config-net -4 -a 192.0.2.9 -n 255.255.255.192", reason: "routes are copied unless a gateway is given"},
		{args: none + "--config-net -4 -a 192.0.2.9 -n 28 -g 192.0.2.1"},
		{args: none + "--config-net -4 -g 10.77.0.77"},
		{args: none + "--config-net -6 -a 2001:db8::9", reason: "routes are copied unless a gateway is given"},
		{args: none + "--config-net -6 -g fe80::7"},
		{args: none + "--config-net -a 192.0.2.9", reason: "an address stands in for those of its own family only"},
		{args: none + "--config-net -g 10.77.0.77"},
		{args: none + "--config-net -i d0", reason: "an interface without a default route will do"},
		{args: none + "--config-net -i d0 -4", reason: "an interface without a default route will do"},
		{args: none + "--config-net -4 --outbound-if4 d0", reason: "an interface without a default route will do"},
		{args: none + "--config-net --no-copy-routes", reason: "newer option"},
		{args: none + "--config-net --no-copy-addrs", reason: "newer option"},
		{args: none + "--config-net --no-copy-addrs --no-copy-routes", reason: "newer option"},
		{args: none + "--config-net --no-tcp --no-udp --no-icmp"},
		{args: none + "--config-net --no-dhcp --no-dhcpv6 --no-ndp --no-ra"},
		{args: none + "--config-net --no-map-gw"},
		{args: none + "--config-net --dns-forward 192.0.2.53 -D 192.0.2.1 -S example.org --dhcp-dns --dhcp-search"},
		{args: none + "--config-net -D none -S none"},
		{args: none + "--config-net -o 10.77.0.22"},
		{args: none + "--config-net --trac"},
		{args: none + "-q --netns-only"},
		// What both refuse.
		{args: "--nonsense"},
		{args: "-Z"},
		{args: "-m"},
		{args: "--mtu"},
		{args: "--debug=1"},
		{args: "-m x", reason: "what is no number is refused"},
		{args: "-m 70000"},
		{args: "-a x"},
		{args: "-a 127.0.0.1"},
		{args: "-a 224.0.0.1"},
		{args: "-a 255.255.255.255"},
		{args: "-n 33"},
		{args: "-n 255.0.255.0"},
		{args: "-M x", reason: "what is no hardware address is refused"},
		{args: "--ns-mac-addr x", reason: "what is no hardware address is refused"},
		{args: "-g 127.0.0.1"},
		{args: "-g ::1"},
		{args: "-i nosuch0"},
		{args: "-o 0.0.0.0"},
		{args: "-o ::1"},
		{args: "--outbound-if4 abcdefghijklmnop"},
		{args: "--outbound-if4 nosuch0"},
		{args: "-D x"},
		{args: "--dns-forward 127.0.0.1"},
		{args: "-I abcdefghijklmnop"},
		{args: "--log-size 1"},
		{args: "--log-size x"},
		{args: "--runas nosuchuser"},
		{args: "-F x", reason: "what is no number is refused"},
		{args: "-s /s"},
		{args: "-1"},
		{args: "--no-dhcp-dns"},
		{args: "--no-copy-routes"},
		{args: "--no-copy-addrs"},
		{args: "--netns n"},
		{args: "-t x"},
		{args: "-t 65536"},
		{args: "-t 5-3"},
		{args: "-t 22-80:1-5"},
		{args: "-T 127.0.0.1/22"},
		{args: "-t 192.0.2/22"},
		{args: "-P /nonexistent/pid"},
		{args: "-l /nonexistent/log"},
		{args: "--userns /nonexistent"},
		// What was made possible, or is refused, since.
		{args: none + "-4 -6 --config-net", reason: "the last of -4 and -6 counts"},
		{args: none + "-q -d", reason: "the last of -q and -d counts"},
		{args: none + "-f -f", reason: "a flag may be repeated"},
		{args: none + "-m 1500 -m 1400 --config-net", reason: "the last --mtu counts"},
		{args: none + "-a 192.0.2.9/28 --config-net -4", reason: "--address takes a prefix length"},
		{args: none + "-m 60", reason: "a small MTU is only warned about"},
		{args: none + "--map-host-loopback 192.0.2.7", reason: "newer option"},
		{args: none + "--map-guest-addr 192.0.2.7", reason: "newer option"},
		{args: none + "--host-lo-to-ns-lo", reason: "newer option"},
		{args: none + "--no-splice", reason: "newer option"},
		{args: none + "--freebind", reason: "newer option"},
		{args: none + "-H name", reason: "newer option"},
		{args: none + "--fqdn name", reason: "newer option"},
		{args: none + "--dns-host 127.0.0.1", reason: "newer option"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			b := simple
			if tt.rich {
				b = rich
			}
			compare(t, look(t, b, other, tt.args), look(t, b, "pasta", tt.args), tt.reason)
		})
	}
}

// look runs a pasta with args and a command that looks around.
func look(t *testing.T, b *bed.Bed, program, args string) found {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	words := onHost(b.Host, bed.Nobody, append(append([]string{program}, strings.Fields(args)...), "--", "sh", "-c", show)...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = []string{"PATH=" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second // somebody may be left who keeps the pipes open
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatal(err)
	}
	f := found{Status: cmd.ProcessState.ExitCode()}
	if f.Status != 0 {
		t.Logf("%s: %.300s", program, errs.String())
		return f
	}
	if err := f.read(string(out)); err != nil {
		t.Fatalf("%s: %v in %q", program, err, out)
	}
	return f
}

// read takes apart what show printed.
func (f *found) read(out string) error {
	parts := strings.SplitN(out, "\n", 5)
	dec := json.NewDecoder(strings.NewReader(out))
	var links []struct {
		Ifname, Operstate, Address string
		LinkType                   string `json:"link_type"`
		MTU                        int
		Flags                      []string
		AddrInfo                   []struct {
			Family, Local, Scope string
			Prefixlen            int
		} `json:"addr_info"`
	}
	if err := dec.Decode(&links); err != nil {
		return err
	}
	for _, l := range links {
		mac := "random"
		if strings.HasPrefix(l.Address, "02:00:00:00:00:") || l.LinkType == "loopback" {
			mac = l.Address
		}
		f.Links = append(f.Links, fmt.Sprintf("%s %s mtu %d up %v %s", l.Ifname, l.LinkType, l.MTU, slices.Contains(l.Flags, "UP"), mac))
		for _, a := range l.AddrInfo {
			if a.Scope == "global" {
				f.Addrs = append(f.Addrs, fmt.Sprintf("%s %s/%d dev %s", a.Family, a.Local, a.Prefixlen, l.Ifname))
			}
		}
	}
	for range 2 {
		var routes []struct{ Dst, Gateway, Dev, Scope string }
		if err := dec.Decode(&routes); err != nil {
			return err
		}
		for _, r := range routes {
			if !strings.HasPrefix(r.Dst, "fe80:") {
				f.Routes = append(f.Routes, fmt.Sprintf("%s via %s dev %s", r.Dst, r.Gateway, r.Dev))
			}
		}
	}
	slices.Sort(f.Addrs)
	slices.Sort(f.Routes)
	tail := strings.Split(strings.TrimSpace(parts[len(parts)-1]), "\n")
	if len(tail) < 3 {
		return errors.New("the end is missing")
	}
	f.UID, f.Ping = tail[len(tail)-3], tail[len(tail)-1]
	return nil
}
