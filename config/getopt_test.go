package config

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestNormalise(t *testing.T) {
	for _, tt := range []struct {
		name string
		args string // words, a blank between two
		want string
	}{
		{"nothing", "", "--"},
		{"short flag", "-f", "--foreground=true --"},
		{"cluster", "-df", "--debug=true --foreground=true --"},
		{"numeric flags", "-4f6", "--ipv4-only=true --foreground=true --ipv6-only=true --"},
		{"cluster with an attached value at its end", "-dft80", "--debug=true --foreground=true --tcp-ports=80 --"},
		{"cluster with the next word as value", "-dft 80", "--debug=true --foreground=true --tcp-ports=80 --"},
		{"attached value", "-t80", "--tcp-ports=80 --"},
		{"attached value with =", "-t=80", "--tcp-ports==80 --"},
		{"attached value that looks like options", "-p/tmp/Foo.pcap", "--pcap=/tmp/Foo.pcap --"},
		{"detached value", "-t 80", "--tcp-ports=80 --"},
		{"detached value with a dash", "-t -f", "--tcp-ports=-f --"},
		{"detached value --", "-t -- -f", "--tcp-ports=-- --foreground=true --"},
		{"long with =", "--tcp-ports=80", "--tcp-ports=80 --"},
		{"long with = in the value", "--tcp-ports=a=b", "--tcp-ports=a=b --"},
		{"long with an empty value", "--tcp-ports=", "--tcp-ports= --"},
		{"long with the next word", "--tcp-ports 80", "--tcp-ports=80 --"},
		{"long with a dash in the value", "--tcp-ports --debug", "--tcp-ports=--debug --"},
		{"abbreviation", "--foreg", "--foreground=true --"},
		{"abbreviation with a value", "--conf-p=x", "--conf-path=x --"},
		{"exact --dns", "--dns x", "--dns=x --"},
		{"exact --netns", "--netns x", "--netns=x --"},
		{"exact --no-dhcp", "--no-dhcp", "--no-dhcp=true --"},
		{"exact --outbound", "--outbound x", "--outbound=x --"},
		{"exact --socket", "--socket x", "--socket=x --"},
		{"other spelling", "--socket-path x", "--socket=x --"},
		{"abbreviation of both spellings", "--sock x", "--socket=x --"},
		{"first non-option ends", "-f ls -l --debug", "--foreground=true -- ls -l --debug"},
		{"-- ends", "-f -- -d", "--foreground=true -- -d"},
		{"-- after a command is the command's", "ls -- -d", "-- ls -- -d"},
		{"lone - is no option", "-f - -d", "--foreground=true -- - -d"},
		{"a value may be a lone -", "-t - x", "--tcp-ports=- -- x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := normalise(options, "pasta", strings.Fields(tt.args))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Fields(tt.want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("an empty word is no option", func(t *testing.T) {
		got, err := normalise(options, "pasta", []string{"", "-f"})
		if want := []string{"--", "", "-f"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	})
}

func TestNormaliseErrors(t *testing.T) {
	for _, tt := range []struct {
		name, args, want string
		before           string // what was understood before the error
	}{
		{"unknown long", "--foo", "unrecognized option '--foo'", ""},
		{"unknown long with a value", "--foo=bar", "unrecognized option '--foo=bar'", ""},
		{"what Podman looks for", "-q --map-guest-addrs 169.254.1.2", "unrecognized option '--map-guest-addrs'", "--quiet=true"},
		{"wrong case", "--Debug", "unrecognized option '--Debug'", ""},
		{"unknown short", "-x", "invalid option -- 'x'", ""},
		{"unknown short in a cluster", "-dxf", "invalid option -- 'x'", "--debug=true"},
		{"dash in a cluster", "-d-", "invalid option -- '-'", "--debug=true"},
		{"colon", "-:", "invalid option -- ':'", ""},
		{"first byte of a letter", "-é", "invalid option -- '\xc3'", ""},
		{"long lacks value", "--mtu", "option '--mtu' requires an argument", ""},
		{"abbreviation lacks value", "--mt", "option '--mtu' requires an argument", ""},
		{"short lacks value", "-m", "option requires an argument -- 'm'", ""},
		{"cluster lacks value", "-fm", "option requires an argument -- 'm'", "--foreground=true"},
		{"flag given a value", "--debug=1", "option '--debug' doesn't allow an argument", ""},
		{"abbreviated flag given a value", "--deb=1", "option '--debug' doesn't allow an argument", ""},
		{"ambiguous", "--no-copy", "option '--no-copy' is ambiguous; possibilities: '--no-copy-routes' '--no-copy-addrs'", ""},
		{"ambiguous with a value", "--outb=1", "option '--outb=1' is ambiguous; possibilities: '--outbound' '--outbound-if4' '--outbound-if6'", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := normalise(options, "/usr/bin/pasta", strings.Fields(tt.args))
			var usage *UsageError
			if !errors.As(err, &usage) {
				t.Fatalf("got %q, %v", got, err)
			}
			if want := "/usr/bin/pasta: " + tt.want; usage.Text != want {
				t.Errorf("text %q, want %q", usage.Text, want)
			}
			if before := strings.Join(got, " "); before != tt.before {
				t.Errorf("before it %q, want %q", before, tt.before)
			}
		})
	}
}

// The table itself: each row must be usable by all that is derived from it.
func TestOptionTable(t *testing.T) {
	long, short := map[string]bool{}, map[string]bool{}
	for _, o := range options {
		if long[o.long] || o.short != "" && short[o.short] {
			t.Errorf("--%s or -%s twice", o.long, o.short)
		}
		long[o.long], short[o.short] = true, true
		if len(o.short) > 1 || (o.same == "") == (o.set == nil) || (o.same == "") == (o.help == "") {
			t.Errorf("--%s: row incomplete", o.long)
		}
	}
	for _, o := range options {
		if !long[o.name()] {
			t.Errorf("--%s is the same as none", o.long)
		}
	}
	own := 0
	for _, o := range options {
		if o.own {
			own++
		}
	}
	if got := len(options) - own; got != 72 {
		t.Errorf("%d rows, the specification has 72", got)
	}
}

// What comes out must mean the same when it goes in again, and the words after the options must
// come through as they were.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{
		"", "-f", "-4ft80", "-t\n80\nls\n-l", "--tcp-ports=80\n--\n-x", "--sock\n/tmp/s", "--no-copy",
		"--debug=1", "--mtu", "-m", "-", "--", "--=", "-t\n--\nx", "--fd\n3\n-\n-d", "-\xff", "--dns=none\n\n-f",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		out, err := normalise(options, "pasta", slices.Clone(args))
		end := slices.Index(out, "--")
		if err != nil {
			if end >= 0 {
				t.Fatalf("%q: end in spite of %v: %q", args, err, out)
			}
			end = len(out)
		} else {
			if end < 0 {
				t.Fatalf("%q: no end: %q", args, out)
			}
			if rest := out[end+1:]; !slices.Equal(rest, args[len(args)-len(rest):]) {
				t.Fatalf("%q: rest %q", args, rest)
			}
			again, err := normaliseFlags(out)
			if err != nil || !slices.Equal(again, out) {
				t.Fatalf("%q: %q, again %q, %v", args, out, again, err)
			}
		}
		for _, w := range out[:end] {
			name, _, ok := strings.Cut(strings.TrimPrefix(w, "--"), "=")
			if !ok || !slices.ContainsFunc(options, func(o option) bool { return o.name() == name }) {
				t.Fatalf("%q: word %q", args, w)
			}
		}
		// Whatever it is, Parse gives one of the two answers.
		c, err := Parse(append([]string{"pasta"}, args...))
		var usage *UsageError
		var plain *Error
		if (c == nil) == (err == nil) || err != nil && !errors.As(err, &usage) && !errors.As(err, &plain) {
			t.Fatalf("%q: %v, %T %v", args, c, err, err)
		}
	})
}

// normaliseFlags is normalise for words it made itself: only "=true" is not getopt's.
func normaliseFlags(words []string) ([]string, error) {
	words = slices.Clone(words)
	for i, w := range words {
		if w == "--" {
			break
		}
		name, isTrue := strings.CutSuffix(w, "=true")
		if isTrue && slices.ContainsFunc(options, func(o option) bool { return "--"+o.long == name && o.arg == "" }) {
			words[i] = name
		}
	}
	return normalise(options, "pasta", words)
}

// Other programs of ours read their options in the same way.
func TestGetoptOfAnotherProgram(t *testing.T) {
	flags := []Flag{{"add", "A", false}, {"tcp-ports", "t", true}, {"tcp-ns", "T", true}, {"help", "h", false}}
	for _, tt := range []struct {
		name, args string
		given      []Given
		operands   []string
		err        string
	}{
		{"none", "", nil, nil, ""},
		{"in their order", "-A --tcp-ports=80 -t 81 -T82 --tcp-n 83 path", []Given{{"add", "true"}, {"tcp-ports", "80"}, {"tcp-ports", "81"}, {"tcp-ns", "82"}, {"tcp-ns", "83"}}, []string{"path"}, ""},
		{"the first word that is none ends them", "-A path -t 80", []Given{{"add", "true"}}, []string{"path", "-t", "80"}, ""},
		{"so do two dashes", "-- -A", nil, []string{"-A"}, ""},
		{"a value like a word that ends them", "-t -- x", []Given{{"tcp-ports", "--"}}, []string{"x"}, ""},
		{"unknown", "-h --nonsense path", []Given{{"help", "true"}}, nil, "p: unrecognized option '--nonsense'"},
		{"ambiguous", "--tcp", nil, nil, "p: option '--tcp' is ambiguous; possibilities: '--tcp-ports' '--tcp-ns'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			given, operands, err := Getopt(flags, "p", strings.Fields(tt.args))
			text := ""
			if err != nil {
				text = err.Error()
			}
			if diff := cmp.Diff([]any{tt.given, tt.operands, tt.err}, []any{given, operands, text}, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("- want, + got:\n%s", diff)
			}
		})
	}
}
