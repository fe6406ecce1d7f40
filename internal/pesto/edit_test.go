package pesto

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fusilli/config"
)

// Each row is a command line's steps with the tables HOST (80, UDP 53) and SPLICE (70).
func TestEdit(t *testing.T) {
	const all = CapIPv4 | CapIPv6 | CapTCP | CapUDP | CapIfName
	for _, tt := range []struct {
		name, args string
		passt      bool
		caps       Caps // without; zero: none
		host       []string
		splice     []string
		err        string
		warned     string
	}{
		{name: "nothing", host: []string{"-t 80", "-u 53"}, splice: []string{"-T 70"}},
		{name: "a mode alone", args: "-A", host: []string{"-t 80", "-u 53"}, splice: []string{"-T 70"}},
		{name: "replace", args: "-t 81", host: []string{"-t 81"}, splice: []string{"-T 70"}},
		{name: "replace once", args: "-t 81 -u 81 -t 82", host: []string{"-t 81", "-u 81", "-t 82"}, splice: []string{"-T 70"}},
		{name: "replace by none", args: "-t none", splice: []string{"-T 70"}},
		{name: "replace outbound", args: "-U 81", host: []string{"-t 80", "-u 53"}, splice: []string{"-U 81"}},
		{name: "replace both, then add", args: "-T 81 -t 81 -A -T 82", host: []string{"-t 81"}, splice: []string{"-T 81", "-T 82"}},
		{name: "add", args: "-A -t 81 -u 81 -T 81", host: []string{"-t 80", "-u 53", "-t 81", "-u 81"}, splice: []string{"-T 70", "-T 81"}},
		{name: "as rootlesskit", args: "-A --tcp-ports=127.0.0.1/8080:80", host: []string{"-t 80", "-u 53", "-t 127.0.0.1/8080:80"}, splice: []string{"-T 70"}},
		{name: "delete", args: "-D -t 80", host: []string{"-u 53"}, splice: []string{"-T 70"}},
		{name: "delete both, the other way around", args: "-D -u 53 -t 80 -T 70"},
		{name: "delete, then add", args: "-D -t 80 -A -t 80:81", host: []string{"-u 53", "-t 80:81"}, splice: []string{"-T 70"}},
		{name: "add, then delete", args: "-A -t 81 -D -t 81", host: []string{"-t 80", "-u 53"}, splice: []string{"-T 70"}},
		{name: "clear", args: "-C HOST", splice: []string{"-T 70"}},
		{name: "clear the other", args: "--clear=SPLICE", host: []string{"-t 80", "-u 53"}},
		{name: "clear, then fill", args: "-C HOST -A -t 80", host: []string{"-t 80"}, splice: []string{"-T 70"}},
		{name: "fill, then clear", args: "-t 81 -C HOST", splice: []string{"-T 70"}},
		{name: "all but some", args: "-A -t 0.0.0.0/1-10,~2-9,auto", host: []string{"-t 80", "-u 53", "-t 0.0.0.0/1-10,~2-9,auto"}, splice: []string{"-T 70"}},
		{name: "IPv4 only", args: "-t 81 -A -u */82", caps: CapIPv6, host: []string{"-t 0.0.0.0/81", "-u 0.0.0.0/82"}, splice: []string{"-T 70"}},
		{name: "IPv6 only", args: "-t 81 -u 81 -D -t 81", caps: CapIPv4, host: []string{"-u ::/81"}, splice: []string{"-T 70"}},
		{name: "a target address, IPv4 only", args: "-t 81:192.0.2.5", caps: CapIPv6, host: []string{"-t 0.0.0.0/81:192.0.2.5"}, splice: []string{"-T 70"}},
		{name: "passt", args: "-t 81", passt: true, host: []string{"-t 81"}},

		{name: "clear what is not there", args: "-C TAP", err: "Unsupported pif name TAP"},
		{name: "clear in lower case", args: "-C host", err: "Unsupported pif name host"},
		{name: "clear, in passt", args: "-C SPLICE", passt: true, err: "Unsupported pif name SPLICE"},
		{name: "outbound, in passt", args: "-T 80", passt: true, err: "Can't use -T, no outbound interface"},
		{name: "outbound UDP, in passt", args: "-A -U none", passt: true, err: "Can't use -U, no outbound interface"},
		{name: "delete what is not there", args: "-D -t 81", err: "No such rule: TCP [*]:81  =>  81 "},
		{name: "delete what is there in another way", args: "-D -t 127.0.0.1/80", err: "No such rule: TCP [127.0.0.1]:80  =>  80 "},
		{name: "delete twice", args: "-D -t 80 -t 80", err: "No such rule: TCP [*]:80  =>  80 "},
		{name: "no specifier", args: "-t x", err: "Invalid port specifier 'x'"},
		{name: "a listening address inside", args: "-T 127.0.0.1/80", err: "Listening address not allowed for -T 127.0.0.1/80"},
		{name: "none after others", args: "-A -t none", err: "-t none conflicts with previous options"},
		{name: "scanning, in passt", args: "-t auto", passt: true, err: "'auto' port forwarding is only allowed for pasta"},
		{name: "a conflict", args: "-A -t 80-90", err: "Unable to add rule TCP [*]:80-90  =>  80-90 ",
			warned: "Forwarding configuration conflict: TCP [*]:80-90  =>  80-90  versus TCP [*]:80  =>  80 "},
		{name: "without UDP", args: "-u 1", caps: CapUDP, err: "Unable to add rule UDP [*]:1  =>  1 ", warned: "Can't add UDP forwarding rule, UDP not enabled"},
		{name: "without IPv6", args: "-t ::1/1", caps: CapIPv6, err: "Unable to add rule TCP [::1]:1  =>  1 ", warned: "IPv6 forward, but IPv6 not enabled"},
		{name: "without interfaces", args: "-t %lo/1", caps: CapIfName, err: "Device binding for '-t %lo/1' unsupported (requires kernel 5.7+)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			caps := all | CapScan
			if tt.passt {
				caps = all
			}
			caps &^= tt.caps
			tables := []Table{{ID: 1, Name: "HOST", Caps: caps, Rules: rules(t, "-t 80", "-u 53")}}
			if !tt.passt {
				tables = append(tables, Table{ID: 3, Name: "SPLICE", Caps: caps, Rules: rules(t, "-T 70")})
			}
			before := slices.Clone(tables[0].Rules)
			steps, _, err := config.Getopt(flags, "pesto", strings.Fields(tt.args))
			if err != nil {
				t.Fatal(err)
			}
			got, err := edit(tables, steps, func(line string) { t.Error(line) })
			if !slices.Equal(tables[0].Rules, before) {
				t.Errorf("what was there is now %v", tables[0].Rules)
			}
			if tt.err != "" {
				warned := ""
				if e, ok := err.(*config.Error); ok {
					warned = strings.Join(e.Warnings, "\n")
				}
				if err == nil || err.Error() != tt.err || warned != tt.warned {
					t.Errorf("%v, %q; want %q, %q", err, warned, tt.err, tt.warned)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range [][]string{tt.host, tt.splice} {
				if i < len(got) {
					if diff := cmp.Diff(texts(rules(t, want...)), texts(got[i].Rules)); diff != "" {
						t.Errorf("%s, - want, + got:\n%s", got[i].Name, diff)
					}
				}
			}
		})
	}
}

// A table that a later version has goes back as it came.
func TestEditKeepsUnknownTables(t *testing.T) {
	tables := []Table{{ID: 1, Name: "HOST", Caps: 63}, {ID: 7, Name: "LATER", Rules: rules(t, "-t 80")}}
	got, err := edit(tables, []config.Given{{Long: "tcp-ports", Value: "22"}}, func(string) {})
	if err != nil || len(got) != 2 || got[1].ID != 7 || !slices.Equal(got[1].Rules, tables[1].Rules) {
		t.Errorf("%v, %v", got, err)
	}
}

// Without SO_BINDTODEVICE, what listens inside does so on the loopback addresses, and the user is
// told.
func TestEditWithoutInterfaces(t *testing.T) {
	var warned []string
	tables := []Table{{ID: 3, Name: "SPLICE", Caps: CapIPv4 | CapIPv6 | CapTCP | CapUDP}}
	got, err := edit(tables, []config.Given{{Long: "tcp-ns", Value: "22"}}, func(line string) { warned = append(warned, line) })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"TCP [127.0.0.1]:22  =>  22 ", "TCP [::1]:22  =>  22 "}, texts(got[0].Rules)); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(warned, []string{"SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '-T 22'"}) {
		t.Error(warned)
	}
}

func texts(rules []config.Rule) (list []string) {
	for _, r := range rules {
		list = append(list, r.String())
	}
	return list
}
