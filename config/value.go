package config

import (
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// blanks are what isspace(3) says in the C locale.
const blanks = " \t\n\v\f\r"

// strtoul reads all of s as strtoul(3) does: leading blanks, a sign (a negative number wraps
// around) and, with base 0, the prefixes of C. Unlike it, it takes no empty string.
func strtoul(s string, base int) (uint64, bool) {
	n, rest, ok := strtoulPrefix(s, base)
	return n, ok && rest == ""
}

// strtoulPrefix reads the number s begins with and returns what follows it. It is not ok if
// there is none or it is too large.
func strtoulPrefix(s string, base int) (n uint64, rest string, ok bool) {
	s = strings.TrimLeft(s, blanks)
	negative := strings.HasPrefix(s, "-")
	if negative || strings.HasPrefix(s, "+") {
		s = s[1:]
	}
	if base == 0 {
		switch {
		case len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x' && digit(s[2]) < 16:
			base, s = 16, s[2:]
		case strings.HasPrefix(s, "0"):
			base = 8
		default:
			base = 10
		}
	}
	end := 0
	for end < len(s) && digit(s[end]) < base {
		end++
	}
	n, err := strconv.ParseUint(s[:end], base, 64)
	if err != nil {
		return 0, s, false
	}
	if negative {
		n = -n
	}
	return n, s[end:], true
}

func digit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return math.MaxInt
}

// decimal reads all of s as a number of decimal digits up to limit.
func decimal(s string, limit int) (int, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= limit
}

// size reads all of s as a number of bytes, or of units of 1024, 1024² or 1024³ bytes: K, M or G.
func size(s string) (int, bool) {
	shift := 0
	if n := len(s) - 1; n >= 0 {
		switch s[n] | 0x20 {
		case 'k':
			shift = 10
		case 'm':
			shift = 20
		case 'g':
			shift = 30
		}
		if shift > 0 {
			s = s[:n]
		}
	}
	n, ok := decimal(s, math.MaxInt>>shift)
	return n << shift, ok
}

// refuse says which addresses an option does not take.
type refuse uint8

const (
	unspecified refuse = 1 << iota
	loopback
	multicast
	broadcast // 255.255.255.255
)

const notUnicast = unspecified | loopback | multicast | broadcast

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseAddr reads an address. It takes neither zones nor IPv4 addresses in IPv6 form: neither
// is an address a frame can carry.
func parseAddr(s string, not refuse) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Zone() != "" || a.Is4In6(),
		not&unspecified != 0 && a.IsUnspecified(),
		not&loopback != 0 && a.IsLoopback(),
		not&multicast != 0 && a.IsMulticast(),
		not&broadcast != 0 && a == broadcast4:
		return netip.Addr{}, false
	}
	return a, true
}

// parseMask reads the length of an IPv4 prefix: a number, or a mask like 255.255.255.0.
func parseMask(s string) (int, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		if !a.Is4() {
			return 0, false
		}
		ones, bits := net.IPMask(a.AsSlice()).Size()
		return ones, bits == 32 // 0 for a mask with holes
	}
	n, ok := strtoul(s, 0)
	return int(n), ok && n <= 32
}

// parseMAC reads exactly xx:xx:xx:xx:xx:xx.
func parseMAC(s string) (net.HardwareAddr, bool) {
	const form = "xx:xx:xx:xx:xx:xx"
	if len(s) != len(form) || strings.Count(s, ":") != 5 {
		return nil, false
	}
	mac, err := net.ParseMAC(s)
	return mac, err == nil
}

// parseAccount reads a number, or takes s for a name.
func parseAccount(s string) (Account, bool) {
	if n, ok := strtoul(s, 0); ok {
		// All ones means "leave as it is" to setresuid(2).
		return Account{ID: uint32(n)}, n < math.MaxUint32
	}
	return Account{Name: s}, s != ""
}

// Lengths of names, without the NUL that ends them in C.
const (
	maxIfName   = 15   // IFNAMSIZ
	maxPath     = 4095 // PATH_MAX
	maxSockPath = 107  // sun_path of unix(7)
	maxName     = 253  // RFC 1035, 2.3.4, as text
	maxDomain   = 1024
)
