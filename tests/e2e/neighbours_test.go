package e2e

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

const (
	ourMAC = "9a:55:9a:55:9a:55"
	// third is another address of the far peer, which is not the gateway.
	third4, third6 = "10.77.0.50", "fd77::50"
)

// hardware returns what the target's kernel takes for the hardware address of addr; "" if it does
// not know.
func (c *connection) hardware(t *testing.T, addr string) string {
	t.Helper()
	out, err := c.target.Output(patience(t, limit), bed.Root, "ip", "neighbour", "show", addr)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(out, "lladdr ")
	mac, _, _ := strings.Cut(rest, " ")
	return mac
}

// TestNeighboursOfTheHost: the guest sees the hardware addresses that the host's neighbours have,
// hears of changes unasked, and gets frames from there; but the host itself is where we are.
func TestNeighboursOfTheHost(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"tshark", "ping"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatal(err)
		}
	}
	for _, mapped := range []bool{false, true} {
		t.Run(fmt.Sprintf("gateway is the host %v", mapped), func(t *testing.T) {
			t.Parallel()
			b := newBed(t, defaultBed)
			far := func(mac string) {
				t.Helper()
				script := "link set f0 address " + mac + "\naddr replace " + third4 + "/24 dev f0\naddr replace " + third6 + "/64 dev f0 nodad"
				if err := b.Far.IP(script); err != nil {
					t.Fatal(err)
				}
			}
			const first, second = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
			far(first)
			path := filepath.Join(scratch(t), "pcap")
			args := []string{"--config-net", "-q", "-p", path}
			gateway := ourMAC
			if !mapped {
				args, gateway = append(args, "--no-map-gw"), ""
			}
			c := attach(t, b, args...)
			// sees waits until the target knows the far peer's stations. prompt has the host notice
			// them.
			sees := func(mac string, prompt func()) {
				t.Helper()
				want := map[string]string{third4: mac, third6: mac, bed.FarAddr4: gateway, bed.FarAddr6: gateway}
				for addr, is := range want {
					if is == "" {
						want[addr] = mac
					}
				}
				waitFor(t, "the far peer to be "+mac, func() bool {
					prompt()
					for addr, is := range want {
						if c.hardware(t, addr) != is {
							return false
						}
					}
					return true
				})
			}
			ping := func(ns *bed.NS, addrs ...string) {
				for _, a := range addrs {
					ns.Output(patience(t, limit), bed.Root, "ping", "-c", "1", "-W", "1", a)
				}
			}
			sees(first, func() { ping(c.target.NS, third4, third6, bed.FarAddr4, bed.FarAddr6) })

			far(second)
			sees(second, func() { // without a word from the target
				for _, from := range []string{third4, third6, bed.FarAddr4, bed.FarAddr6} {
					// Each asks for the host, which so learns where it is.
					if err := b.Far.IP("neighbour flush dev f0"); err != nil {
						t.Fatal(err)
					}
					to := bed.HostAddr4
					if strings.Contains(from, ":") {
						to = bed.HostAddr6
					}
					b.Far.Output(patience(t, limit), bed.Root, "ping", "-c", "1", "-W", "1", "-I", from, to)
				}
			})

			for _, at := range []string{third4, third6} {
				c.transfer(t, at, both, 1, 100<<10)
				c.echo(t, at)
			}
			for _, at := range []string{third4, third6} {
				if out, err := c.target.Output(patience(t, limit), bed.Root, "ping", "-c", "1", "-W", "10", "-s", "777", at); err != nil {
					t.Errorf("ping: %v: %s", err, out)
				}
			}
			if status := c.proc.Stop(limit); status != 0 {
				t.Errorf("status %d", status)
			}
			sources(t, path, second)
			unasked(t, path, second)
		})
	}
}

// echo has the far peer return a datagram to the target.
func (c *connection) echo(t *testing.T, at string) {
	t.Helper()
	l, err := c.Far.ListenPacket("udp", net.JoinHostPort(at, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := c.target.Dial(patience(t, limit), "udp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	buf := make([]byte, 100)
	u.Write(buf)
	l.SetReadDeadline(time.Now().Add(limit))
	u.SetReadDeadline(time.Now().Add(limit))
	n, from, err := l.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	l.WriteTo(buf[:n], from)
	if _, err := io.ReadFull(u, buf[:n]); err != nil {
		t.Fatal(err)
	}
}

// sources checks that frames of all kinds from the third addresses in a capture come from mac.
func sources(t *testing.T, path, mac string) {
	t.Helper()
	cmd := exec.CommandContext(patience(t, limit), "tshark", "-r", path, "-n", "-T", "fields", "-E", "separator=;", "-E", "occurrence=f",
		"-Y", "(ip.src=="+third4+"||ipv6.src=="+third6+")&&(tcp||udp||frame.len>777)",
		"-e", "eth.src", "-e", "ip.src", "-e", "ipv6.src", "-e", "_ws.col.Protocol")
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	kinds := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), ";")
		if f[0] != mac {
			t.Errorf("%q is not from %s", line, mac)
		}
		kinds[f[1]+f[2]+" "+f[3]] = true
	}
	if len(kinds) < 6 { // TCP, UDP and echo over both versions
		t.Errorf("captured: %v", kinds)
	}
}
