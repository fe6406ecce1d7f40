package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// injectable are the system calls that may fail while flows are carried.
var injectable = []int32{
	unix.SYS_SOCKET, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
	unix.SYS_ACCEPT4, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG,
	unix.SYS_SPLICE, unix.SYS_PIPE2, unix.SYS_FCNTL, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_WRITE, unix.SYS_SHUTDOWN,
}

// way is one by which a flow can begin.
type way struct {
	name, network string
	ns            *bed.NS
	addr          string
}

// ways has somebody at the end of each way there is.
func (c *connection) ways(t *testing.T) []way {
	t.Helper()
	echoStreams(t, c.Far, ":7000")
	echoStreams(t, c.target.NS, ":7000")
	echoStreams(t, c.Host, ":7002")
	for _, f := range families {
		echoDatagrams(t, c.Far, net.JoinHostPort(f.far, "7001"))
	}
	echoDatagrams(t, c.target.NS, ":7001")
	echoDatagrams(t, c.Host, "127.0.0.1:7003")
	return []way{
		{"TCP out", "tcp", c.target.NS, net.JoinHostPort(bed.FarAddr4, "7000")},
		{"TCP out, IPv6", "tcp", c.target.NS, net.JoinHostPort(bed.FarAddr6, "7000")},
		{"TCP in", "tcp", c.Far, net.JoinHostPort(bed.HostAddr4, "7000")},
		{"TCP spliced in", "tcp", c.Host, "127.0.0.1:7000"},
		{"TCP spliced out", "tcp", c.target.NS, "127.0.0.1:7002"},
		{"UDP out", "udp", c.target.NS, net.JoinHostPort(bed.FarAddr4, "7001")},
		{"UDP in", "udp", c.Far, net.JoinHostPort(bed.HostAddr6, "7001")},
		{"UDP spliced in", "udp", c.Host, "127.0.0.1:7001"},
		{"UDP spliced out", "udp", c.target.NS, "127.0.0.1:7003"},
		{"echo", "ping", c.target.NS, bed.FarAddr4},
	}
}

// try has a new flow go that way, within d.
func (w *way) try(t *testing.T, c *connection, d time.Duration) error {
	t.Helper()
	switch w.network {
	case "tcp":
		return c.try(t, w.ns, w.addr, d)
	case "udp":
		return c.tryDatagram(t, w.ns, w.addr, d)
	}
	return c.tryPing(t, w.addr, d)
}

// established is a flow that there is before something fails.
type established struct {
	way
	conn net.Conn
	last error // of carries, while what the flow needs failed
}

// establish begins a flow each way that can be kept.
func (c *connection) establish(t *testing.T, ways []way) (list []*established) {
	t.Helper()
	for _, w := range ways {
		if w.network == "ping" {
			continue
		}
		conn, err := w.ns.Dial(patience(t, limit), w.network, w.addr)
		if err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		e := &established{way: w, conn: conn}
		t.Cleanup(func() { e.conn.Close() })
		for range 2 {
			if err := e.carries(limit); err != nil {
				t.Fatalf("%s: %v", w.name, err)
			}
		}
		list = append(list, e)
	}
	return list
}

// carries has the flow carry something there and back, within d. Datagrams may be lost meanwhile.
func (e *established) carries(d time.Duration) error {
	e.conn.SetDeadline(time.Now().Add(d))
	if e.network == "tcp" {
		return e.echoes(bytes.Repeat([]byte("still there, "+time.Now().String()), e.size()))
	}
	want := []byte("datagram " + time.Now().String())
	b := make([]byte, 100)
	for end := time.Now().Add(d); ; {
		_, err := e.conn.Write(want)
		e.conn.SetReadDeadline(time.Now().Add(min(d, 200*time.Millisecond)))
		for err == nil {
			var n int
			if n, err = e.conn.Read(b); err == nil && string(b[:n]) == string(want) {
				return nil
			}
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// size is how often a message is repeated: what is spliced is much, to go through a pipe.
func (e *established) size() int {
	if strings.Contains(e.name, "spliced") {
		return 1 << 14
	}
	return 1
}

// echoes sends want, and has it come back.
func (e *established) echoes(want []byte) error {
	sent := make(chan error, 1)
	go func() {
		_, err := e.conn.Write(want)
		sent <- err
	}()
	got := make([]byte, len(want))
	_, err := io.ReadFull(e.conn, got)
	if err != nil {
		e.conn.SetDeadline(time.Now())
	}
	if err2 := <-sent; err == nil {
		err = err2
	}
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("something else comes back")
	}
	return err
}

// goesOn is carries after a while in which the flow may have carried some of a message.
func (e *established) goesOn(d time.Duration) error {
	if e.network != "tcp" {
		return e.carries(d)
	}
	e.conn.SetDeadline(time.Now().Add(d))
	end := []byte(fmt.Sprintf("<%d>", time.Now().UnixNano()))
	sent := make(chan error, 1)
	go func() {
		_, err := e.conn.Write(end)
		sent <- err
	}()
	var got []byte
	for b := make([]byte, 1<<16); !bytes.HasSuffix(got, end); {
		n, err := e.conn.Read(b)
		if got = append(got, b[:n]...); err != nil {
			e.conn.SetDeadline(time.Now())
			return errors.Join(err, <-sent)
		}
		got = got[max(0, len(got)-100):]
	}
	return <-sent
}

// attempts is how many connections each way are begun to see whether each leaves something behind:
// more than there are sockets kept for later.
const attempts = 150

// attempts begins many connections and closes them at once.
func (c *connection) attempts(t *testing.T, ways []way, d time.Duration) {
	t.Helper()
	var trying sync.WaitGroup
	for _, w := range ways {
		if w.network != "tcp" || strings.Contains(w.name, "IPv6") || w.name == "TCP spliced out" {
			continue
		}
		for range attempts {
			trying.Go(func() {
				if conn, err := w.ns.Dial(patience(t, d), "tcp", w.addr); err == nil {
					conn.Close()
				}
			})
		}
	}
	trying.Wait()
}

// quiet waits until the translator does nothing.
func (c *connection) quiet(t *testing.T) {
	t.Helper()
	var used time.Duration
	waitFor(t, "the translator to be idle", func() bool {
		before := c.usage(t).CPU
		time.Sleep(100 * time.Millisecond) // the stretch that is measured
		used = c.usage(t).CPU - before
		return used <= 20*time.Millisecond
	})
}

// TestSystemCallsFail: for a while one system call has no memory, or may not be made. Who wants a
// new flow does without or has to wait, and nobody else notices: what there is goes on unless it
// needs that call, nothing spins, nothing is left behind, and when the call works again all is as
// before.
func TestSystemCallsFail(t *testing.T) {
	t.Parallel()
	outer := t
	const short = 150 * time.Millisecond
	c, j := connectInjected(t, newBed(t, defaultBed), injectable, "-t", "7000", "-u", "7001", "-T", "7002", "-U", "7003")
	ways := c.ways(t)
	old := c.establish(t, ways)
	for range 2 { // what is kept for later is there then
		for i := range ways {
			if err := ways[i].try(t, c, limit); err != nil {
				t.Fatalf("%s: %v", ways[i].name, err)
			}
		}
	}
	for _, row := range []struct {
		name    string
		failing failing
		calls   []int32
		// who cannot do without: they may be silent, and TCP may end; nil: nobody
		needs func(*established) bool
	}{
		{"socket", failing{errno: unix.ENOMEM}, []int32{unix.SYS_SOCKET}, nil},
		{"socket, EPERM", failing{errno: unix.EPERM}, []int32{unix.SYS_SOCKET}, nil},
		{"connect", failing{errno: unix.ENOMEM}, []int32{unix.SYS_CONNECT}, nil},
		{"connect, EPERM", failing{errno: unix.EPERM}, []int32{unix.SYS_CONNECT}, nil},
		{"bind", failing{errno: unix.ENOMEM}, []int32{unix.SYS_BIND}, nil},
		{"setsockopt", failing{errno: unix.ENOMEM}, []int32{unix.SYS_SETSOCKOPT}, nil},
		{"getsockopt", failing{errno: unix.ENOBUFS}, []int32{unix.SYS_GETSOCKOPT}, anyStream},
		{"names of sockets", failing{errno: unix.ENOBUFS}, []int32{unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME}, nil},
		{"accept", failing{errno: unix.ENOMEM}, []int32{unix.SYS_ACCEPT4}, nil},
		{"accept, EPERM", failing{errno: unix.EPERM}, []int32{unix.SYS_ACCEPT4}, nil},
		{"send", failing{errno: unix.ENOMEM}, []int32{unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG}, anybody},
		{"send, ENOBUFS", failing{errno: unix.ENOBUFS}, []int32{unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG}, anybody},
		{"send, EPERM", failing{errno: unix.EPERM}, []int32{unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG}, anybody},
		{"receive", failing{errno: unix.ENOMEM}, []int32{unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG}, anybody},
		{"pipe2, splice", failing{errno: unix.ENOMEM}, []int32{unix.SYS_SPLICE, unix.SYS_PIPE2}, nil},
		{"fcntl", failing{errno: unix.EPERM}, []int32{unix.SYS_FCNTL}, nil},
		{"epoll_ctl", failing{errno: unix.ENOMEM}, []int32{unix.SYS_EPOLL_CTL}, nil},
		{"epoll_create1", failing{errno: unix.ENOMEM}, []int32{unix.SYS_EPOLL_CREATE1}, nil},
		{"write to the tap", failing{errno: unix.ENOMEM, where: onTap}, []int32{unix.SYS_WRITE}, onTheTap},
		{"write to the tap, ENOBUFS", failing{errno: unix.ENOBUFS, where: onTap}, []int32{unix.SYS_WRITE}, onTheTap},
		{"shutdown", failing{errno: unix.ENOBUFS}, []int32{unix.SYS_SHUTDOWN}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			needs := func(e *established) bool { return row.needs != nil && row.needs(e) }
			before := c.usage(t)
			j.fail(row.failing, row.calls...)
			began := time.Now()
			var trying sync.WaitGroup
			var refused sync.Map
			for i := range ways {
				trying.Go(func() {
					if err := ways[i].try(t, c, short); err != nil {
						refused.Store(ways[i].name, err)
					}
				})
			}
			trying.Wait()
			for _, e := range old {
				trying.Go(func() {
					if needs(e) {
						e.last = e.carries(short)
					} else if err := e.carries(limit); err != nil {
						t.Errorf("%s, which has nothing to do with it: %v", e.name, err)
					}
				})
			}
			trying.Wait()
			if row.needs == nil { // calls that flows begin with
				c.attempts(t, ways, short)
			}
			took, used := time.Since(began), c.usage(t).CPU-before.CPU
			hits := j.stop()
			refused.Range(func(name, err any) bool { t.Logf("%v: %v", name, err); return true })
			t.Logf("%d calls have failed in %v, %v of CPU time", hits, took, used)
			if used > took/2 && used > time.Second {
				t.Errorf("%v of CPU time in %v", used, took)
			}
			if hits > 20000 {
				t.Errorf("%d calls have failed in %v: that is a loop", hits, took)
			}

			for i := range ways {
				// A call that has failed a moment ago may still have this flow give way to another.
				err := ways[i].try(t, c, limit)
				for end := time.Now().Add(limit); err != nil && time.Now().Before(end); {
					err = ways[i].try(t, c, limit)
				}
				if err != nil {
					t.Errorf("%s, when all is well again: %v", ways[i].name, err)
				}
			}
			for i, e := range old {
				switch err := e.goesOn(limit); {
				case err == nil:
				case e.network == "tcp" && needs(e) && errors.Is(errors.Join(err, e.last), unix.ECONNRESET):
					t.Logf("%s has ended: %v", e.name, err)
					e.conn.Close()
					old[i] = c.establish(outer, []way{e.way})[0]
				default:
					t.Errorf("%s, when all is well again: %v", e.name, err)
				}
			}
			c.quiet(t)
			// What is left are some flows of datagrams, and sockets for later.
			waitFor(t, fmt.Sprintf("files to be closed, of which there were %d", before.FDs), func() bool { return c.usage(t).FDs < before.FDs+attempts })
		})
		select {
		case <-c.proc.Done():
			t.Fatalf("%s: ended with status %d: %s", row.name, c.proc.Status(), c.proc.Stderr())
		default:
		}
	}
	told := make(map[string]int)
	for line := range strings.Lines(c.proc.Stderr()) {
		text, _, _ := strings.Cut(line, " {")
		if told[text]++; told[text] == 2 {
			t.Errorf("said more than once: %s", text)
		}
	}
}

// Who may end when a call fails that it needs.
func anyStream(e *established) bool { return e.network == "tcp" }
func anybody(*established) bool     { return true }
func onTheTap(e *established) bool  { return !strings.Contains(e.name, "spliced") }

// TestIdleDatagramsTakeAllFiles: the target has more flows of UDP than the translator may have
// files, all of them answered and none used any more. Somebody else still finds room, long before
// they are over, and who is in use stays.
func TestIdleDatagramsTakeAllFiles(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed), "-t", "none", "-u", "none", "-T", "none", "-U", "7003")
	echoStreams(t, c.Far, ":7000")
	echoDatagrams(t, c.Host, "127.0.0.1:7003")
	old := c.living(t, bed.FarAddr4)
	addr := c.datagrams(t, bed.FarAddr4)
	c.fewFiles(t, 100)
	waitFor(t, "the files to be used up", func() bool {
		for _, to := range []string{addr, "127.0.0.1:7003"} {
			c.tryDatagram(t, c.target.NS, to, 100*time.Millisecond)
		}
		return strings.Contains(c.proc.Stderr(), "too many open files") &&
			c.try(t, c.target.NS, net.JoinHostPort(bed.FarAddr4, "7000"), 200*time.Millisecond) != nil
	})
	waitFor(t, "room for a connection", func() bool {
		old.goOn(t, "meanwhile")
		return c.try(t, c.target.NS, net.JoinHostPort(bed.FarAddr4, "7000"), 2*time.Second) == nil
	})
	if !strings.Contains(c.proc.Stderr(), "of UDP that are idle for longest give way to others") {
		t.Errorf("not said: %s", c.proc.Stderr())
	}
}
