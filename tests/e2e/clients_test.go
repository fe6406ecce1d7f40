package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fusilli/tests/bed"
)

// told is what the translator is to tell the guest's clients, besides what it finds on the host.
var told = []string{
	"-q", "--no-map-gw", "--dhcp-dns", "--dhcp-search",
	"-D", bed.FarAddr4, "-D", "192.0.2.54", "-D", bed.FarAddr6, "-S", "a.example.org", "-S", "b.example.org",
	"-H", "host1", "--fqdn", "host1.example.org", "-m", "9000",
}

// client is a program that configures the target, and calls a script with what it was told.
type client struct {
	*connection
	dir  string
	proc *bed.Process
}

// unconfigured returns a target with its link up and nothing else.
func unconfigured(t *testing.T, args ...string) *client {
	t.Helper()
	c := &client{connection: attach(t, newBed(t, defaultBed), append(slices.Clone(told), args...)...), dir: scratch(t)}
	if err := c.target.IP("link set h0 up"); err != nil {
		t.Fatal(err)
	}
	return c
}

// script writes a shell script that notes the variables it is called with, by events, and runs
// more.
func (c *client) script(t *testing.T, more string) string {
	t.Helper()
	path := filepath.Join(c.dir, "script")
	text := "#!/bin/sh\nevent=${reason:-$1}\nenv >" + c.dir + "/tmp.$$ && cat " + c.dir + "/tmp.$$ >>" + c.dir + "/all.$event\n" + more +
		"\nmv " + c.dir + "/tmp.$$ " + c.dir + "/did.$event\necho $event >>" + c.dir + "/events\nexit 0\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// file writes a file for the client.
func (c *client) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// run starts the client in the target's network namespace, with a /var of its own.
func (c *client) run(t *testing.T, argv ...string) {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Fatal(err)
	}
	mount := "for d in /var/lib/dhcp /var/lib/dhcpcd; do [ ! -d $d ] || mount -t tmpfs tmpfs $d; done; exec \"$@\""
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", mount, "sh"}, argv...)...)
	var err error
	if c.proc, err = c.target.Spawn(bed.Root, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.proc.Stop(limit) })
}

// event waits for the script to have been called for one of events, and returns its variables.
func (c *client) event(t *testing.T, events ...string) map[string]string {
	t.Helper()
	var text []byte
	err := bed.Wait(patience(t, limit), strings.Join(events, " or "), func() (bool, error) {
		for _, e := range events {
			var err error
			if text, err = os.ReadFile(filepath.Join(c.dir, "did."+e)); err == nil {
				return true, nil
			}
		}
		select {
		case <-c.proc.Done():
			return false, fmt.Errorf("ended with status %d", c.proc.Status())
		default:
			return false, nil
		}
	})
	if err != nil {
		seen, _ := os.ReadFile(filepath.Join(c.dir, "events"))
		t.Fatalf("%v: it has said %q, and called for %q", err, c.proc.Stderr(), seen)
	}
	vars := map[string]string{}
	for line := range strings.Lines(string(text)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[k] = v
	}
	return vars
}

func compare(t *testing.T, vars map[string]string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for k := range want {
		got[k] = vars[k]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// both transfers data in both directions.
func (c *client) both(t *testing.T, far string) {
	t.Helper()
	c.transfer(t, far, in|out, 2, 1<<20)
}

const dhclientScript = `
case $reason in
BOUND|RENEW|REBIND|REBOOT)
	ip link set h0 mtu $new_interface_mtu
	ip address replace $new_ip_address/24 dev h0
	ip route replace default via $new_routers dev h0;;
BOUND6|RENEW6|REBIND6)
	ip address replace $new_ip6_address/$new_ip6_prefixlen dev h0 nodad;;
esac`

func TestDhclient(t *testing.T) {
	t.Parallel()
	c := unconfigured(t)
	conf := c.file(t, "conf", `
option rfc3442 code 121 = string;
request subnet-mask, routers, interface-mtu, domain-name-servers, domain-search, host-name;
send fqdn.fqdn "asked.example.net";
supersede dhcp-lease-time 30;
supersede dhcp-renewal-time 1;
supersede dhcp-rebinding-time 20;
`)
	c.run(t, "dhclient", "-4", "-d", "-v", "-sf", c.script(t, dhclientScript), "-cf", conf,
		"-lf", c.dir+"/leases", "-pf", c.dir+"/pid", "h0")
	compare(t, c.event(t, "BOUND"), map[string]string{
		"new_ip_address": bed.HostAddr4, "new_subnet_mask": "255.255.255.0", "new_routers": bed.FarAddr4,
		"new_interface_mtu": "9000", "new_domain_name_servers": bed.FarAddr4 + " 192.0.2.54",
		"new_domain_search": "a.example.org. b.example.org.", "new_host_name": "host1",
		"new_dhcp_server_identifier": bed.FarAddr4,
	})
	c.both(t, bed.FarAddr4)
	// It asks again after a second, this time over a socket: what the server has said is for ever,
	// but the client was told otherwise by its own configuration.
	compare(t, c.event(t, "RENEW"), map[string]string{"new_ip_address": bed.HostAddr4})
	c.both(t, bed.FarAddr4)
}

func TestDhclientIPv6(t *testing.T) {
	t.Parallel()
	c := unconfigured(t)
	conf := c.file(t, "conf", "request dhcp6.name-servers, dhcp6.domain-search, dhcp6.fqdn;\nsend fqdn.fqdn \"asked\";\n")
	args := []string{"dhclient", "-6", "-d", "-v", "-sf", c.script(t, dhclientScript), "-cf", conf,
		"-lf", c.dir + "/leases", "-pf", c.dir + "/pid", "h0"}
	c.linkLocal(t)
	c.run(t, args...)
	want := map[string]string{
		"new_ip6_address": bed.HostAddr6, "new_ip6_prefixlen": "128", "new_dhcp6_name_servers": bed.FarAddr6,
		"new_dhcp6_domain_search": "a.example.org. b.example.org.", "new_life_starts": "", "new_max_life": "4294967295",
	}
	delete(want, "new_life_starts")
	compare(t, c.event(t, "BOUND6"), want)
	c.slaac(t)
	c.both(t, bed.FarAddr6)

	// A lease that is about to end by the client's own book is confirmed and renewed.
	c.proc.Stop(limit)
	lease, err := os.ReadFile(c.dir + "/leases")
	if err != nil {
		t.Fatal(err)
	}
	short := regexp.MustCompile(`(renew|rebind) \d+;`).ReplaceAll(lease, []byte("$1 1;"))
	if err := os.WriteFile(c.dir+"/leases", short, 0o666); err != nil {
		t.Fatal(err)
	}
	c.run(t, args...)
	compare(t, c.event(t, "RENEW6", "REBIND6"), map[string]string{"new_ip6_address": bed.HostAddr6})
	c.both(t, bed.FarAddr6)
}

// linkLocal waits until the target's link-local address can be used.
func (c *client) linkLocal(t *testing.T) {
	t.Helper()
	waitFor(t, "link-local address", func() bool {
		out, err := c.target.Output(t.Context(), bed.Root, "ip", "-6", "-o", "address", "show", "dev", "h0", "scope", "link")
		return err == nil && strings.Contains(out, "fe80::") && !strings.Contains(out, "tentative")
	})
}

// slaac waits until the kernel has made itself an address and a default route by our advertisement.
func (c *client) slaac(t *testing.T) {
	t.Helper()
	waitFor(t, "an address and a route by router advertisement", func() bool {
		addrs, err := c.target.Output(t.Context(), bed.Root, "ip", "-6", "-o", "address", "show", "dev", "h0", "scope", "global", "-tentative")
		if err != nil {
			t.Fatal(err)
		}
		routes, err := c.target.Output(t.Context(), bed.Root, "ip", "-6", "route", "show", "default")
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(` fd77::[0-9a-f:]+/64 scope global dynamic`).MatchString(addrs) && strings.Contains(routes, "proto ra")
	})
}

func TestUdhcpc(t *testing.T) {
	t.Parallel()
	// A gateway off the link needs a route of its own, option 121.
	c := unconfigured(t, "-a", "192.0.2.9", "-n", "32", "-g", bed.FarAddr4)
	c.run(t, "udhcpc", "-f", "-i", "h0", "-t", "20", "-T", "1", "-A", "1", "-x", "hostname:asked",
		"-O", "mtu", "-O", "search", "-O", "staticroutes", "-s", c.script(t, `
case $1 in
bound|renew)
	ip link set h0 mtu $mtu
	ip address replace $ip/32 dev h0
	set -- $staticroutes
	while [ $# -gt 0 ]; do
		if [ $2 = 0.0.0.0 ]; then ip route replace $1 dev h0; else ip route replace $1 via $2 dev h0; fi
		shift 2
	done;;
esac`))
	compare(t, c.event(t, "bound"), map[string]string{
		"ip": "192.0.2.9", "mask": "32", "subnet": "255.255.255.255", "router": bed.FarAddr4, "mtu": "9000",
		"dns": bed.FarAddr4 + " 192.0.2.54", "search": "a.example.org b.example.org", "hostname": "host1",
		"staticroutes": bed.FarAddr4 + "/32 0.0.0.0 0.0.0.0/0 " + bed.FarAddr4, "serverid": bed.FarAddr4, "lease": "4294967295",
	})
	c.both(t, bed.FarAddr4)
	c.signal(t, "USR1") // renew now
	compare(t, c.event(t, "renew"), map[string]string{"ip": "192.0.2.9"})
	c.both(t, bed.FarAddr4)
}

// signal sends the client a signal. The program that was started has become it.
func (c *client) signal(t *testing.T, name string) {
	t.Helper()
	if out, err := exec.Command("kill", "-"+name, strconv.Itoa(c.proc.PID())).CombinedOutput(); err != nil {
		t.Fatalf("kill: %v: %s", err, out)
	}
}

func TestDhcpcd(t *testing.T) {
	t.Parallel()
	c := unconfigured(t)
	conf := c.file(t, "conf", `
duid
persistent
option domain_name_servers, domain_name, domain_search, host_name, interface_mtu, classless_static_routes
option dhcp6_name_servers, dhcp6_domain_search
require dhcp_server_identifier
fqdn both
hostname asked
ia_na 1
noipv4ll
`)
	c.run(t, "dhcpcd", "-B", "-d", "-f", conf, "-c", c.script(t, ""), "h0")
	compare(t, c.event(t, "BOUND"), map[string]string{
		"new_ip_address": bed.HostAddr4, "new_subnet_cidr": "24", "new_routers": bed.FarAddr4, "new_interface_mtu": "9000",
		"new_domain_name_servers": bed.FarAddr4 + " 192.0.2.54", "new_domain_search": "a.example.org b.example.org",
		"new_host_name": "host1", "new_dhcp_lease_time": "4294967295",
	})
	compare(t, c.event(t, "BOUND6"), map[string]string{
		"new_dhcp6_ia_na1_ia_addr1": bed.HostAddr6, "new_dhcp6_name_servers": bed.FarAddr6,
		"new_dhcp6_domain_search": "a.example.org b.example.org",
	})
	compare(t, c.event(t, "ROUTERADVERT"), map[string]string{
		"nd1_prefix_information1_prefix": "fd77::", "nd1_prefix_information1_length": "64", "nd1_mtu": "9000",
		"nd1_rdnss1_servers": bed.FarAddr6, "nd1_dnssl1_search": "a.example.org b.example.org",
	})
	c.both(t, bed.FarAddr4)
	waitFor(t, "an IPv6 address", func() bool {
		out, err := c.target.Output(t.Context(), bed.Root, "ip", "-6", "-o", "address", "show", "dev", "h0", "-tentative")
		return err == nil && strings.Contains(out, bed.HostAddr6+"/128")
	})
	c.both(t, bed.FarAddr6)
}

func TestKernelConfiguresItselfByAdvertisements(t *testing.T) {
	t.Parallel()
	c := unconfigured(t, "-m", "1400")
	c.slaac(t)
	var mtu string
	err := c.target.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/h0/mtu")
		mtu = strings.TrimSpace(string(b))
		return err
	})
	if err != nil || mtu != "1400" { // not more than the interface's own, which is 1500
		t.Errorf("MTU %q, %v", mtu, err)
	}
	c.both(t, bed.FarAddr6)
	if got := addresses(t, c.target.NS, "h0"); len(got) != 1 || !strings.HasPrefix(got[0], "inet6 fd77::") || !strings.Contains(got[0], "/64 scope global") {
		t.Errorf("addresses %q", got)
	}
}

// The tools that ask a link questions show the answers in their own words.
func TestToolsSeeTheRouterAndTheNeighbours(t *testing.T) {
	t.Parallel()
	c := unconfigured(t, "-M", "9a:55:00:00:00:07")
	c.slaac(t)
	route, err := c.target.Output(t.Context(), bed.Root, "ip", "-6", "route", "show", "default")
	if err != nil {
		t.Fatal(err)
	}
	router := strings.Fields(route)[2]
	if err := c.target.IP("address add " + bed.HostAddr4 + "/24 dev h0"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		argv []string
		want []string
	}{
		{[]string{"rdisc6", "-1", "h0"}, []string{
			`Hop limit\s*:\s*255 `, `Stateful address conf\.\s*:\s*Yes`, `Stateful other conf\.\s*:\s*No`, `Router lifetime\s*:\s*65535 `,
			`Prefix\s*: fd77::/64`, `On-link\s*: *Yes`, `Autonomous address conf\.: *Yes`, `Valid time\s*: *infinite`, `Pref\. time\s*: *infinite`,
			`MTU\s*: *9000 bytes`, `Source link-layer address: 9A:55:00:00:00:07`,
			`Recursive DNS server\s*: fd77::1\n\s*DNS server lifetime\s*: *infinite`,
			`DNS search list\s*: a\.example\.org b\.example\.org`,
		}},
		{[]string{"ndisc6", "-1", router, "h0"}, []string{`Target link-layer address: 9A:55:00:00:00:07`}},
		{[]string{"arping", "-c", "1", "-w", "10", "-I", "h0", "203.0.113.9"}, []string{`Unicast reply from 203\.0\.113\.9 \[9A:55:00:00:00:07\]`}},
		{[]string{"arping", "-D", "-c", "1", "-w", "10", "-I", "h0", bed.FarAddr4}, []string{`Unicast reply from 10\.77\.0\.1 \[9A:55:00:00:00:07\]`}},
	} {
		out, err := c.target.Output(patience(t, limit), bed.Root, tt.argv[0], tt.argv[1:]...)
		if err != nil && tt.argv[1] != "-D" { // that there is an answer is a failure to it
			t.Errorf("%v: %v", tt.argv, err)
		}
		for _, want := range tt.want {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("%v: no %q in\n%s", tt.argv, want, out)
			}
		}
	}
	// The guest's own address is not ours to answer for.
	if out, err := c.target.Output(patience(t, limit), bed.Root, "arping", "-D", "-c", "1", "-w", "1", "-I", "h0", bed.HostAddr4); err != nil {
		t.Errorf("somebody has the guest's own address: %v: %s", err, out)
	}
}
