package pesto

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fusilli/config"
)

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// everything is what a table with all capabilities allows.
var everything = config.Env{IPv4: true, IPv6: true, TCP: true, UDP: true, BindToDevice: true, Ephemeral: config.PortRange{First: 32768, Last: 60999}}

// rules makes rules of specifiers like "-t 80", of either direction.
func rules(t testing.TB, specs ...string) []config.Rule {
	t.Helper()
	var table config.Table
	for _, spec := range specs {
		proto, dir := config.TCP, config.Inbound
		if spec[1]|0x20 == 'u' {
			proto = config.UDP
		}
		if spec[1] < 'a' {
			dir = config.Outbound
		}
		s, err := config.ParsePorts(spec[3:], proto, dir, config.Pasta)
		if err == nil {
			err = table.Apply(&s, everything)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return append(table.Inbound, table.Outbound...)
}

func someTables(t testing.TB) []Table {
	return []Table{
		{ID: 1, Name: "HOST", Caps: 63, Rules: rules(t, "-t 80", "-u 127.0.0.1%eth0/20-24:30-34", "-t ::1/443", "-t 0.0.0.0/81", "-t ::/82",
			"-u 0.0.0.0/5000:192.0.2.5/6000", "-t [::1]/5000:2001:db8::5/6000", "-t 1024-1030,auto", "-u ~1-60000")},
		{ID: 3, Name: "SPLICE", Caps: 15, Rules: rules(t, "-T 70:7070", "-U auto")},
		{ID: 9, Name: "LATER"},
	}
}

func TestRoundTrip(t *testing.T) {
	want := someTables(t)
	r := bytes.NewReader(appendGreeting(nil, want))
	got, err := readGreeting(r)
	if err != nil || r.Len() != 0 {
		t.Fatalf("%v, %d bytes left", err, r.Len())
	}
	if diff := cmp.Diff(want, got, sameAddr, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("greeting, - sent, + received:\n%s", diff)
	}
	offered := []Table{{ID: 3, Name: "SPLICE", Caps: 15}, {ID: 9, Name: "LATER"}, {ID: 1, Name: "HOST", Caps: 63, Rules: rules(t, "-t 1")}}
	if got, err = readUpdate(bytes.NewReader(appendUpdate(nil, want)), offered); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Table{want[1], want[2], want[0]}, got, sameAddr, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("update, - sent, + received:\n%s", diff)
	}
}

// The bytes are those that programs of other makers exchange.
func TestFormat(t *testing.T) {
	rule := rules(t, "-u 0.0.0.0%eth0/258-259:192.0.2.5/513-514,auto")
	want := []byte("basil:s\x00\x00\x00\x00\x02\x00\x00\x00\x80\x00\x00\x00\x10\x01HOST" + strings.Repeat("\x00", 124) + "\x00\x00\x00\x3f\x00\x00\x00\x01")
	want = append(want, netip.MustParseAddr("::ffff:0.0.0.0").AsSlice()...)
	want = append(want, netip.MustParseAddr("::ffff:192.0.2.5").AsSlice()...)
	want = append(want, "eth0"+strings.Repeat("\x00", 12)...)
	want = append(want, 1, 2, 1, 3, 2, 1, 17, 4, 0)
	got := appendGreeting(nil, []Table{{ID: 1, Name: "HOST", Caps: 63, Rules: rule}})
	if len(rule) != 1 || !bytes.Equal(got, want) {
		t.Errorf("%v:\n%q, want\n%q", rule, got, want)
	}
	dual := rules(t, "-t ~1-60999")
	got = appendUpdate(nil, []Table{{ID: 1, Rules: dual}})
	if !bytes.Equal(got[:5+32], append([]byte{1, 0, 0, 0, 1}, make([]byte, 32)...)) || !bytes.Equal(got[len(got)-3:], []byte{6, 3, 0}) {
		t.Errorf("%v:\n%q", dual, got)
	}
}

// Each row changes one thing in a greeting or an update, which is refused then.
func TestRefused(t *testing.T) {
	tables := []Table{{ID: 1, Name: "HOST", Caps: 63, Rules: rules(t, "-t 80")}, {ID: 3, Name: "SPLICE"}}
	const rule = greetSize + 1 + tableSize // where the rule is
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		want   string
	}{
		{"nothing", func(b []byte) []byte { return nil }, "EOF"},
		{"another program", func(b []byte) []byte { b[0] = 'B'; return b }, "this is not a control socket"},
		{"another version", func(b []byte) []byte { b[11] = 1; return b }, "version 1 of the protocol is not known"},
		{"other sizes", func(b []byte) []byte { b[15] = 64; return b }, "sizes of names differ from ours"},
		{"other sizes of interfaces", func(b []byte) []byte { b[19] = 17; return b }, "sizes of names differ from ours"},
		{"half a greeting", func(b []byte) []byte { return b[:10] }, "unexpected EOF"},
		{"no table", func(b []byte) []byte { return b[:greetSize] }, "EOF"},
		{"half a table", func(b []byte) []byte { return b[:greetSize+50] }, "unexpected EOF"},
		{"no number of rules", func(b []byte) []byte { return b[:rule-2] }, "unexpected EOF"},
		{"half a rule", func(b []byte) []byte { return b[:rule+50] }, "unexpected EOF"},
		{"a table twice", func(b []byte) []byte { b[rule+ruleSize] = 1; return b }, "table 1 comes twice"},
		{"a table without a name", func(b []byte) []byte { b[greetSize+1] = 0; return b }, "invalid name of table 1"},
		{"a name that never ends", func(b []byte) []byte {
			copy(b[greetSize+1:], strings.Repeat("x", nameSize))
			return b
		}, "invalid name of table 1"},
		{"a name for the terminal", func(b []byte) []byte { b[greetSize+2] = 27; return b }, "invalid name of table 1"},
		{"too many rules", func(b []byte) []byte {
			binary.BigEndian.PutUint32(b[rule-4:], 256)
			return b
		}, "256 rules, more than 255"},
		{"far too many rules", func(b []byte) []byte {
			binary.BigEndian.PutUint32(b[rule-4:], 1<<32-1)
			return b
		}, "4294967295 rules, more than 255"},
		{"another protocol", func(b []byte) []byte { b[rule+54] = 132; return b }, "rule 0: protocol 132 is not forwarded"},
		{"a flag", func(b []byte) []byte { b[rule+55] |= 8; return b }, "rule 0: flags 0x9 are not known"},
		{"a range that ends before it begins", func(b []byte) []byte { b[rule+51]--; return b }, "rule 0: the range of ports has no end"},
		{"an address and both families", func(b []byte) []byte { b[rule+15] = 1; return b }, "rule 0: an address of both families is none of one"},
		{"an interface without an end", func(b []byte) []byte {
			copy(b[rule+32:], strings.Repeat("x", ifNameSize))
			return b
		}, "rule 0: invalid interface name"},
		{"an interface that is a path", func(b []byte) []byte { copy(b[rule+32:], "a/b"); return b }, "rule 0: invalid interface name"},
		{"an interface that is a directory", func(b []byte) []byte { copy(b[rule+32:], ".."); return b }, "rule 0: invalid interface name"},
		{"an interface for the terminal", func(b []byte) []byte { copy(b[rule+32:], "\n"); return b }, "rule 0: invalid interface name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readGreeting(bytes.NewReader(tt.change(appendGreeting(nil, tables))))
			if err == nil || err.Error() != tt.want {
				t.Errorf("%v, %v; want %s", got, err, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, io.EOF},
		{"a table and no more", appendUpdate(nil, tables[:1])[:5+ruleSize], io.ErrUnexpectedEOF},
		{"half a table", appendUpdate(nil, tables[:1])[:20], io.ErrUnexpectedEOF},
		{"only its number", []byte{1}, io.ErrUnexpectedEOF},
	} {
		if got, err := readUpdate(bytes.NewReader(tt.b), tables); err != tt.want {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
	if got, err := readUpdate(bytes.NewReader([]byte{2, 0, 0, 0, 0, 0}), tables); err == nil {
		t.Errorf("unknown table: %v", got)
	}
	if got, err := readUpdate(bytes.NewReader([]byte{0}), tables); err != nil || len(got) != 2 || len(got[0].Rules) != 0 {
		t.Errorf("no table: %v, %v; want them empty", got, err)
	}
}

// What is read can be written, and then is read as the same. Nothing else panics.
func FuzzWire(f *testing.F) {
	tables := someTables(f)
	f.Add(appendGreeting(nil, tables), true)
	f.Add(appendUpdate(nil, tables), false)
	f.Add(appendUpdate(nil, tables[1:]), false)
	f.Fuzz(func(t *testing.T, b []byte, greeting bool) {
		read, write := readGreeting, appendGreeting
		if !greeting {
			read = func(r io.Reader) ([]Table, error) { return readUpdate(r, tables) }
			write = appendUpdate
		}
		got, err := read(bytes.NewReader(b))
		if err != nil {
			return
		}
		wrote := write(nil, got)
		again, err := read(bytes.NewReader(wrote))
		if err != nil || !bytes.Equal(write(nil, again), wrote) {
			t.Errorf("%v:\n%s", err, cmp.Diff(got, again, sameAddr, cmpopts.EquateEmpty()))
		}
		for _, table := range got {
			var checked config.Table
			checked.Add(direction(table.Name), everything, table.Rules...) // must not panic
			for _, r := range table.Rules {
				if strings.ContainsAny(r.String(), "\n\x1b") {
					t.Errorf("%q is not for a terminal", r)
				}
			}
		}
	})
}
