package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// datagrams opens a socket in far that returns every datagram, and gives its address.
func (c *connection) datagrams(t *testing.T, far string) string {
	t.Helper()
	pc, err := c.Far.ListenPacket("udp", net.JoinHostPort(far, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:n], from)
		}
	}()
	return pc.LocalAddr().String()
}

// ask sends request until an answer comes: nobody promises that a datagram arrives.
func ask(conn net.Conn, request []byte) ([]byte, error) {
	b := make([]byte, 1<<16)
	var last error
	for range 5 {
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, err := conn.Read(b)
		if err == nil {
			return b[:n], nil
		}
		if last = err; !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
	return nil, last
}

func TestDatagramsOfAnySize(t *testing.T) {
	largest := map[string]int{"IPv4": 65507, "IPv6": 65527}
	for _, mtu := range []int{1500, 65520} {
		c := connect(t, newBed(t, defaultBed), "--mtu", fmt.Sprint(mtu))
		for _, f := range families {
			conn, err := c.target.Dial(t.Context(), "udp", c.datagrams(t, f.far))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, size := range []int{0, 1, 2, 7, 512, 1232, 1400, 1472, 1473, 8972, 16384, 32768, 65000, 65472, 65487, 65492, 65507, 65527} {
				if size > largest[f.name] {
					continue
				}
				t.Run(fmt.Sprintf("%s %d at MTU %d", f.name, size, mtu), func(t *testing.T) {
					want := make([]byte, size)
					io.ReadFull(data(uint64(size)), want)
					got, err := ask(conn, want)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, want) {
						t.Errorf("%d bytes came back, which differ or are not %d", len(got), size)
					}
				})
			}
		}
	}
}

// The far peer may send more than the target's MTU.
func TestDatagramsLargerThanTheMTUArrive(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed), "--mtu", "1500")
	for _, f := range families {
		pc, err := c.Far.ListenPacket("udp", net.JoinHostPort(f.far, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		conn, err := c.target.Dial(t.Context(), "udp", pc.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, size := range []int{1473, 4000, 65000, 65472, 65487, 65507} {
			t.Run(fmt.Sprintf("%s %d", f.name, size), func(t *testing.T) {
				want := make([]byte, size)
				io.ReadFull(data(uint64(size)), want)
				pc.SetReadDeadline(time.Now().Add(limit))
				var answering sync.WaitGroup
				answering.Go(func() {
					b := make([]byte, 16)
					for {
						_, from, err := pc.ReadFrom(b)
						if err != nil {
							return
						}
						pc.WriteTo(want, from)
					}
				})
				got, err := ask(conn, []byte("?"))
				pc.SetReadDeadline(time.Now())
				answering.Wait()
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%d bytes came, which differ or are not %d", len(got), size)
				}
			})
		}
	}
}

// A burst on a new flow comes out in order, and so do the answers.
func TestDatagramsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	const count = 60
	c := connect(t, newBed(t, defaultBed))
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			far, err := c.Far.ListenPacket("udp", net.JoinHostPort(f.far, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			conn, err := c.target.Dial(t.Context(), "udp", far.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// The target's kernel must know its neighbour: packets that wait for one are overtaken.
			first, err := c.target.Dial(t.Context(), "udp", c.datagrams(t, f.far))
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			if _, err := ask(first, nil); err != nil {
				t.Fatal(err)
			}
			// number is a datagram whose size says its number as well: not all can go in one piece.
			number := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 10+i%7) }
			for i := range count {
				if _, err := conn.Write(number(i)); err != nil {
					t.Fatal(err)
				}
			}
			var got []int
			var from net.Addr
			b := make([]byte, 64)
			far.SetReadDeadline(time.Now().Add(limit))
			for len(got) < count {
				var n int
				if n, from, err = far.ReadFrom(b); err != nil {
					t.Fatalf("after %v: %v", got, err)
				}
				if !bytes.Equal(b[:n], number(int(b[0]))) {
					t.Errorf("datagram %d has %d bytes", b[0], n)
				}
				got = append(got, int(b[0]))
			}
			if !slices.IsSorted(got) {
				t.Errorf("the far peer got %v", got)
			}
			for i := range count {
				if _, err := far.WriteTo(number(i), from); err != nil {
					t.Fatal(err)
				}
			}
			got = nil
			conn.SetReadDeadline(time.Now().Add(limit))
			for len(got) < count {
				n, err := conn.Read(b)
				if err != nil {
					t.Fatalf("after %v: %v", got, err)
				}
				if !bytes.Equal(b[:n], number(int(b[0]))) {
					t.Errorf("answer %d has %d bytes", b[0], n)
				}
				got = append(got, int(b[0]))
			}
			if !slices.IsSorted(got) {
				t.Errorf("the target got %v", got)
			}
		})
	}
}

func TestDatagramToAClosedPortIsRefused(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conn, err := c.target.Dial(t.Context(), "udp", net.JoinHostPort(f.far, "9"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := ask(conn, []byte("?")); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%v, want ECONNREFUSED", err)
			}
		})
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	for _, mtu := range []string{"65520", "1500"} {
		c := connect(t, newBed(t, defaultBed), "--mtu", mtu)
		pingAll(t, c, mtu)
	}
}

func pingAll(t *testing.T, c *connection, mtu string) {
	for _, f := range families {
		for _, size := range []string{"0", "8", "56", "1400", "1472", "1480", "8000", "60000"} {
			t.Run(f.name+" "+size+" at MTU "+mtu, func(t *testing.T) {
				if _, err := c.target.Output(patience(t, limit), bed.Root, "ping", "-c", "3", "-i", "0.1", "-W", "5", "-s", size, f.far); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
