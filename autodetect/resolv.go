package autodetect

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// ResolvConf is where resolv.conf(5) says the configuration is.
const ResolvConf = "/etc/resolv.conf"

// MaxSearch is the number of search domains taken from resolv.conf.
const MaxSearch = 5

// maxResolvConf is more than any resolver reads; what is beyond is ignored.
const maxResolvConf = 1 << 20

// Resolv is what resolv.conf(5) says, in its order, loopback addresses included. How many
// of the addresses are announced is for the caller to limit: one that a guest cannot
// reach does not use up a place.
type Resolv struct {
	V4, V6 []netip.Addr // without scopes
	Search []string
}

// Resolvers parses a resolv.conf(5). It reads what passt reads: lines that begin with
// "nameserver " or "search " exactly, of the former what follows the last blank but those at
// the end, up to a scope, of the latter the first line only, at most MaxSearch domains. Lines
// that make no sense are skipped. Errors are those of r.
func Resolvers(r io.Reader) (Resolv, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxResolvConf))
	var rc Resolv
	searched := false
	for line := range bytes.Lines(text) {
		line := strings.TrimRight(string(line), " \t\r\n")
		if rest, ok := strings.CutPrefix(line, "search "); ok && !searched {
			searched = true
			domains := strings.FieldsFunc(rest, func(c rune) bool { return c == ' ' || c == '\t' })
			rc.Search = domains[:min(len(domains), MaxSearch)]
		}
		if !strings.HasPrefix(line, "nameserver ") {
			continue
		}
		address, _, _ := strings.Cut(line[strings.LastIndexByte(line, ' ')+1:], "%")
		switch a, err := netip.ParseAddr(address); {
		case err != nil:
		case a.Is4():
			rc.V4 = append(rc.V4, a)
		default:
			rc.V6 = append(rc.V6, a)
		}
	}
	return rc, err
}

// ReadResolvers parses the file at path. One that does not exist is an empty one.
func ReadResolvers(path string) (Resolv, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Resolv{}, nil
	}
	if err != nil {
		return Resolv{}, err
	}
	defer f.Close()
	return Resolvers(f)
}
