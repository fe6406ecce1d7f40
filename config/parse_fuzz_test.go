package config

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzParse reads any command line, a word a line. What is wrong with it is said as a user can read
// it; what is right has rules, or it is said why not, and reads the same once more.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"pasta", "passt", "qemu", "pasta\n--config-net\n--\nsh", "passt\n-f\n-4\n-t\n80\n-s\n/tmp/s", "pasta\n-t\nauto\n-u\n1-9,~3\n12",
		"passt\n-a\n192.0.2.1/24\n-g\n192.0.2.2\n-n\n255.255.0.0", "pasta\n-D\nnone\n-S\na b c\n--dns-forward\n::1\n-m\n1280",
		"pasta\n--map-host-loopback\n10.0.2.2\n--map-guest-addr\nnone\n--outbound-if4\neth0\n-o\n::1", "passt\n--runas\n1:2\n-l\n/tmp/l\n--log-size\n100000",
		"pasta\n--netns\n/run/n\n--userns\n/proc/1/ns/user", "passt\n--fd\n3\n-1\n-P\n/p\n-p\n/c", "pasta\n-T\nnone\n-U\nall\n--host-lo-to-ns-lo",
		"pasta\n--help", "passt\n--version", "passt\n-t\n2000\n-t\n2000", "pasta\n-a\nfe80::1\n-a\n::\n-M\n2:0:0:0:0:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		argv := strings.Split(text, "\n")
		cfg, err := Parse(argv)
		if err != nil {
			var plain *Error
			var usage *UsageError
			if !errors.As(err, &plain) && !errors.As(err, &usage) || err.Error() == "" {
				t.Fatalf("%q: %T %v", argv, err, err)
			}
			if cfg != nil {
				t.Fatalf("%q: a configuration in spite of %v", argv, err)
			}
			return
		}
		again, err := Parse(argv)
		if err != nil {
			t.Fatalf("%q: once more: %v", argv, err)
		}
		if diff := cmp.Diff(cfg, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Fatalf("%q: once more: %s", argv, diff)
		}
	})
}
