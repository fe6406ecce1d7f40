package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// asPesto makes program available by the name of pesto, once.
func asPesto(t *testing.T) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(program), "pesto")
	if err := os.Symlink(filepath.Base(program), path); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return path
}

// ctl is a control socket.
type ctl struct {
	b    *bed.Bed
	path string
}

// pesto runs pesto, which must succeed, and returns what it shows.
func (c *ctl) pesto(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.b.Host.Output(patience(t, limit), bed.Nobody, asPesto(t), append(args, c.path)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// lists checks what is forwarded now.
func (c *ctl) lists(t *testing.T, want ...string) {
	t.Helper()
	text := "passt/pasta configuration (" + c.path + ")\n" + strings.Join(want, "\n") + "\n"
	if got := c.pesto(t); got != text {
		t.Errorf("pesto shows\n%s, want\n%s", got, text)
	}
}

// client is a client of another maker, once it is greeted.
func (c *ctl) client(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", c.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(limit))
	b := make([]byte, 20)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "basil:s\x00\x00\x00\x00\x02\x00\x00\x00\x80\x00\x00\x00\x10" {
		t.Fatalf("greeting %q, %v", b, err)
	}
	return conn
}

// tcpRule is the table HOST with one port, as such a client sends it.
func tcpRule(port uint16) []byte {
	b := append([]byte{1, 0, 0, 0, 1}, make([]byte, 3*16)...)
	for range 3 {
		b = binary.BigEndian.AppendUint16(b, port)
	}
	return append(b, unix.IPPROTO_TCP, 1, 0)
}

// controlled connects a target with a control socket and ports 1100 in and 3100 out.
func controlled(t *testing.T) (*connection, *ctl) {
	t.Helper()
	b := newBed(t, defaultBed)
	c := &ctl{b, filepath.Join(scratch(t), ".pasta.sock")}
	return connect(t, b, "--conf-path="+c.path, "-t", "1100", "-u", "none", "-T", "3100", "-U", "none"), c
}

// Ports come and go, and are replaced, while connections go on.
func TestPortsChangeWhileRunning(t *testing.T) {
	t.Parallel()
	c, s := controlled(t)
	in4, in6 := bed.HostAddr4, "["+bed.HostAddr6+"]"
	s.lists(t, "  HOST", "    TCP [*]:1100  =>  1100 ", "  SPLICE", "    TCP [*]%lo:3100  =>  3100 ")

	// Connections of before, each way.
	type pair struct {
		name           string
		client, server *net.TCPConn
	}
	var old []pair
	for _, p := range []passage{
		{"spliced in", c.target.NS, c.Host, ":1100", "127.0.0.1:1100"},
		{"spliced out", c.Host, c.target.NS, "127.0.0.1:3100", "127.0.0.1:3100"},
		{"by the tap", c.target.NS, c.Far, ":1100", in4 + ":1100"},
		{"by the tap, IPv6", c.target.NS, c.Far, ":1100", in6 + ":1100"},
	} {
		client, server := p.open(t)
		old = append(old, pair{p.name, client, server})
	}
	greeter(t, c.target.NS, ":1100", "first")
	greeter(t, c.target.NS, ":1101", "second")
	greeter(t, c.Host, "127.0.0.1:3100", "out")
	greeter(t, c.Host, "127.0.0.1:3101", "out again")
	serveDatagrams(t, c.target.NS, []string{bed.HostAddr4}, 1101)

	s.pesto(t, "-A", "-t", "1101", "-u", "1101", "-T", "3101")
	greeted(t, c.Far, in4+":1100", "first")
	greeted(t, c.Far, in4+":1101", "second")
	greeted(t, c.Far, in6+":1101", "second")
	greeted(t, c.Host, "127.0.0.1:1101", "second")
	greeted(t, c.target.NS, "127.0.0.1:3101", "out again")
	if _, _, err := exchangeDatagrams(t, c.Far, in4+":1101", 3); err != nil {
		t.Error(err)
	}
	s.pesto(t, "-D", "-t", "1100", "-T", "3100")
	greeted(t, c.Far, in4+":1100", "")
	greeted(t, c.target.NS, "127.0.0.1:3100", "")
	greeted(t, c.Host, "127.0.0.1:1101", "second")
	// A port leads elsewhere, and the first port for a table empties it.
	if got, want := s.pesto(t, "-s", "-t", "1101:1100"), "Updated configuration ("+s.path+")\n  HOST\n    TCP [*]:1101  =>  1100 \n  SPLICE\n    TCP [*]%lo:3101  =>  3101 \n"; !strings.HasSuffix(got, want) {
		t.Errorf("%s, want %s", got, want)
	}
	greeted(t, c.Far, in4+":1101", "first")
	// Only while it is bound.
	s.pesto(t, "-A", "-t", "1200-1210,auto")
	greeted(t, c.Far, in4+":1205", "")
	greeter(t, c.target.NS, ":1205", "bound")
	greeted(t, c.Far, in4+":1205", "bound")
	s.pesto(t, "--clear=HOST", "--clear=SPLICE")
	s.lists(t, "  HOST", "  SPLICE")
	for _, port := range []string{":1101", ":1205"} {
		greeted(t, c.Far, in4+port, "")
	}
	greeted(t, c.target.NS, "127.0.0.1:3101", "")

	for _, p := range old {
		const size = 1 << 20
		sent := make(chan error, 2)
		go func() { sent <- errors.Join(send(p.client, 1, size), p.client.CloseWrite()) }()
		go func() { sent <- errors.Join(send(p.server, 2, size), p.server.CloseWrite()) }()
		if err := errors.Join(receive(p.server, 1, size), receive(p.client, 2, size), <-sent, <-sent); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
}

// The command lines of rootlesskit 3, with a port of each kind.
func TestPublishedPorts(t *testing.T) {
	t.Parallel()
	c, s := controlled(t)
	s.pesto(t, "-t", "none", "-T", "none")
	greeter(t, c.target.NS, ":80", "web")
	serveDatagrams(t, c.target.NS, []string{bed.HostAddr4, bed.HostAddr6}, 81)
	tcp, udp := []string{"0.0.0.0/8080:80", "::/8080:80", "127.0.0.1/8090:80", "::1/8090:80"}, []string{"0.0.0.0/8081:81", "[::]/8081:81"}
	for i, option := range []string{"-A", "-D"} {
		for _, spec := range tcp {
			s.pesto(t, option, "--tcp-ports="+spec)
		}
		for _, spec := range udp {
			s.pesto(t, option, "--udp-ports="+spec)
		}
		if i > 0 {
			break
		}
		for _, addr := range []string{bed.HostAddr4 + ":8080", "[" + bed.HostAddr6 + "]:8080"} {
			greeted(t, c.Far, addr, "web")
		}
		for _, addr := range []string{"127.0.0.1:8090", "[::1]:8090"} {
			greeted(t, c.Host, addr, "web")
		}
		greeted(t, c.Far, bed.HostAddr4+":8090", "")
		for _, addr := range []string{bed.HostAddr4, "[" + bed.HostAddr6 + "]"} {
			if _, _, err := exchangeDatagrams(t, c.Far, addr+":8081", 2); err != nil {
				t.Error(err)
			}
		}
	}
	s.lists(t, "  HOST", "  SPLICE")
	greeted(t, c.Far, bed.HostAddr4+":8080", "")
	greeted(t, c.Host, "[::1]:8090", "")
}

// What a client sends that is no list of rules changes nothing, and a port that another program has
// is said in the log, while the others are forwarded.
func TestInvalidUpdate(t *testing.T) {
	t.Parallel()
	c, s := controlled(t)
	greeter(t, c.target.NS, ":1100", "first")
	port0 := tcpRule(0)
	for name, b := range map[string][]byte{
		"noise":            []byte(strings.Repeat("noise", 10000)),
		"another table":    {2, 0, 0, 0, 0, 0},
		"too many rules":   {1, 0, 1, 0, 0},
		"half of a rule":   tcpRule(1200)[:30],
		"no end":           tcpRule(1200)[:len(tcpRule(1200))-1],
		"port 0":           port0,
		"a rule twice":     append(tcpRule(1200)[:len(tcpRule(1200))-1], tcpRule(1200)...),
		"then another one": append(tcpRule(1200)[:len(tcpRule(1200))-1], 3, 0, 0, 0, 1),
	} {
		conn := s.client(t)
		conn.Write(b) // it may be more than is read
		conn.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		s.lists(t, "  HOST", "    TCP [*]:1100  =>  1100 ", "  SPLICE", "    TCP [*]%lo:3100  =>  3100 ")
		greeted(t, c.Far, bed.HostAddr4+":1100", "first")
	}
	said(t, c.proc, "Invalid request of configuration client, nothing is changed: ", 1)
	said(t, c.proc, "Forwarding rule attempts to map from port 0\n", 1)

	taken := greeter(t, c.Host, ":1300", "other")
	s.pesto(t, "-t", "1300", "-t", "1301:1100")
	greeted(t, c.Far, bed.HostAddr4+":1301", "first")
	greeted(t, c.Far, bed.HostAddr4+":1300", "other")
	said(t, c.proc, "Listen failed for HOST TCP port */1300: Address already in use\n", 1)
	said(t, c.proc, "Error switching to new forwarding rules\n", 1)
	taken.Close()
	s.pesto(t, "-A", "-t", "1302:1100")
	greeter(t, c.target.NS, ":1300", "ours")
	greeted(t, c.Far, bed.HostAddr4+":1300", "ours")
}

// A client that does nothing stops neither forwarding nor, for long, the next client; and while one
// is served the next waits.
func TestControlClientThatStalls(t *testing.T) {
	t.Parallel()
	c, s := controlled(t)
	serveStreams(t, c.target.NS, 1100, 1101)
	first := s.client(t)
	b := make([]byte, 64<<10) // the rest of the greeting
	if n, err := first.Read(b); err != nil || n < 1 {
		t.Fatal(err)
	}
	cmd := exec.Command(asPesto(t), "-A", "-t", "1101", s.path)
	second, err := c.Host.Spawn(bed.Nobody, cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Stop(limit)
	for range 20 {
		for _, way := range []struct {
			n    *bed.NS
			addr string
		}{{c.Host, "127.0.0.1:1100"}, {c.Far, bed.HostAddr4 + ":1100"}} {
			if _, _, err := exchange(t, way.n, way.addr, 100<<10); err != nil {
				t.Fatal(err)
			}
		}
	}
	if status := second.Status(); status != 0 { // after five seconds
		t.Errorf("the second client: status %d: %s", status, second.Stderr())
	}
	if n, err := first.Read(b); n > 0 && b[n-1] != 0 || n == 0 && err != io.EOF {
		t.Errorf("the first client got %d bytes, %v", n, err)
	}
	said(t, c.proc, "Configuration client has taken too long, nothing is changed\n", 1)
	if _, _, err := exchange(t, c.Far, bed.HostAddr4+":1101", 1000); err != nil {
		t.Error(err)
	}

	// The one that waits is shown what the one before it has done.
	first = s.client(t)
	out := make(chan string)
	go func() {
		out <- s.pesto(t)
	}()
	if _, err := first.Write(tcpRule(1400)); err != nil {
		t.Error(err)
	}
	if got := <-out; !strings.Contains(got, "    TCP [*]:1400  =>  1400 \n  SPLICE\n") {
		t.Errorf("the one that has waited is shown %s", got)
	}
}

// passt listens for what it is asked to, and the guest gets it.
func TestPortsOfPasstChange(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	dir := scratch(t)
	s := &ctl{b, filepath.Join(dir, "ctl")}
	p := passt(t, b, nil, "-4", "-s", filepath.Join(dir, "socket"), "-c", s.path)
	said(t, p, "Configuration socket: "+s.path+"\n", 1)
	h := plugIn(t, filepath.Join(dir, "socket"))
	h.Write(question())
	h.answered()
	s.lists(t, "  HOST")
	s.pesto(t, "-A", "-t", "1100:80", "-u", "1100:81")
	conn, err := b.Far.Dial(patience(t, limit), "tcp", bed.HostAddr4+":1100")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dgram, err := b.Far.Dial(patience(t, limit), "udp", bed.HostAddr4+":1100")
	if err != nil {
		t.Fatal(err)
	}
	defer dgram.Close()
	fmt.Fprint(dgram, "hello")
	h.SetReadDeadline(time.Now().Add(limit))
	r := bufio.NewReader(h)
	for want := map[[2]uint16]bool{{unix.IPPROTO_TCP, 80}: true, {unix.IPPROTO_UDP, 81}: true}; len(want) > 0; {
		var n uint32
		if err := binary.Read(r, binary.BigEndian, &n); err != nil {
			t.Fatalf("the guest has not got %v: %v", want, err)
		}
		f := make([]byte, n)
		if _, err := io.ReadFull(r, f); err != nil {
			t.Fatal(err)
		}
		if len(f) >= 14+20+4 && f[12] == 8 && f[13] == 0 && f[14] == 0x45 {
			delete(want, [2]uint16{uint16(f[23]), binary.BigEndian.Uint16(f[36:])})
		}
	}
	s.pesto(t, "-D", "-t", "1100:80", "-u", "1100:81")
	s.lists(t, "  HOST")
	greeted(t, b.Far, bed.HostAddr4+":1100", "")
	said(t, p, "New forwarding rules for HOST:\n    TCP [0.0.0.0]:1100  =>  80 \n    UDP [0.0.0.0]:1100  =>  81 \n", 1)
	said(t, p, "Accepted configuration client, PID ", 4)
}

// Without a tap there are the same two tables.
func TestSplicedPortsChange(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	s := &ctl{b, filepath.Join(scratch(t), "ctl")}
	c := attach(t, b, "-q", "--splice-only", "-c", s.path, "-t", "none", "-u", "none", "-T", "none", "-U", "none")
	greeter(t, c.target.NS, "127.0.0.1:1100", "inside")
	greeter(t, b.Host, "127.0.0.1:3100", "outside")
	s.pesto(t, "-t", "1100", "-T", "3100")
	greeted(t, b.Host, "127.0.0.1:1100", "inside")
	greeted(t, c.target.NS, "127.0.0.1:3100", "outside")
	s.pesto(t, "-t", "none", "-T", "none")
	greeted(t, b.Host, "127.0.0.1:1100", "")
	greeted(t, c.target.NS, "127.0.0.1:3100", "")
}

// A table of more ports than there are descriptors is served as far as they go, with what to do
// about the rest. The translator goes on.
func TestPortsBeyondDescriptors(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	dir := scratch(t)
	s := &ctl{b, filepath.Join(dir, "ctl")}
	p := passtBy(t, b, []string{"prlimit", "--nofile=300:300"}, nil, "-4", "-c", s.path, "-s", filepath.Join(dir, "socket"), "-t", "1100")
	s.pesto(t, "-t", "10000-10999")
	said(t, p, "Each port takes an open file: of 300 (RLIMIT_NOFILE), 236 can be ports. Raise the limit or forward fewer ports\n", 1)
	said(t, p, "Too many open files\n", 1)
	s.lists(t, "  HOST", "    TCP [0.0.0.0]:10000-10999  =>  10000-10999 ")
	h := plugIn(t, filepath.Join(dir, "socket"))
	h.Write(question())
	h.answered()
}
