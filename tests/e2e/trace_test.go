package e2e

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// The log tells of each flow's beginning and end with --debug, and of each frame as well with
// --trace: of a namespace and of a virtual machine.
func TestFlowsAndFramesInTheLog(t *testing.T) {
	t.Parallel()
	const port = "8080"
	for _, vm := range []bool{false, true} {
		for _, level := range []string{"--debug", "--trace"} {
			t.Run(fmt.Sprintf("machine %t %s", vm, level), func(t *testing.T) {
				t.Parallel()
				var c *connection
				ports := []string{level, "-t", port, "-u", "none"}
				if b := newBed(t, defaultBed); vm {
					c = connectVM(t, b, 1500, ports...)
				} else {
					c = connect(t, b, append(ports, "-T", "none", "-U", "none")...)
				}
				logged := func(text string) {
					t.Helper()
					line := regexp.MustCompile(`(?m)^\d+\.\d{4}: ` + text)
					waitFor(t, text, func() bool { return line.MatchString(c.proc.Stderr()) })
				}
				end := func(a, b net.Conn) {
					a.Close()
					b.Close()
				}
				const from, to = `\[` + bed.HostAddr4 + `\]:\d+`, `\[` + bed.FarAddr4 + `\]:\d+`

				end(c.pair(t, bed.FarAddr4))
				logged(`Flow \d+ \(TCP connection\): TAP ` + from + ` -> ` + to + ` => HOST \[0\.0\.0\.0\]:0 -> ` + to + `$`)
				logged(`Flow \d+ \(TCP connection\): ended after `)
				ping, err := c.target.Dial(patience(t, limit), "udp", net.JoinHostPort(bed.FarAddr4, "9"))
				if err != nil {
					t.Fatal(err)
				}
				ping.Write([]byte("?"))
				ping.Close()
				logged(`Flow \d+ \(UDP flow\): TAP ` + from + ` -> \[` + bed.FarAddr4 + `\]:9 => HOST .* -> \[` + bed.FarAddr4 + `\]:9$`)
				end(inward(t, c, c.Far, net.JoinHostPort(bed.HostAddr4, port)))
				logged(`Flow \d+ \(TCP connection\): HOST ` + to + ` -> ` + from + ` => TAP ` + to + ` -> \[` + bed.HostAddr4 + `\]:` + port + `$`)
				if !vm {
					end(inward(t, c, c.Host, net.JoinHostPort("127.0.0.1", port)))
					logged(`Flow \d+ \(TCP connection \(spliced\)\): HOST \[127\.0\.0\.1\]:\d+ -> .* => SPLICE .*$`)
					logged(`Flow \d+ \(TCP connection \(spliced\)\): ended after `)
				}
				if vm {
					logged(`New guest MAC address observed: ([0-9a-f]{2}:){5}[0-9a-f]{2}$`)
					logged(`NDP: received RS, sending RA$`)
				}
				end(c.pair(t, bed.FarAddr6))
				logged(`NDP: received NS, sending NA$`)
				if level == "--trace" {
					logged(`from the guest: ARP`)
					logged(`from the guest: TCP ` + from + ` -> ` + to + `, 0 bytes of payload, SYN$`)
					logged(`to the guest: TCP ` + to + ` -> ` + from + `, 0 bytes of payload, SYN\+ACK$`)
				}
				if status := c.proc.Stop(limit); status != 0 {
					t.Errorf("status %d", status)
				}
				said := c.proc.Stderr()
				if level == "--debug" && strings.Contains(said, "from the guest:") {
					t.Errorf("frames without --trace: %s", said)
				}
				// Whatever has begun has ended, once.
				name := regexp.MustCompile(`(?m)^[^:]*: (Flow \d+ \([^)]*\)+): (ended after [\d.]+[µms]+s?$)?`)
				open := make(map[string]int)
				for _, m := range name.FindAllStringSubmatch(said, -1) {
					open[m[1]]++
				}
				for flow, n := range open {
					if n != 2 {
						t.Errorf("%s is mentioned %d times", flow, n)
					}
				}
				if len(open) < 3 {
					t.Errorf("%d flows: %s", len(open), said)
				}
			})
		}
	}
}

// inward opens a connection from from to addr, which is forwarded into the target.
func inward(t *testing.T, c *connection, from *bed.NS, addr string) (outside, inside net.Conn) {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	l, err := c.target.Listen("tcp", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if outside, err = from.Dial(patience(t, limit), "tcp", addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outside.Close() })
	l.(*net.TCPListener).SetDeadline(time.Now().Add(limit))
	if inside, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inside.Close() })
	return outside, inside
}
