package clients

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"fusilli/tests/bed"
)

// greet listens on addr, "IP:port", in n. Each client is told its own address as seen there, and
// then gets back what it sends until it says that it has no more.
func greet(t *testing.T, n *bed.NS, addr string) {
	t.Helper()
	serving(t)(n.ServeTCP(addr, func(c net.Conn) {
		c.SetDeadline(time.Now().Add(limit))
		fmt.Fprintln(c, seen(c.RemoteAddr()))
		io.Copy(c, c)
	}))
}

// serving has what serves end with the test.
func serving(t *testing.T) func(io.Closer, error) {
	return func(c io.Closer, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// echo answers datagrams to addr in n with the sender's address as seen there.
func echo(t *testing.T, n *bed.NS, addr string) {
	t.Helper()
	serving(t)(n.ServeUDP(addr, func(_, from net.Addr, b []byte) []byte {
		return fmt.Appendf(nil, "%s %s\n", seen(from), strings.TrimSpace(string(b)))
	}))
}

// seen is the address without port, zone and mapped form.
func seen(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// meet connects from n to a greeting server at addr, has size bytes sent back, and returns the
// address that it was told.
func meet(t *testing.T, n *bed.NS, addr string, size int) (string, error) {
	t.Helper()
	c, err := n.Dial(patience(t, limit), "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(c, zeros{}, int64(size))
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	got, err2 := io.Copy(io.Discard, r)
	if err = errors.Join(err, err2); err == nil && int(got) != size {
		err = fmt.Errorf("%d bytes came back of %d", got, size)
	}
	if err != nil {
		c.Close()
	}
	return strings.TrimSpace(line), errors.Join(err, <-sent)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// ask sends a datagram to an echo server until it answers, and returns the address that it was
// told.
func ask(t *testing.T, n *bed.NS, addr string) (string, error) {
	t.Helper()
	c, err := n.Dial(patience(t, limit), "udp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := persist(c, []byte("hello"), 5)
	told, text, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if err == nil && text != "hello" {
		err = fmt.Errorf("answer %q", b)
	}
	return told, err
}

// persist sends b again every second until there is an answer, tries times.
func persist(c net.Conn, b []byte, tries int) (answer []byte, err error) {
	buf := make([]byte, 1<<16)
	for range tries {
		if _, err = c.Write(b); err != nil {
			return nil, err
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		var m int
		if m, err = c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			return buf[:m], err
		}
	}
	return nil, err
}

// answerAddr is what the resolver says for every name.
const answerAddr = "192.0.2.77"

// resolver serves DNS over UDP and TCP at addr in n: every name has answerAddr.
func resolver(t *testing.T, n *bed.NS, addr string) {
	t.Helper()
	serving(t)(n.ServeDNS(addr, answer))
}

func answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response, m.Additionals = true, nil
	if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(answerAddr).As4()},
		}}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// resolve asks the resolver at addr from n for a name's address, a few times over UDP.
func resolve(t *testing.T, n *bed.NS, network, addr string, tries int) (string, error) {
	t.Helper()
	q := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName("www.example.org."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.Dial(patience(t, time.Duration(tries)*time.Second), network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if network == "udp" {
		b, err = persist(c, b, tries)
	} else {
		c.SetDeadline(time.Now().Add(time.Duration(tries) * time.Second))
		if err = bed.WriteDNS(c, b); err == nil {
			b, err = bed.ReadDNS(c)
		}
	}
	if err != nil {
		return "", err
	}
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil || len(m.Answers) != 1 {
		return "", fmt.Errorf("answer %+v: %w", m, err)
	}
	a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
	if !ok {
		return "", fmt.Errorf("answer %+v", m)
	}
	return netip.AddrFrom4(a.A).String(), nil
}

// website serves HTTP at addr in n: text and the client's address.
func website(t *testing.T, n *bed.NS, addr, text string) {
	t.Helper()
	l, err := n.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap()
		fmt.Fprintf(w, "%s %s\n", text, from)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

// fetch gets http://addr/ from n.
func fetch(t *testing.T, n *bed.NS, addr string) (string, error) {
	t.Helper()
	c, err := n.Dial(patience(t, limit), "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	io.WriteString(c, "GET / HTTP/1.0\r\nHost: x\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return strings.TrimSpace(string(b)), err
}
