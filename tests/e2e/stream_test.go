package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// chunk is the size of one write of a transfer.
const chunk = 128 << 10

// data is a stream of bytes that depends on nothing but its number.
func data(number uint64) io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], number)
	return rand.NewChaCha8(seed)
}

// send writes the first n bytes of stream number to c.
func send(c net.Conn, number uint64, n int) error {
	src := data(number)
	b := make([]byte, chunk)
	for n > 0 {
		b = b[:min(n, chunk)]
		io.ReadFull(src, b) // never fails
		if _, err := c.Write(b); err != nil {
			return fmt.Errorf("stream %d: %d bytes before the end: %w", number, n, err)
		}
		n -= len(b)
	}
	return nil
}

// receive reads c to its end, which must be that of the first n bytes of stream number.
func receive(c net.Conn, number uint64, n int) error {
	src := data(number)
	b, want := make([]byte, chunk), make([]byte, chunk)
	at := 0
	for {
		got, err := c.Read(b)
		io.ReadFull(src, want[:got])
		if !bytes.Equal(b[:got], want[:got]) {
			return fmt.Errorf("stream %d differs within %d bytes after byte %d", number, got, at)
		}
		at += got
		if err == io.EOF && at == n {
			return nil
		}
		if err != nil {
			return fmt.Errorf("stream %d: %d of %d bytes: %w", number, at, n, err)
		}
	}
}

// direction says who sends in a transfer.
type direction int

const (
	out  direction = 1 << iota // the target
	in                         // the far peer
	both = out | in
)

func (d direction) String() string { return [...]string{"none", "out", "in", "both"}[d] }

// transfer opens streams connections from the target to the far peer, moves total bytes
// over them in all in each direction asked for, checks every byte, and closes.
func (c *connection) transfer(t *testing.T, far string, dir direction, streams, total int) {
	t.Helper()
	l, err := c.Far.Listen("tcp", net.JoinHostPort(far, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	deadline := time.Now().Add(90 * time.Second)
	n := total / streams
	errs := make(chan error, 2*streams+1)

	// Each end sends, if it is to, says that it has no more, and receives meanwhile.
	play := func(conn net.Conn, sending, receiving direction, number uint64) {
		defer conn.Close()
		conn.SetDeadline(deadline)
		var wg sync.WaitGroup
		var sent error
		wg.Go(func() {
			if dir&sending != 0 {
				sent = send(conn, number<<2|uint64(sending), n)
			}
			sent = errors.Join(sent, conn.(*net.TCPConn).CloseWrite())
		})
		want := 0
		if dir&receiving != 0 {
			want = n
		}
		err := receive(conn, number<<2|uint64(receiving), want)
		wg.Wait()
		errs <- errors.Join(sent, err)
	}
	go func() {
		for range streams {
			conn, err := l.Accept()
			if err != nil {
				errs <- err
				return
			}
			go func() {
				var b [1]byte
				conn.SetDeadline(deadline)
				if _, err := io.ReadFull(conn, b[:]); err != nil {
					conn.Close()
					errs <- fmt.Errorf("stream number: %w", err)
					return
				}
				play(conn, in, out, uint64(b[0]))
			}()
		}
	}()
	for i := range streams {
		go func() {
			conn, err := c.target.Dial(patience(t, limit), "tcp", l.Addr().String())
			if err != nil {
				errs <- err
				return
			}
			if _, err := conn.Write([]byte{byte(i)}); err != nil {
				conn.Close()
				errs <- err
				return
			}
			play(conn, out, in, uint64(i))
		}()
	}
	for range 2 * streams {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

func TestTransfers(t *testing.T) {
	for _, mtu := range []int{1280, 1500, 9000, 65520} {
		t.Run(fmt.Sprintf("MTU %d", mtu), func(t *testing.T) {
			c := connect(t, newBed(t, defaultBed), "--mtu", fmt.Sprint(mtu))
			for _, f := range families {
				for _, streams := range []int{1, 50} {
					for _, dir := range []direction{out, in} {
						t.Run(fmt.Sprintf("%s %v %d", f.name, dir, streams), func(t *testing.T) {
							c.transfer(t, f.far, dir, streams, sized(64<<20))
						})
					}
				}
				t.Run(f.name+" both", func(t *testing.T) {
					c.transfer(t, f.far, both, 4, sized(64<<20))
				})
			}
		})
	}
}

// Over a link that loses frames the host's kernel retransmits; nothing of it may show.
func TestTransfersOverALossyLink(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, lossyBed))
	for _, dir := range []direction{out, in} {
		t.Run(dir.String(), func(t *testing.T) { c.transfer(t, families[0].far, dir, 4, sized(4<<20)) })
	}
}

func TestShortConnectionsLeaveNothing(t *testing.T) {
	c := connect(t, newBed(t, defaultBed))
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l, err := c.Far.Listen("tcp", net.JoinHostPort(f.far, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						io.Copy(conn, conn)
						conn.Close()
					}()
				}
			}()
			shorts := func(n int) {
				t.Helper()
				err := c.target.Do(func() error {
					b, got := []byte("the quick brown fox"), make([]byte, 64)
					d := net.Dialer{Timeout: limit}
					d.SetMultipathTCP(false)
					for i := range n {
						conn, err := d.Dial("tcp", l.Addr().String())
						if err != nil {
							return fmt.Errorf("connection %d: %w", i, err)
						}
						conn.SetDeadline(time.Now().Add(limit))
						if _, err := conn.Write(b); err != nil {
							return fmt.Errorf("connection %d: %w", i, err)
						}
						if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
							return fmt.Errorf("connection %d: %w", i, err)
						}
						m, err := io.ReadFull(conn, got)
						if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(got[:m], b) {
							return fmt.Errorf("connection %d: %q, %w", i, got[:m], err)
						}
						conn.Close()
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			shorts(200) // whatever is made at first use is made now
			before := c.usage(t)
			shorts(sizedCount(10000))
			// Ten in flight are no leak, one in a thousand would be.
			waitFor(t, "descriptors to be closed", func() bool { return c.usage(t).FDs <= before.FDs+4 })
			after := c.usage(t)
			if after.Threads > before.Threads+8 {
				t.Errorf("threads: %d, before %d", after.Threads, before.Threads)
			}
			if grown := after.RSS - before.RSS; grown > 16<<20 && !raceEnabled {
				t.Errorf("resident memory grew by %d KiB", grown>>10)
			}
			t.Logf("before %+v, after %+v", before, after)
		})
	}
}

// countConn counts the bytes that pass.
type countConn struct {
	net.Conn
	n atomic.Int64
}

func (c *countConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (c *countConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}
