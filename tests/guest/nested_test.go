package guest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"fusilli/tests/bed"
	"fusilli/tests/guest/wire"
)

// pasta connects a fresh namespace that has the host's addresses. The link's gateway is the host's
// loopback address, unless args say otherwise.
func pasta(t *testing.T, b *bed.Bed, args ...string) *bed.Target {
	t.Helper()
	target, err := b.Target(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	path, err := bed.Provide(program, "pasta")
	if err != nil {
		t.Fatal(err)
	}
	p := begin(t, b, func(common ...string) *exec.Cmd {
		return exec.Command(path, slices.Concat(common, []string{"--config-net"}, args, []string{strconv.Itoa(target.PID)})...)
	})
	if err := target.Configured(patience(t), p, true); err != nil {
		t.Fatal(err)
	}
	return target
}

// inside starts passt in a namespace that pasta connects. The link's gateway is the namespace's
// loopback address, unless args say otherwise.
func inside(t *testing.T, b *bed.Bed, target *bed.Target, args ...string) *passt {
	t.Helper()
	p := &passt{socket: filepath.Join(scratch(t), "socket")}
	p.Process = begin(t, b, func(common ...string) *exec.Cmd {
		return target.Enter(slices.Concat([]string{program}, common, []string{"-s", p.socket}, args)...)
	})
	return p
}

// TestGuestOfANamespace: passt within pasta. What a guest, the namespace and the host send each
// other goes through one of them or both.
func TestGuestOfANamespace(t *testing.T) {
	const (
		// the host as the namespace and the guest see it
		host4, host6 = "192.0.2.1", "2001:db8:9a55::1"
		ns4, ns6     = "192.0.2.2", "2001:db8:9a55::2" // the namespace as the guest sees it
	)
	b := newBed(t)
	target := pasta(t, b, "-t", "10001,10002", "-u", "10001,10002", "-T", "10003", "-U", "10003",
		"--map-host-loopback", host4, "--map-host-loopback", host6)
	p := inside(t, b, target, "-t", "10001", "-u", "10001", "-H", "hostname1", "--fqdn", "fqdn1.passt.test",
		"--map-host-loopback", ns4, "--map-host-loopback", ns6)
	vm := boot(t, p, macA)
	configure(t, vm)
	if got := sh(t, vm, "ip -4 addr show dev eth0"); !strings.Contains(got, bed.HostAddr4+"/24") {
		t.Errorf("addresses: %s", got)
	}
	if lease := sh(t, vm, "cat /tmp/dhcp4"); !strings.Contains(lease, "hostname=hostname1") {
		t.Errorf("lease: %s", lease)
	}
	dhcpv6(t, vm)
	if got := sh(t, vm, "ip -6 addr show dev eth0"); !strings.Contains(got, bed.HostAddr6+"/128") {
		t.Errorf("addresses: %s", got)
	}
	for _, network := range []string{"tcp", "udp"} {
		n := int64(sized)
		if network == "udp" {
			n = 60 << 10
		}
		for _, way := range []struct {
			name   string
			ns     *bed.NS
			at, to string
		}{
			{"guest to host", b.Host, "127.0.0.1:10003", host4 + ":10003"},
			{"guest to host", b.Host, "[::1]:10003", "[" + host6 + "]:10003"},
			{"guest to namespace", target.NS, "127.0.0.1:10002", ns4 + ":10002"},
			{"guest to namespace", target.NS, "[::1]:10002", "[" + ns6 + "]:10002"},
		} {
			t.Run(network+" "+way.name+" at "+way.to, func(t *testing.T) { out(t, way.ns, way.at, vm, network, way.to, n) })
		}
		for _, way := range []struct {
			name string
			ns   *bed.NS
			to   string
		}{
			{"host to guest", b.Host, "127.0.0.1:10001"}, {"host to guest", b.Host, "[::1]:10001"},
			{"namespace to guest", target.NS, "127.0.0.1:10001"}, {"namespace to guest", target.NS, "[::1]:10001"},
			{"namespace to guest", target.NS, bed.HostAddr4 + ":10001"},
			{"namespace to guest", target.NS, "[" + bed.HostAddr6 + "]:10001"},
		} {
			t.Run(network+" "+way.name+" at "+way.to, func(t *testing.T) { in(t, way.ns, vm, network, way.to, n) })
		}
	}
	t.Run("ping", func(t *testing.T) {
		if err := target.Sysctl("ipv4/ping_group_range", "0 2147483647"); err != nil {
			t.Fatal(err)
		}
		if err := target.IP("addr add 192.0.2.77/32 dev lo\naddr add 2001:db8::77/128 dev lo nodad"); err != nil {
			t.Fatal(err)
		}
		for _, ping := range []string{"ping 192.0.2.77", "ping -6 2001:db8::77"} {
			sh(t, vm, "until "+ping+" -c1 -W5; do sleep .1; done") // within the limit
		}
	})
	healthy(t, vm)
}

// TestTwoGuestsOfNamespaces: two guests, each of a passt in a pasta, talk by way of all four and
// the host.
func TestTwoGuestsOfNamespaces(t *testing.T) {
	b := newBed(t)
	var vms [2]*VM
	for i, o := range []struct{ in, out, mac string }{{"10001", "10004", macA}, {"10004", "10001", macB}} {
		target := pasta(t, b, "-t", o.in, "-u", o.in, "-T", o.out, "-U", o.out)
		p := inside(t, b, target, "-t", o.in, "-u", o.in, "-H", fmt.Sprint("hostname", i+1))
		vms[i] = boot(t, p, o.mac)
		configure(t, vms[i])
		if got := sh(t, vms[i], "ip -4 addr show dev eth0"); !strings.Contains(got, bed.HostAddr4+"/24") {
			t.Errorf("addresses: %s", got)
		}
		dhcpv6(t, vms[i])
		if got := sh(t, vms[i], "ip -6 addr show dev eth0"); !strings.Contains(got, bed.HostAddr6+"/128") {
			t.Errorf("addresses: %s", got)
		}
	}
	for _, way := range []struct {
		from, to int
		port     string
	}{{0, 1, "10004"}, {1, 0, "10001"}} {
		for _, addr := range []string{bed.FarAddr4 + ":" + way.port, "[" + bed.FarAddr6 + "]:" + way.port} {
			for _, network := range []string{"tcp", "udp"} {
				t.Run(network+" to "+addr, func(t *testing.T) { between(t, vms[way.from], vms[way.to], network, addr, way.port) })
			}
		}
	}
	for _, vm := range vms {
		healthy(t, vm)
	}
}

// between moves a stream from one guest to addr, which leads to a port of the other.
func between(t *testing.T, from, to *VM, network, addr, port string) {
	const number, n = 9, 200 << 10
	sink := to.Spawn("sink " + network + " :" + port)
	if err := sink.Expect(patience(t), "listening"); err != nil {
		t.Fatal(err)
	}
	sh(t, from, fmt.Sprintf("send %s %s %d %d", network, addr, number, n))
	got, err := sink.Wait(patience(t))
	if want := fmt.Sprintf("listening\n%s %d", wire.DigestOf(number, n), n); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}
