package autodetect

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func addrs(list ...string) []netip.Addr {
	var got []netip.Addr
	for _, s := range list {
		got = append(got, netip.MustParseAddr(s))
	}
	return got
}

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestResolvers(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Resolv
	}{
		{"empty", "", Resolv{}},
		{"usual", "# comment\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org example.com\noptions edns0\n",
			Resolv{addrs("192.0.2.53"), addrs("2001:db8::53"), []string{"example.org", "example.com"}}},
		{"no newline at the end", "nameserver 192.0.2.53", Resolv{V4: addrs("192.0.2.53")}},
		{"scope is dropped", "nameserver fe80::1%eth0\n", Resolv{V6: addrs("fe80::1")}},
		{"loopback stays", "nameserver 127.0.0.53\nnameserver ::1\n", Resolv{V4: addrs("127.0.0.53"), V6: addrs("::1")}},
		{"after the last blank", "nameserver   192.0.2.53\nnameserver 192.0.2.1 192.0.2.2\n", Resolv{V4: addrs("192.0.2.53", "192.0.2.2")}},
		{"blanks at the end", "nameserver 192.0.2.53 \t\nsearch a.example  \n", Resolv{V4: addrs("192.0.2.53"), Search: []string{"a.example"}}},
		{"other beginnings", " nameserver 192.0.2.1\nnameserver\t192.0.2.1\nNameserver 192.0.2.1\n#nameserver 192.0.2.1\n search a\nsearch\tb\n", Resolv{}},
		{"no address", "nameserver \nnameserver dns.example.org\nnameserver 192.0.2.256\nnameserver 192.0.2.1 # mine\n", Resolv{}},
		{"first search line only", "search a.example\nsearch b.example\n", Resolv{Search: []string{"a.example"}}},
		{"domain is ignored", "domain a.example\n", Resolv{}},
		{"five domains", "search a b\tc  d\t\te f\n", Resolv{Search: []string{"a", "b", "c", "d", "e"}}},
		{"carriage returns", "nameserver 192.0.2.53\r\nsearch a\r\n", Resolv{V4: addrs("192.0.2.53"), Search: []string{"a"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Resolvers(strings.NewReader(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, compareAddr); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadResolversWithoutFile(t *testing.T) {
	if got, err := ReadResolvers(t.TempDir() + "/resolv.conf"); err != nil || got.V4 != nil {
		t.Error(got, err)
	}
}

func FuzzResolvers(f *testing.F) {
	f.Add("nameserver 192.0.2.53\nnameserver fe80::1%e0\nsearch a b\n")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := Resolvers(strings.NewReader(in))
		if err != nil || len(got.Search) > MaxSearch {
			t.Fatal(got, err)
		}
		for _, a := range got.V4 {
			if !a.Is4() {
				t.Fatal(a)
			}
		}
		for _, a := range got.V6 {
			if a.Is4() || a.Zone() != "" {
				t.Fatal(a)
			}
		}
	})
}
