package guest

import (
	"strings"
	"testing"

	"fusilli/tests/bed"
)

const (
	macA = "52:54:00:12:34:56"
	macB = "52:54:00:65:43:21"
)

// configure has the guest get addresses from DHCP and from our advertisement.
func configure(t *testing.T, vm *VM) {
	t.Helper()
	sh(t, vm, "ip link set eth0 up; udhcpc -n -q -f -t 60 -T 1 -i eth0 -s /etc/udhcpc.script -O mtu -O search >&2")
	slaac(t, vm)
}

// slaac waits until the guest has made itself an address and a route from our advertisement.
func slaac(t *testing.T, vm *VM) {
	t.Helper()
	sh(t, vm, `until ip -6 addr show dev eth0 scope global -tentative | grep -q dynamic && ip -6 route show default | grep -q via
		do sleep .1; done`)
}

// dhcpv6 has the guest get an address by DHCPv6. The client goes on running.
func dhcpv6(t *testing.T, vm *VM) {
	t.Helper()
	if sh(t, vm, "command -v dhclient || true") == "" {
		t.Fatal("no dhclient in the guest")
	}
	sh(t, vm, "touch /tmp/leases; dhclient -6 -1 -sf /etc/dhclient-script -cf /etc/dhclient.conf -lf /tmp/leases -pf /tmp/dhclient.pid eth0 >&2")
}

// healthy checks that the guest's kernel has found no bad checksum.
func healthy(t *testing.T, vm *VM) {
	t.Helper()
	out := sh(t, vm, `awk '/^(Tcp|Udp):/ { if (n[$1]++) { for (i=2; i<=NF; i++) if (name[$1,i]=="InCsumErrors") print $1 $i } else for (i=2; i<=NF; i++) name[$1,i]=$i }' /proc/net/snmp
		awk '/Ip6InHdrErrors|Icmp6InCsumErrors|Udp6InCsumErrors/ { print $1 ":" $2 }' /proc/net/snmp6`)
	lines := strings.Fields(out)
	if len(lines) < 4 {
		t.Errorf("counters: %q", out)
	}
	for _, l := range lines {
		if !strings.HasSuffix(l, ":0") {
			t.Errorf("the guest's kernel has counted %s", l)
		}
	}
}

// TestGuest takes one passt through the lives of two machines, beside another passt with a third.
func TestGuest(t *testing.T) {
	b := newBed(t)
	p := start(t, b, "-t", "5002", "-u", "5002", "-H", "hostname1")
	vm := boot(t, p, macA)
	p.said(t, "accepted connection from PID ", 1)

	configure(t, vm)
	t.Run("DHCP", func(t *testing.T) {
		if out := sh(t, vm, "ip -4 addr show dev eth0"); !strings.Contains(out, bed.HostAddr4+"/24") || !strings.Contains(out, "mtu 65520") {
			t.Errorf("addresses: %s", out)
		}
		if out := sh(t, vm, "ip -4 route show default"); !strings.HasPrefix(out, "default via "+bed.FarAddr4+" dev eth0") {
			t.Errorf("routes: %s", out)
		}
		lease := "\n" + sh(t, vm, "cat /tmp/dhcp4") + "\n"
		for _, want := range []string{"router=" + bed.FarAddr4, "mtu=65520", "hostname=hostname1", "mask=24"} {
			if !strings.Contains(lease, "\n"+want+"\n") {
				t.Errorf("no %s in%s", want, lease)
			}
		}
		p.said(t, "DHCP: ack to request", 1)
	})
	t.Run("DHCPv6", func(t *testing.T) {
		dhcpv6(t, vm)
		if out := sh(t, vm, "ip -6 addr show dev eth0"); !strings.Contains(out, bed.HostAddr6+"/128") {
			t.Errorf("addresses: %s", out)
		}
		sh(t, vm, "kill $(cat /tmp/dhclient.pid); ip addr del "+bed.HostAddr6+"/128 dev eth0")
	})
	t.Run("router advertisement", func(t *testing.T) {
		if out := sh(t, vm, "ip -6 addr show dev eth0 scope global"); !strings.Contains(out, "fd77::5054:ff:fe12:3456/64") {
			t.Errorf("addresses: %s", out)
		}
		if out := sh(t, vm, "ip -6 route show default"); !strings.Contains(out, "via fe80::") {
			t.Errorf("routes: %s", out)
		}
	})
	traffic(t, b, vm)
	forwarded(t, b, vm)
	t.Run("ping", func(t *testing.T) {
		for _, ping := range []string{"ping " + bed.FarAddr4, "ping -6 " + bed.FarAddr6} {
			sh(t, vm, "until "+ping+" -c1 -W5; do sleep .1; done") // within the limit
		}
	})
	t.Run("small MTU", func(t *testing.T) {
		sh(t, vm, "ip link set eth0 mtu 1500")
		out(t, b.Far, bed.FarAddr4+":5001", vm, "tcp", bed.FarAddr4+":5001", sized)
	})
	t.Run("another address", func(t *testing.T) {
		sh(t, vm, "ip link set eth0 down; ip addr flush dev eth0; ip link set eth0 address 52:54:00:99:99:99; ip link set eth0 up; ip addr add 10.77.0.99/24 dev eth0; ip route add default via "+bed.FarAddr4)
		slaac(t, vm)
		traffic(t, b, vm)
		forwarded(t, b, vm)
	})
	healthy(t, vm)

	q := start(t, b, "--one-off")
	vm2 := boot(t, q, macB) // beside the first
	configure(t, vm2)
	t.Run("two side by side", func(t *testing.T) {
		t.Run("", func(t *testing.T) { traffic(t, b, vm2) })
		out(t, b.Far, bed.FarAddr4+":5001", vm, "tcp", bed.FarAddr4+":5001", sized)
	})
	vm.Close()
	p.said(t, "Client connection closed", 1)
	t.Run("restart", func(t *testing.T) {
		again := boot(t, p, macB)
		p.said(t, "accepted connection from PID ", 2)
		configure(t, again)
		traffic(t, b, again)
		forwarded(t, b, again)
		healthy(t, again)
		again.Close()
	})
	vm2.Close()
	t.Run("one-off", func(t *testing.T) {
		select {
		case <-q.Done():
			if q.Status() != 0 || !strings.Contains(q.Stderr(), "Client connection closed, exiting") {
				t.Errorf("status %d: %s", q.Status(), q.Stderr())
			}
		case <-patience(t).Done():
			t.Error("passt goes on without its client")
		}
	})
}

// forwarded moves data to the guest over both protocols and families, from the host by its loopback
// address and from far by the host's.
func forwarded(t *testing.T, b *bed.Bed, vm *VM) {
	t.Helper()
	for _, from := range []struct {
		name string
		ns   *bed.NS
		addr string
	}{
		{"far", b.Far, bed.HostAddr4 + ":5002"}, {"far", b.Far, "[" + bed.HostAddr6 + "]:5002"},
		{"host", b.Host, "127.0.0.1:5002"}, {"host", b.Host, "[::1]:5002"},
	} {
		t.Run("tcp in from "+from.name+" to "+from.addr, func(t *testing.T) { in(t, from.ns, vm, "tcp", from.addr, sized) })
		t.Run("udp in from "+from.name+" to "+from.addr, func(t *testing.T) { in(t, from.ns, vm, "udp", from.addr, 60<<10) })
	}
}

// traffic moves data out over both protocols and families.
func traffic(t *testing.T, b *bed.Bed, vm *VM) {
	t.Helper()
	for _, addr := range []string{bed.FarAddr4 + ":5001", "[" + bed.FarAddr6 + "]:5001"} {
		t.Run("tcp out to "+addr, func(t *testing.T) { out(t, b.Far, addr, vm, "tcp", addr, sized) })
		t.Run("udp out to "+addr, func(t *testing.T) { out(t, b.Far, addr, vm, "udp", addr, 100<<10) })
	}
}
