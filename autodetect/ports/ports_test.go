package ports

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3500 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3500 1 0000000000000000 100 0 0 10 0
1000: 0100007F:1F91 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 3500 1 0000000000000000 100 0 0 10 0
`

const tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`

func TestParseLine(t *testing.T) {
	type line struct {
		port  uint16
		state uint8
		ok    bool
	}
	for _, tt := range []struct {
		name string
		text string
		want []line
	}{
		{"IPv4", tcpTable, []line{{}, {8080, 0x0a, true}, {22, 0x0a, true}, {8081, 1, true}, {}}},
		{"IPv6", tcp6Table, []line{{}, {80, 0x0a, true}, {}}},
		{"lower case", "0: 0100007f:1F90 00000000:0000 0A 0", []line{{}}},
		{"no number", ": 0100007F:1F90 00000000:0000 0A 0", []line{{}}},
		{"no blank", "0:0100007F:1F90 00000000:0000 0A 0", []line{{}}},
		{"short address", "0: 0100007:1F90 00000000:0000 0A 0", []line{{}}},
		{"long port", "0: 0100007F:1F900 00000000:0000 0A 0", []line{{}}},
		{"one endpoint", "0: 0100007F:1F90 0A 00000000:0000", []line{{}}},
		{"long state", "0: 0100007F:1F90 00000000:0000 0AA 0", []line{{}}},
		{"cut after the state", "0: 0100007F:1F90 00000000:0000 0A", []line{{8080, 0x0a, true}}},
		{"cut in the state", "0: 0100007F:1F90 00000000:0000 0", []line{{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i, text := range strings.Split(tt.text, "\n") {
				port, state, ok := parseLine([]byte(text))
				if got := (line{port, state, ok}); got != tt.want[i] && (ok || tt.want[i].ok) {
					t.Errorf("line %d: %+v, want %+v", i, got, tt.want[i])
				}
			}
		})
	}
}

func FuzzParseLine(f *testing.F) {
	for _, line := range strings.Split(tcpTable+tcp6Table, "\n") {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		port, state, ok := parseLine(b)
		if !ok {
			return
		}
		again := fmt.Appendf(nil, "0: 00000000:%04X 00000000:0000 %02X", port, state)
		if p, s, ok := parseLine(again); !ok || p != port || s != state {
			t.Errorf("%q: port %d state %d became %d, %d, %v", b, port, state, p, s, ok)
		}
	})
}

func FuzzParseDump(f *testing.F) {
	message := make([]byte, 16+msgLen)
	message[0], message[4], message[17], message[20] = byte(len(message)), sockDiagByFamily, stateListen, 0x1f
	done := []byte{20, 0, 0, 0, unix.NLMSG_DONE, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	f.Add(append(bytes.Clone(message), done...))
	f.Add(message)
	f.Add(done[:18])
	f.Fuzz(func(t *testing.T, b []byte) {
		var set Set
		done, err := parseDump(b, stateListen, &set)
		if set.Len() > len(b)/(16+msgLen) || set.Has(0) {
			t.Errorf("%d ports in %d bytes", set.Len(), len(b))
		}
		if errors.Is(err, errMalformed) && done {
			t.Error("malformed, and done")
		}
	})
}

func TestSet(t *testing.T) {
	var s, u Set
	for _, p := range []uint16{0, 1, 63, 64, 65535} {
		s.Add(p)
		if !s.Has(p) {
			t.Errorf("%d is missing", p)
		}
	}
	if s.Len() != 5 || s.Has(2) {
		t.Errorf("%d ports, 2: %v", s.Len(), s.Has(2))
	}
	u.Add(1)
	u.Add(2)
	s.Union(&u)
	s.Remove(63)
	u.Remove(2)
	s.Subtract(&u)
	if s.Len() != 4 || s.Has(1) || !s.Has(2) || s.Has(63) {
		t.Errorf("ports %d, 1: %v, 2: %v, 63: %v", s.Len(), s.Has(1), s.Has(2), s.Has(63))
	}
}

// inNamespace runs the calling test again, alone and with args, in a network namespace of its own,
// and reports whether this is that run.
func inNamespace(t testing.TB, args ...string) bool {
	const variable = "FUSILLI_PORTS_INSIDE"
	if os.Getenv(variable) != "" {
		return true
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "/proc/self/exe", append(args, "-test.v")...)
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a namespace: %v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
	return false
}

func loopbackUp(t testing.TB) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
}

// open opens a scanner that uses what the name says.
func open(t testing.TB, how string) *Scanner {
	t.Helper()
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if how == "proc" {
		s.closeDiag()
	} else if s.diag < 0 {
		t.Skip("no socket diagnostics in this kernel")
	}
	return s
}

func TestBoundPortsAreFound(t *testing.T) {
	if !inNamespace(t, "-test.run=^TestBoundPortsAreFound$") {
		return
	}
	loopbackUp(t)
	type closer interface{ Close() error }
	closers := map[string]closer{}
	listen := func(network, addr string) {
		t.Helper()
		var c closer
		var err error
		if strings.HasPrefix(network, "tcp") {
			c, err = net.Listen(network, addr)
		} else {
			c, err = net.ListenPacket(network, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
		closers[network+addr] = c
	}
	listen("tcp4", "127.0.0.1:1001")
	listen("tcp6", "[::1]:1002")
	listen("tcp", ":1003")
	listen("tcp4", "0.0.0.0:65535")
	listen("udp4", "127.0.0.1:2001")
	listen("udp6", "[::1]:2002")
	listen("udp", ":2003")
	// These do not count: a connected UDP socket, and both ends of a TCP connection.
	udp, err := net.DialUDP("udp4", &net.UDPAddr{Port: 2004}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2001})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.DialTCP("tcp4", &net.TCPAddr{Port: 1004}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1001})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()

	scanners := map[string]*Scanner{"diag": open(t, "diag"), "proc": open(t, "proc")}
	check := func(tcp, udp []uint16) {
		t.Helper()
		var want Bound
		for _, p := range tcp {
			want.TCP.Add(p)
		}
		for _, p := range udp {
			want.UDP.Add(p)
		}
		for how, s := range scanners {
			var got Bound
			got.TCP.Add(7) // is forgotten
			if err := s.Read(&got, true, true); err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("%s: %d TCP ports and %d UDP ports, want %v and %v", how, got.TCP.Len(), got.UDP.Len(), tcp, udp)
			}
			var half Bound
			if err := s.Read(&half, false, true); err != nil {
				t.Fatal(err)
			}
			if half != (Bound{UDP: want.UDP}) {
				t.Errorf("%s: UDP alone: %d TCP ports, %d UDP ports", how, half.TCP.Len(), half.UDP.Len())
			}
		}
	}
	check([]uint16{1001, 1002, 1003, 65535}, []uint16{2001, 2002, 2003})
	closers["tcp:1003"].Close()
	closers["udp6[::1]:2002"].Close()
	check([]uint16{1001, 1002, 65535}, []uint16{2001, 2003})
}

// BenchmarkRead reads a namespace with 10,000 listening TCP sockets and as many bound UDP sockets.
func BenchmarkRead(b *testing.B) {
	if !inNamespace(b, "-test.run=^$", "-test.bench=^BenchmarkRead$", "-test.benchmem") {
		return
	}
	loopbackUp(b)
	var lim unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	lim.Cur = lim.Max
	unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	n := min(10000, int(lim.Max)/2-100)
	for i := range n {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Bind(fd, &unix.SockaddrInet4{Port: 20000 + i})
			}
			if err == nil && kind == unix.SOCK_STREAM {
				err = unix.Listen(fd, 1)
			}
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(fd)
		}
	}
	for _, how := range []string{"diag", "proc"} {
		b.Run(fmt.Sprintf("%s %d", how, n), func(b *testing.B) {
			s := open(b, how)
			var bound Bound
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Read(&bound, true, true); err != nil {
					b.Fatal(err)
				}
			}
			if bound.TCP.Len() != n || bound.UDP.Len() != n {
				b.Errorf("%d TCP ports, %d UDP ports", bound.TCP.Len(), bound.UDP.Len())
			}
		})
	}
}
