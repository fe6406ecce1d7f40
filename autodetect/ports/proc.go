package ports

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// readFile adds the ports of an open table of proc_net(5) to set.
func (s *Scanner) readFile(fd int, state uint8, set *Set) error {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return err
	}
	kept := 0 // bytes of a line that is not complete yet, at the head of the buffer
	for {
		n, err := receive(fd, s.buf[kept:])
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // the kernel writes whole lines
		}
		b := s.buf[:kept+n]
		for {
			line, rest, ok := bytes.Cut(b, []byte{'\n'})
			if !ok {
				break
			}
			if port, st, ok := parseLine(line); ok && st == state && port != 0 {
				set.Add(port)
			}
			b = rest
		}
		if kept = copy(s.buf, b); kept == len(s.buf) {
			return errMalformed
		}
	}
}

// parseLine reads the local port and the state of one line, as in
//
//	"  12: 0100007F:1F90 00000000:0000 0A 00000000:00000000 ..."
//
// and reports whether it is one: the heading, for one, is not.
func parseLine(line []byte) (port uint16, state uint8, ok bool) {
	line = bytes.TrimLeft(line, " ")
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return 0, 0, false
	}
	for _, c := range line[:colon] {
		if c < '0' || c > '9' {
			return 0, 0, false
		}
	}
	line, ok = bytes.CutPrefix(line[colon+1:], []byte{' '})
	if !ok {
		return 0, 0, false
	}
	local, n, ok := parseEndpoint(line)
	if !ok {
		return 0, 0, false
	}
	_, m, ok := parseEndpoint(line[n:])
	if !ok {
		return 0, 0, false
	}
	line = line[n+m:]
	st, ok := parseHex(line, 2)
	if !ok || len(line) > 2 && line[2] != ' ' {
		return 0, 0, false
	}
	return uint16(local), uint8(st), true
}

// parseEndpoint reads ADDRESS:PORT and the blank after it. It returns the port and the number of
// bytes.
func parseEndpoint(b []byte) (port uint64, n int, ok bool) {
	for _, digits := range [...]int{8, 32} {
		if len(b) > digits && b[digits] == ':' {
			for i := 0; i < digits; i += 8 {
				if _, ok := parseHex(b[i:], 8); !ok {
					return 0, 0, false
				}
			}
			port, ok := parseHex(b[digits+1:], 4)
			n := digits + 1 + 4
			return port, n + 1, ok && len(b) > n && b[n] == ' '
		}
	}
	return 0, 0, false
}

// parseHex reads digits hexadecimal digits.
func parseHex(b []byte, digits int) (v uint64, ok bool) {
	if len(b) < digits {
		return 0, false
	}
	for _, c := range b[:digits] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		v = v<<4 | uint64(c)
	}
	return v, true
}
