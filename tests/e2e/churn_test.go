package e2e

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// TestSplicedConnectionsComeAndGo opens and closes 1,000 spliced connections a second, each with a
// request and an answer, for as long as FUSILLI_CHURN says. Nothing grows meanwhile, and none
// fails.
func TestSplicedConnectionsComeAndGo(t *testing.T) {
	const each = time.Millisecond // a connection
	length := 3 * time.Second
	if s := os.Getenv("FUSILLI_CHURN"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	c := connect(t, newBed(t, defaultBed), "-t", "7000", "-u", "none", "-T", "none", "-U", "none")
	l, err := c.target.Listen("tcp", ":7000")
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
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()

	var made atomic.Int64
	var first, last bed.Usage
	err = c.Host.Do(func() error {
		begin := time.Now()
		for n := time.Duration(0); n*each < length; n++ {
			time.Sleep(time.Until(begin.Add(n * each)))
			if n == length/each/3 {
				first = c.usage(t)
			}
			if err := exchangeOnce("127.0.0.1:7000"); err != nil {
				return err
			}
			made.Add(1)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("after %d connections: %v", made.Load(), err)
	}
	last = c.usage(t)
	t.Logf("%d connections; %+v after a third, %+v at the end", made.Load(), first, last)
	if grown := int64(last.RSS) - int64(first.RSS); grown > 8<<20 {
		t.Errorf("%d KiB more in use at the end than after a third", grown>>10)
	}
	waitFor(t, "descriptors to be closed", func() bool { return c.usage(t).FDs <= first.FDs+16 && c.usage(t).Threads <= first.Threads+4 })
}

// exchangeOnce connects, has four bytes returned, and closes.
func exchangeOnce(addr string) error {
	d := net.Dialer{Timeout: limit, FallbackDelay: -1}
	d.SetMultipathTCP(false)
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	b := []byte("ping")
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, b)
	return err
}
