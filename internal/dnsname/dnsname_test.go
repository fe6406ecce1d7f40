package dnsname

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

func TestAppend(t *testing.T) {
	long := strings.Repeat("a", 63)
	full := strings.Join([]string{long, long, long, strings.Repeat("b", 61)}, ".")
	for _, tt := range []struct {
		name, in string
		want     string
		err      error
	}{
		{"one label", "a", "\x01a\x00", nil},
		{"several", "www.example.org", "\x03www\x07example\x03org\x00", nil},
		{"dot at the end", "example.org.", "\x07example\x03org\x00", nil},
		{"longest label", long, "\x3f" + long + "\x00", nil},
		{"longest name", full, "\x3f" + long + "\x3f" + long + "\x3f" + long + "\x3d" + strings.Repeat("b", 61) + "\x00", nil},
		{"root", ".", "", ErrRoot},
		{"nothing", "", "", ErrRoot},
		{"empty label", "a..b", "", ErrLabel},
		{"dot in front", ".a", "", ErrLabel},
		{"two dots at the end", "a..", "", ErrLabel},
		{"long label", long + "a", "", ErrLabel},
		{"long name", full + "b", "", ErrLong},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Append([]byte("before"), tt.in)
			if string(got) != "before"+tt.want || !errors.Is(err, tt.err) {
				t.Errorf("Append = %q, %v", got, err)
			}
		})
	}
}

func TestAppendCompressed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		in    []string
		limit int
		want  string
	}{
		{"none", nil, 255, ""},
		{"one", []string{"a.example"}, 255, "\x01a\x07example\x00"},
		{"common end", []string{"a.example", "b.example"}, 255, "\x01a\x07example\x00\x01b\xc0\x02"},
		{"no pointer to a pointer", []string{"a.example", "b.example", "c.b.example"}, 255, "\x01a\x07example\x00\x01b\xc0\x02\x01c\x01b\xc0\x02"},
		{"a name that is the end of another", []string{"a.example", "example"}, 255, "\x01a\x07example\x00\xc0\x02"},
		{"twice the same", []string{"a.example.", "a.example"}, 255, "\x01a\x07example\x00\xc0\x00"},
		{"no common end", []string{"a.example", "b.xexample"}, 255, "\x01a\x07example\x00\x01b\x08xexample\x00"},
		{"what is no name", []string{".", "a", "b..c"}, 255, "\x01a\x00"},
		{"stops where it is full", []string{"a", "bbbbbb", "c"}, 6, "\x01a\x00"},
		{"just fits", []string{"a", "b", "c"}, 6, "\x01a\x00\x01b\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := AppendCompressed([]byte("before"), tt.in, tt.limit)
			if d := cmp.Diff("before"+tt.want, string(got)); d != "" {
				t.Error(d)
			}
		})
	}
}

// What is written is what another implementation reads, within the limit.
func FuzzAppendCompressed(f *testing.F) {
	f.Add("a.example b.example example c.b.example.", uint8(255))
	f.Add(". a..b b", uint8(4))
	f.Fuzz(func(t *testing.T, text string, limit uint8) {
		var want []string
		for _, n := range strings.Split(text, " ") {
			if b, err := Append(nil, n); err == nil {
				want = append(want, strings.TrimSuffix(n, "."))
				if l, err := rfc1035label.FromBytes(b); err != nil || !cmp.Equal(l.Labels, []string{strings.TrimSuffix(n, ".")}) {
					t.Fatalf("%q: %v, %v", n, l, err)
				}
			}
		}
		b := AppendCompressed([]byte{1, 2, 3}, strings.Split(text, " "), int(limit))
		if !bytes.Equal(b[:3], []byte{1, 2, 3}) || len(b)-3 > int(limit) {
			t.Fatalf("% x", b)
		}
		l, err := rfc1035label.FromBytes(b[3:])
		if err != nil || len(l.Labels) > len(want) {
			t.Fatalf("% x: %v, %v", b, l, err)
		}
		for i, n := range l.Labels {
			if n != want[i] {
				t.Fatalf("%q, want %q", l.Labels, want)
			}
		}
	})
}
