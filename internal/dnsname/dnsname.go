// Package dnsname writes domain names as DNS has them on the wire: rows of labels, each behind its
// length, with an empty one at the end (RFC 1035, 3.1), and lists of them with compression (RFC
// 1035, 4.1.4). That is how DHCP, DHCPv6 and router advertisements carry a search list.
//
// It only writes. Names come from the command line or resolv.conf(5): bytes other than dots have no
// meaning here, and a name that DNS could not carry is an error.
package dnsname

import (
	"errors"
	"strings"
)

const (
	maxLabel = 63
	maxName  = 255 // with all lengths and the empty label

	pointer = 0xc000 // the two bits that tell a pointer from a length
)

// Errors of Append.
var (
	ErrRoot  = errors.New("name without a label")
	ErrLabel = errors.New("empty label, or one of more than 63 bytes")
	ErrLong  = errors.New("name of more than 255 bytes")
)

// Append appends name to b. A dot at the end of name makes no difference. b is unchanged after an
// error.
func Append(b []byte, name string) ([]byte, error) {
	labels, err := split(name)
	if err != nil {
		return b, err
	}
	for _, l := range labels {
		b = append(append(b, byte(len(l))), l...)
	}
	return append(b, 0), nil
}

// AppendList appends those of names to b that are names.
func AppendList(b []byte, names []string) []byte {
	for _, n := range names {
		b, _ = Append(b, n) // leaves b as it is
	}
	return b
}

// AppendCompressed appends those of names to b that are names, up to the first that would make what
// is appended longer than limit, which is at most 16383. The end of a name that has been written
// before is a pointer to there, counted from the first byte appended (RFC 3397, 2). No pointer
// leads to another: there are readers that follow one only.
func AppendCompressed(b []byte, names []string, limit int) []byte {
	start := len(b)
	at := make(map[string]int) // what was written without pointers, by its text, and where
	for _, n := range names {
		labels, err := split(n)
		if err != nil {
			continue
		}
		before := len(b)
		whole := true
		for i, l := range labels {
			if off, ok := at[strings.Join(labels[i:], ".")]; ok {
				b = append(b, byte(pointer>>8|off>>8), byte(off))
				whole = false
				break
			}
			b = append(append(b, byte(len(l))), l...)
		}
		if whole {
			b = append(b, 0)
		}
		if len(b)-start > limit {
			return b[:before]
		}
		for i, off := 0, before-start; whole && i < len(labels); i++ {
			at[strings.Join(labels[i:], ".")] = off
			off += 1 + len(labels[i])
		}
	}
	return b
}

// split returns name's labels.
func split(name string) ([]string, error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return nil, ErrRoot
	}
	if len(name)+2 > maxName {
		return nil, ErrLong
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if l == "" || len(l) > maxLabel {
			return nil, ErrLabel
		}
	}
	return labels, nil
}
