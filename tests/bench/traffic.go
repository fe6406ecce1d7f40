package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// This file is the traffic: one process an end of a case, this program run again with
// "traffic ROLE ADDRESS [NUMBER]" as arguments. A generator prints "ready", then answers
// each line on its standard input, and ends with it:
//
//	count   the bytes it has received so far
//	rr N    after N milliseconds of transactions: latencies as JSON
//
// Sizes and calls are those of iperf3: 128 KiB a write of a stream, one call a datagram.

// traffic is a running generator, seen from the benchmark.
type traffic struct {
	proc *bed.Process
	in   io.WriteCloser
	out  *bufio.Reader
}

// generate starts a generator in n and waits until it is ready.
func generate(n *bed.NS, self string, args ...string) (*traffic, error) {
	cmd := exec.Command(self, append([]string{"traffic"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = w
	proc, err := n.Spawn(bed.Root, cmd) // a namespace's own limits apply to root as well
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	g := &traffic{proc: proc, in: in, out: bufio.NewReader(r)}
	go func() { // a generator that ended would otherwise leave the pipe open
		<-proc.Done()
		r.SetReadDeadline(time.Now().Add(time.Second))
	}()
	if line, err := g.line(); err != nil || line != "ready" {
		g.stop()
		return nil, fmt.Errorf("%s: not ready: %s %s", args[0], line, proc.Stderr())
	}
	return g, nil
}

func (g *traffic) line() (string, error) {
	s, err := g.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("generator: %w: %s", err, strings.TrimSpace(g.proc.Stderr()))
	}
	return strings.TrimSpace(s), nil
}

func (g *traffic) ask(question string) (string, error) {
	if _, err := io.WriteString(g.in, question+"\n"); err != nil {
		return "", fmt.Errorf("generator: %w: %s", err, g.proc.Stderr())
	}
	return g.line()
}

// count is the number of bytes the generator has received.
func (g *traffic) count() (int64, error) {
	s, err := g.ask("count")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(s, 10, 64)
}

// latency holds percentiles of the duration of one transaction in microseconds.
type latency struct{ P50, P99 float64 }

// transact lets the generator do transactions for d.
func (g *traffic) transact(d time.Duration) (latency, error) {
	var l latency
	s, err := g.ask(fmt.Sprintf("rr %d", d.Milliseconds()))
	if err == nil {
		err = json.Unmarshal([]byte(s), &l)
	}
	return l, err
}

func (g *traffic) stop() {
	g.in.Close()
	g.proc.Stop(5 * time.Second)
}

// A connection to the server begins with one of these bytes.
const (
	sinkByte   = 's' // the server discards what follows
	sourceByte = 'g' // the server sends without end
	echoByte   = 'e' // the server returns everything, this byte included
)

const (
	streamBuf = 128 << 10
	maxPacket = 65535
	dialLimit = 10 * time.Second
)

// generator is the process that traffic starts.
type generator struct {
	received atomic.Int64
	failed   chan error // capacity for one; more are dropped
	// transaction does one exchange; nil for roles that only count.
	transaction func() error
	conns       []net.Conn // kept open until the end
}

// trafficMain runs one role until standard input ends.
func trafficMain(args []string) error {
	if len(args) < 2 {
		return errors.New("traffic: role and address are missing")
	}
	n := 1
	if len(args) > 2 {
		var err error
		if n, err = strconv.Atoi(args[2]); err != nil {
			return err
		}
	}
	g := &generator{failed: make(chan error, 1)}
	roles := map[string]func(addr string, n int) error{
		"tcp-server": g.tcpServer,
		"tcp-send":   g.tcpSend,
		"tcp-recv":   g.tcpRecv,
		"tcp-rr":     g.tcpRR,
		"tcp-crr":    g.tcpCRR,
		"tcp-idle":   g.tcpIdle,
		"tcp-deaf":   g.tcpDeaf,
		"tcp-stuck":  g.tcpStuck,
		"udp-sink":   g.udpSink,
		"udp-source": g.udpSource,
		"udp-echo":   g.udpEcho,
		"udp-send":   g.udpSend,
		"udp-recv":   g.udpRecv,
		"udp-rr":     g.udpRR,
	}
	start, ok := roles[args[0]]
	if !ok {
		return fmt.Errorf("traffic: no role %q", args[0])
	}
	if err := start(args[1], n); err != nil {
		return fmt.Errorf("%s %s: %w", args[0], args[1], err)
	}
	fmt.Println("ready")
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			lines <- s.Text()
		}
	}()
	for {
		select {
		case err := <-g.failed:
			return fmt.Errorf("%s %s: %w", args[0], args[1], err)
		case line, ok := <-lines:
			if !ok {
				return nil
			}
			if err := g.answer(line); err != nil {
				return err
			}
		}
	}
}

func (g *generator) answer(line string) error {
	var ms int
	if _, err := fmt.Sscanf(line, "rr %d", &ms); err != nil {
		fmt.Println(g.received.Load())
		return nil
	}
	if g.transaction == nil {
		return errors.New("this role has no transactions")
	}
	var took []float64
	for start := time.Now(); time.Since(start) < time.Duration(ms)*time.Millisecond; {
		t := time.Now()
		if err := g.transaction(); err != nil {
			return err
		}
		took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
	}
	if len(took) == 0 {
		return errors.New("no transaction")
	}
	slices.Sort(took)
	at := func(q float64) float64 { return took[int(q*float64(len(took)-1))] }
	return json.NewEncoder(os.Stdout).Encode(latency{at(.5), at(.99)})
}

// fail ends the process with err, unless it is ending already.
func (g *generator) fail(err error) {
	select {
	case g.failed <- err:
	default:
	}
}

// drain counts what arrives on c until it ends.
func (g *generator) drain(c io.Reader, size int) error {
	b := make([]byte, size)
	for {
		n, err := c.Read(b)
		g.received.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// pour writes b to c until that fails.
func pour(c io.Writer, b []byte) error {
	for {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

func (g *generator) tcpServer(addr string, _ int) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				g.fail(err)
				return
			}
			go g.tcpServe(c)
		}
	}()
	return nil
}

// tcpServe does what the first byte says. A connection that ends is not an error here.
func (g *generator) tcpServe(c net.Conn) {
	defer c.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	switch first[0] {
	case sinkByte:
		g.drain(c, streamBuf)
	case sourceByte:
		pour(c, make([]byte, streamBuf))
	case echoByte:
		b := make([]byte, 4096)
		b[0] = echoByte
		for n := 1; ; {
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
			var err error
			if n, err = c.Read(b); err != nil {
				return
			}
		}
	}
}

func dial(addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialLimit}
	d.SetMultipathTCP(false)
	return d.Dial("tcp", addr)
}

// dialEcho connects and has one byte returned.
func dialEcho(addr string) (net.Conn, error) {
	c, err := dial(addr)
	if err != nil {
		return nil, err
	}
	if err := exchange(c)(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (g *generator) tcpSend(addr string, streams int) error {
	return g.streams(addr, streams, sinkByte, func(c net.Conn) error { return pour(c, make([]byte, streamBuf)) })
}

func (g *generator) tcpRecv(addr string, streams int) error {
	return g.streams(addr, streams, sourceByte, func(c net.Conn) error { return g.drain(c, streamBuf) })
}

// streams opens n connections, and begins to use them once all are open: a translator that
// is busy with one might not get round to the next.
func (g *generator) streams(addr string, n int, first byte, use func(net.Conn) error) error {
	for range n {
		c, err := dial(addr)
		if err != nil {
			return err
		}
		// Bulk senders leave Nagle's algorithm on; Go turns it off.
		if err := c.(*net.TCPConn).SetNoDelay(false); err != nil {
			return err
		}
		g.conns = append(g.conns, c)
	}
	for _, c := range g.conns {
		if _, err := c.Write([]byte{first}); err != nil {
			return err
		}
		go func() { g.fail(use(c)) }()
	}
	return nil
}

// exchange sends one byte on c and waits for it to come back.
func exchange(c net.Conn) func() error {
	b := []byte{echoByte}
	return func() error {
		if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := c.Read(b)
		return err
	}
}

func (g *generator) tcpRR(addr string, _ int) error {
	c, err := dialEcho(addr)
	if err != nil {
		return err
	}
	g.transaction = exchange(c)
	return nil
}

func (g *generator) tcpCRR(addr string, _ int) error {
	g.transaction = func() error {
		c, err := dialEcho(addr)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.(*net.TCPConn).SetLinger(0) // or the ports run out
	}
	return g.transaction() // whatever is made at first use is made now
}

// tcpIdle opens n connections, has a byte echoed on each, and keeps them.
func (g *generator) tcpIdle(addr string, n int) error {
	for range n {
		c, err := dialEcho(addr)
		if err != nil {
			return err
		}
		g.conns = append(g.conns, c)
	}
	return nil
}

const (
	// stuckPorts is the number of connections to one port of a server that reads nothing: less than
	// there are ephemeral ports.
	stuckPorts = 20000
	// stuckFor is how long no connection takes a byte before all are taken to be stuck.
	stuckFor = time.Second
)

// tcpDeaf accepts connections for n flows, on as many ports as that takes, and never reads.
func (g *generator) tcpDeaf(addr string, n int) error {
	addrs, err := stuckAddrs(addr, n)
	if err != nil {
		return err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// What the kernel keeps for the peer is not what is measured.
		return control(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	}}
	lc.SetMultipathTCP(false)
	for _, a := range addrs {
		l, err := lc.Listen(context.Background(), "tcp", a)
		if err != nil {
			return err
		}
		go func() {
			var conns []net.Conn
			defer func() {
				for _, c := range conns {
					c.Close()
				}
			}()
			for {
				c, err := l.Accept()
				if err != nil {
					g.fail(err)
					return
				}
				conns = append(conns, c)
			}
		}()
	}
	return nil
}

// stuckAddrs returns addr and the ports behind it.
func stuckAddrs(addr string, n int) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	first, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	var list []string
	for i := 0; i*stuckPorts < n; i++ {
		list = append(list, net.JoinHostPort(host, strconv.Itoa(first+i)))
	}
	return list, nil
}

// control calls f with the descriptor of c.
func control(c syscall.RawConn, f func(fd int) error) (err error) {
	if err2 := c.Control(func(fd uintptr) { err = f(int(fd)) }); err2 != nil {
		return err2
	}
	return err
}

// tcpStuck opens n connections, and writes to all of them until none takes any more.
func (g *generator) tcpStuck(addr string, n int) error {
	addrs, err := stuckAddrs(addr, n)
	if err != nil {
		return err
	}
	d := net.Dialer{Timeout: dialLimit, Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10) })
	}}
	d.SetMultipathTCP(false)
	var written atomic.Int64
	b := make([]byte, 16<<10)
	var dialling errgroup.Group
	for i := range 8 {
		dialling.Go(func() error {
			for j := i; j < n; j += 8 {
				c, err := d.Dial("tcp", addrs[j%len(addrs)])
				if err != nil {
					return fmt.Errorf("connection %d: %w", j, err)
				}
				go func() {
					for err := error(nil); err == nil; {
						var m int
						m, err = c.Write(b)
						written.Add(int64(m))
					}
					g.fail(err)
				}()
			}
			return nil
		})
	}
	if err := dialling.Wait(); err != nil {
		return err
	}
	for last := int64(-1); last != written.Load(); {
		last = written.Load()
		time.Sleep(stuckFor)
	}
	return nil
}

func (g *generator) udpSink(addr string, _ int) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go func() { g.fail(g.drain(c.(*net.UDPConn), maxPacket)) }()
	return nil
}

// udpSource sends datagrams of n bytes to whoever sent the first one.
func (g *generator) udpSource(addr string, n int) error {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	c := pc.(*net.UDPConn)
	go func() {
		_, to, err := c.ReadFromUDPAddrPort(make([]byte, maxPacket))
		for b := make([]byte, n); err == nil || errors.Is(err, unix.ECONNREFUSED); {
			_, err = c.WriteToUDPAddrPort(b, to)
		}
		g.fail(err)
	}()
	return nil
}

func (g *generator) udpEcho(addr string, _ int) error {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	c := pc.(*net.UDPConn)
	go func() {
		b := make([]byte, maxPacket)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err == nil {
				_, err = c.WriteToUDPAddrPort(b[:n], from)
			}
			if err != nil {
				g.fail(err)
				return
			}
		}
	}()
	return nil
}

func (g *generator) udpSend(addr string, n int) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	go func() { g.fail(pour(c, make([]byte, n))) }()
	return nil
}

func (g *generator) udpRecv(addr string, _ int) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	if _, err := c.Write([]byte{sourceByte}); err != nil {
		return err
	}
	go func() { g.fail(g.drain(c, maxPacket)) }()
	return nil
}

func (g *generator) udpRR(addr string, _ int) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	g.transaction = exchange(c)
	return g.transaction()
}
