package forward

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/config"
)

// The operations of FuzzReplace: three bytes each.
const (
	opRule    = iota // one more rule for the next table
	opReplace        // the table is put in force
	opService        // a program of the host's takes a port, or gives it back
	opConnect        // somebody connects
	opSend           // or sends a datagram
	numOps
)

// FuzzReplace puts tables of rules in force, one after the other, while programs of the host take
// ports and others connect. After each there is one listener for each port that the rules want,
// unless it could not be had, which was said; with an error, and nothing else, all is as it was.
func FuzzReplace(f *testing.F) {
	for _, in := range [][]byte{
		{},
		{opRule, 0, 1, opReplace, 0, 0, opConnect, 1, 0, opRule, 0, 1, opRule, 1, 2, opReplace, 0, 0},
		{opRule, 0x11, 3, opRule, 0x22, 3, opReplace, 0, 0, opSend, 3, 0, opReplace, 0, 0},
		{opService, 2, 0, opRule, 0, 2, opReplace, 0, 0, opService, 2, 0, opRule, 0, 2, opReplace, 0, 0},
		{opRule, 0x30, 1, opRule, 0x40, 5, opReplace, 0, 0, opRule, 0x50, 1, opRule, 0x62, 2, opReplace, 0, 0},
		{opRule, 2, 1, opRule, 3, 1, opReplace, 0, 0, opRule, 0, 1, opRule, 2, 1, opReplace, 0, 0},
	} {
		f.Add(in)
	}
	p := newPlace(f, func(c *Config) { c.Log = zap.NewNop() })
	f.Fuzz(func(t *testing.T, in []byte) {
		p.twin.t = t
		var specs []string
		services := map[uint16]net.Listener{}
		for n := 0; len(in) >= 3 && n < 40; n++ {
			op, a, b := in[0]%numOps, in[1], in[2]
			in = in[3:]
			port := 80 + uint16(a%16)
			switch op {
			case opRule:
				specs = append(specs, specifier(a, b))
			case opReplace:
				p.fuzzReplace(t, specs)
				specs = nil
			case opService:
				if l := services[port]; l != nil {
					l.Close()
					delete(services, port)
				} else if l, err := p.host.Listen("tcp", fmt.Sprint(":", port)); err == nil {
					services[port] = l
				}
			case opConnect, opSend:
				network := "tcp"
				if op == opSend {
					network = "udp"
				}
				p.host.Do(func() error {
					d := net.Dialer{Timeout: 5 * time.Second}
					if c, err := d.Dial(network, fmt.Sprint("127.0.0.1:", port)); err == nil {
						c.Write([]byte("datagram"))
						c.Close()
					}
					return nil
				})
			}
		}
		for _, l := range services {
			l.Close()
		}
		p.fuzzReplace(t, nil)
		if n := len(p.sockets()); n != 0 {
			t.Errorf("%d listeners are left", n)
		}
		p.twin.mu.Lock()
		fds := p.twin.fds
		p.twin.flows, p.twin.fds = nil, nil
		p.twin.mu.Unlock()
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
}

// specifier makes one of a's kind for the ports that b says.
func specifier(a, b byte) string {
	port, to := 80+int(b%16), 80+int(b/16)
	text := []string{"%d", "%d-85,%d", "127.0.0.1/%d", "%%lo/%d", "::1/%d", "%d:%d", "80-90,~%d", "%d-95:%d-104"}[a>>4&7]
	switch a >> 4 & 7 {
	case 1:
		text = fmt.Sprintf(text, min(port, 85), to)
	case 5:
		text = fmt.Sprintf(text, port, to)
	case 7:
		text = fmt.Sprintf(text, port, port+9)
	default:
		text = fmt.Sprintf(text, port)
	}
	return []string{"-t ", "-u ", "-T ", "-U "}[a&3] + text
}

// fuzzReplace is replace for rules that need not work.
func (p *place) fuzzReplace(t *testing.T, specs []string) {
	var list []config.PortSpec
	for _, spec := range specs {
		proto, dir := config.TCP, config.Inbound
		if spec[1] == 'u' || spec[1] == 'U' {
			proto = config.UDP
		}
		if spec[1] < 'a' {
			dir = config.Outbound
		}
		s, err := config.ParsePorts(spec[3:], proto, dir, config.Pasta)
		if err != nil {
			return
		}
		list = append(list, s)
	}
	table, err := config.Rules(list, config.Env{
		IPv4: true, IPv6: true, TCP: true, UDP: true, BindToDevice: true, Ephemeral: config.PortRange{First: 32768, Last: 60999},
	})
	if err != nil {
		return
	}
	before := p.sockets()
	failures, err := p.Replace(table.Inbound, table.Outbound)
	after := p.sockets()
	if err != nil && len(failures) == 0 {
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("%v: %v, and yet, - before, + after:\n%s", specs, err, diff)
		}
		return
	}
	want := map[string]bool{}
	for dir, list := range [][]config.Rule{config.Inbound: table.Inbound, config.Outbound: table.Outbound} {
		for _, r := range list {
			for port := range r.Ports.Len() {
				want[fmt.Sprint(Side(dir), r.Protocol, r.Ports.First+uint16(port))] = true
			}
		}
	}
	said := map[string]bool{}
	for _, f := range failures {
		for port := range f.Ports.Len() {
			said[fmt.Sprint(f.Side, f.Rule.Protocol, f.Ports.First+uint16(port))] = true
		}
	}
	for name := range want {
		if _, ok := after[name]; !ok && !said[name] {
			t.Errorf("%v: %s is missing, and nothing was said", specs, name)
		}
	}
	for name := range after {
		if !want[name] {
			t.Errorf("%v: %s is left, there are %v", specs, name, slices.Sorted(maps.Keys(after)))
		}
	}
	if err == nil && len(failures) == 0 && len(after) != len(want) {
		t.Errorf("%v: %d listeners, want %d", specs, len(after), len(want))
	}
}
