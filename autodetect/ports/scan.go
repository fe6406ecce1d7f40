package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Scanner reads the bound ports of the network namespace it was opened in, on whatever thread. One
// goroutine uses it at a time.
type Scanner struct {
	diag int    // netlink socket; -1 if the kernel does not do it
	proc [4]int // the tables' files; -1 if they cannot be read
	buf  []byte
}

// bufSize holds what the kernel returns at a time: never more than 32 KiB of netlink messages, and
// a page of a table of proc_net(5).
const bufSize = 64 << 10

// table is one of the kernel's tables of sockets.
type table struct {
	file   string
	family uint8
	proto  uint8
	state  uint8
}

const (
	stateListen      = 0x0a // TCP_LISTEN
	stateUnconnected = 0x07 // TCP_CLOSE, of a UDP socket
)

var tables = [...]table{
	{"/proc/thread-self/net/tcp", unix.AF_INET, unix.IPPROTO_TCP, stateListen},
	{"/proc/thread-self/net/tcp6", unix.AF_INET6, unix.IPPROTO_TCP, stateListen},
	{"/proc/thread-self/net/udp", unix.AF_INET, unix.IPPROTO_UDP, stateUnconnected},
	{"/proc/thread-self/net/udp6", unix.AF_INET6, unix.IPPROTO_UDP, stateUnconnected},
}

// Open makes a scanner for the network namespace the calling thread is in. The caller closes it.
// Nothing else is opened later: a sandbox may close the doors behind it.
func Open() (*Scanner, error) {
	s := &Scanner{diag: -1, buf: make([]byte, bufSize)}
	for i, t := range tables {
		fd, err := unix.Open(t.file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			fd = -1 // no IPv6, or no /proc
		}
		s.proc[i] = fd
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err == nil {
		s.diag = fd
	}
	var b Bound
	if err := s.Read(&b, true, true); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close gives the descriptors back.
func (s *Scanner) Close() {
	s.closeDiag()
	for i := range s.proc {
		if s.proc[i] >= 0 {
			unix.Close(s.proc[i])
			s.proc[i] = -1
		}
	}
}

func (s *Scanner) closeDiag() {
	if s.diag >= 0 {
		unix.Close(s.diag)
		s.diag = -1
	}
}

// Read sets the fields of b that are asked for; the others are left alone. After an error they mean
// nothing.
func (s *Scanner) Read(b *Bound, tcp, udp bool) error {
	for i, t := range tables {
		set, wanted := &b.TCP, tcp
		if t.proto == unix.IPPROTO_UDP {
			set, wanted = &b.UDP, udp
		}
		if !wanted {
			continue
		}
		if t.family == unix.AF_INET { // the first of the two
			*set = Set{}
		}
		if err := s.read(i, t, set); err != nil {
			return fmt.Errorf("read bound ports from %s: %w", t.file, err)
		}
	}
	return nil
}

// read adds the ports of one table to set.
func (s *Scanner) read(i int, t table, set *Set) error {
	if s.diag >= 0 {
		err := s.dump(t, set)
		if err == nil {
			return nil
		}
		if s.proc[i] < 0 {
			return err
		}
		// It will not work the next time either.
		s.closeDiag()
	}
	if s.proc[i] < 0 {
		if t.family == unix.AF_INET6 {
			return nil // a kernel without IPv6
		}
		return os.ErrNotExist
	}
	return s.readFile(s.proc[i], t.state, set)
}

// Layout of the messages of sock_diag(7): struct inet_diag_req_v2, struct inet_diag_msg.
const (
	sockDiagByFamily = 20
	reqLen           = 56
	msgLen           = 72
	msgPort          = 4 // idiag_sport, network byte order
)

// dump asks the kernel for the sockets of one table.
func (s *Scanner) dump(t table, set *Set) error {
	var req struct {
		hdr unix.NlMsghdr
		// struct inet_diag_req_v2
		family, proto, ext, pad uint8
		states                  uint32
		id                      [48]byte // any socket
	}
	req.hdr = unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + reqLen), Type: sockDiagByFamily,
		Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP,
	}
	req.family, req.proto, req.states = t.family, t.proto, 1<<t.state
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&req)), req.hdr.Len)
	if err := unix.Sendto(s.diag, raw, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		// The kernel answers within the call, each piece when the one before was received.
		n, err := receive(s.diag, s.buf)
		if err != nil {
			return err
		}
		done, err := parseDump(s.buf[:n], t.state, set)
		if done || err != nil {
			return err
		}
	}
}

func receive(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

var errMalformed = errors.New("malformed answer")

// parseDump adds the ports of one piece of an answer to set, and reports whether it was the last.
// Errors are errMalformed and what the kernel says of the request.
func parseDump(b []byte, state uint8, set *Set) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		n, typ := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return false, errMalformed
		}
		body := b[unix.SizeofNlMsghdr:n]
		switch typ {
		case unix.NLMSG_DONE:
			if len(body) >= 4 {
				if e := int32(binary.NativeEndian.Uint32(body)); e < 0 {
					return true, unix.Errno(-e)
				}
			}
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errMalformed
			}
			if e := int32(binary.NativeEndian.Uint32(body)); e < 0 {
				return true, unix.Errno(-e)
			}
			return true, nil
		case sockDiagByFamily:
			if len(body) < msgLen {
				return false, errMalformed
			}
			if port := uint16(body[msgPort])<<8 | uint16(body[msgPort+1]); body[1] == state && port != 0 {
				set.Add(port)
			}
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	if len(b) != 0 {
		return false, errMalformed
	}
	return false, nil
}
