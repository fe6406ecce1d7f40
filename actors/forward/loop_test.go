package forward

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/config"
	"fusilli/tests/bed"
)

// TestRulesThatLeadInACircle: they are refused, by Add and by Replace, and those that only nearly
// do are not.
func TestRulesThatLeadInACircle(t *testing.T) {
	for _, tt := range []struct {
		name  string
		specs string
		keep  bool
		port  string // that is named; empty: all is well
	}{
		{"both ways", "-t 80,-T 80", true, "80"},
		{"both ways, UDP", "-u 80,-U 80", true, "80"},
		{"the host's loopback leads to the namespace's address", "-t 80,-T 80", false, ""},
		{"two protocols", "-t 80,-U 80", true, ""},
		{"ports that are mapped, and back", "-t 80:8080,-T 8080:80", true, "80"},
		{"a chain that ends", "-t 80:81,-T 81:82,-t 82:83", true, ""},
		{"by way of others", "-t 80:81,-T 81:82,-t 82:83,-T 83:80", true, "80"},
		{"a chain into a circle", "-t 79:81,-t 82:83,-T 81:82,-T 83:82", true, "82"},
		{"the last of a range", "-t 1000-1005,-T 1005", true, "1005"},
		{"one range inside the other", "-t 1000-1010:2000-2010,-T 2003-2004:1003-1004", true, "1003"},
		{"one address", "-t 127.0.0.1/80,-T 80", true, "80"},
		{"an address of loopback that is no usual one", "-t 127.9.9.9/80,-T 80", true, "80"},
		{"IPv6", "-t ::1/80,-T 80", true, "80"},
		{"an address outside", "-t 192.0.2.10/80,-T 80", true, ""},
		{"an interface outside", "-t %h0/80,-T 80", true, ""},
		{"a target", "-t 0.0.0.0/80:192.0.2.30/80,-T 80", true, ""},
		{"what is not bound is not followed", "-t auto,-T auto", true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t, func(c *Config) { c.Policy.KeepLoopback = tt.keep })
			table := parse(t, strings.Split(tt.specs, ",")...)
			check := func(how string, failures []Failure, err error) {
				t.Helper()
				if len(failures) > 0 || (err == nil) != (tt.port == "") || err != nil && !strings.Contains(err.Error(), "port "+tt.port+" leads back") {
					t.Errorf("%s: %v, %v", how, failures, err)
				}
			}
			failures, err := p.Replace(table.Inbound, table.Outbound)
			check("Replace", failures, err)
			if n := len(p.List(config.Inbound)) + len(p.List(config.Outbound)); (n > 0) != (tt.port == "") {
				t.Errorf("%d rules then", n)
			}
			if _, err := p.Replace(nil, nil); err != nil {
				t.Fatal(err)
			}
			if failures, err := p.Add(config.Inbound, table.Inbound...); err != nil {
				t.Fatal(failures, err)
			}
			failures, err = p.Add(config.Outbound, table.Outbound...)
			check("Add", failures, err)
		})
	}
}

// TestCircleThatAppears: a scan has found a port of the host's that is not bound any more, and is
// forwarded now before the next scan: what comes to it would go out of the namespace again, and is
// refused.
func TestCircleThatAppears(t *testing.T) {
	p := newPlace(t, func(c *Config) { c.Policy.KeepLoopback = true })
	p.add(t, "-T auto")
	rule := parse(t, "-t 8080").Inbound
	refused := func(n *bed.NS, at string) bool {
		t.Helper()
		err := n.Do(func() error {
			c, err := net.DialTimeout("tcp", at, 10*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // or it has begun
			_, err = c.Read(make([]byte, 1))
			return err
		})
		return errors.Is(err, unix.ECONNRESET)
	}
	await(t, "a refusal", func() bool { // the scan may be faster
		service, err := p.host.Listen("tcp", ":8080")
		if err != nil {
			t.Fatal(err)
		}
		defer service.Close()
		await(t, "the service to be followed", func() bool { return p.Listeners(config.Outbound) == 1 })
		service.Close()
		if failures, err := p.Add(config.Inbound, rule...); err != nil {
			t.Fatal(failures, err)
		}
		got := refused(p.host, "127.0.0.1:8080") && refused(p.host, "127.0.0.2:8080") && refused(p.ns, "127.0.0.1:8080")
		if got {
			// Nor is anything else refused, and the next scan ends it.
			dial(t, p.host, "tcp", "192.0.2.10:5001", "192.0.2.10:8080")
			if flow, _ := p.twin.take(); flow.Kind != "tap TCP" {
				t.Errorf("%+v", flow)
			}
			await(t, "the next scan", func() bool { return p.Listeners(config.Outbound) == 0 })
			dial(t, p.host, "tcp", "", "127.0.0.1:8080")
			if flow, _ := p.twin.take(); flow.Kind != "SPLICE TCP" {
				t.Errorf("%+v", flow)
			}
			p.twin.none()
		} else {
			p.twin.forget()
		}
		if err := p.Remove(config.Inbound, rule...); err != nil {
			t.Fatal(err)
		}
		return got
	})
	if p.logs.FilterMessageSnippet("leads back to itself").Len() == 0 {
		t.Errorf("nothing is said: %v", p.logs.All())
	}
}
