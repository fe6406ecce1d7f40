// Command demo shows what pasta does, on a network made for the purpose (package bed):
// a host with one interface and a peer beyond it. Everything runs as an unprivileged user.
//
//	go run ./tests/demo [-pasta ./pasta]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"fusilli/tests/bed"
)

const (
	webPort  = "80"
	bulkPort = "5000"
	length   = time.Second // of each throughput measurement
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "throughput" {
		exit(throughput(os.Args[2], os.Args[3]))
	}
	path := flag.String("pasta", "./pasta", "the binary to show")
	flag.Parse()
	if bed.Outside() {
		if _, err := os.Stat(*path); err != nil {
			exit(fmt.Errorf("%w; run make first", err))
		}
	}
	inside, status, err := bed.Isolate()
	if err != nil {
		exit(err)
	}
	if !inside {
		os.Exit(status)
	}
	exit(show(*path))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// step is one command run in a namespace of its own, connected by pasta.
type step struct {
	title string
	argv  []string
}

// text is the command as one would type it.
func (s step) text(self string) string {
	words := make([]string, len(s.argv))
	for i, w := range s.argv {
		if words[i] = w; strings.ContainsRune(w, ' ') {
			words[i] = "'" + w + "'"
		}
	}
	return strings.ReplaceAll(strings.Join(words, " "), self, "demo")
}

func show(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	b, err := bed.New(bed.Config{})
	if err != nil {
		return err
	}
	defer b.Close()
	pasta, err := bed.Provide(path, "pasta")
	if err != nil {
		return err
	}
	self, err := bed.Provide("/proc/self/exe", "demo")
	if err != nil {
		return err
	}
	if err := serve(b.Far); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := b.Host.Output(ctx, bed.Nobody, pasta, "--config-net", "-q", "--", "true"); err != nil {
		return err
	}
	started := time.Since(begin)

	fmt.Print(`A host (10.77.0.2, fd77::2) and its gateway, a web server beyond it (10.77.0.1, fd77::1).
On the host, an unprivileged user starts commands in fresh network namespaces.

`)
	for _, s := range []step{
		{"The namespace has the host's addresses and routes", []string{"sh", "-c", "ip -brief address; ip route; ip -6 route show default"}},
		{"It reaches a server outside", []string{"curl", "-sS", "http://" + bed.FarAddr4 + "/"}},
		{"over IPv6 as well", []string{"curl", "-sS", "http://[" + bed.FarAddr6 + "]/"}},
		{"Ping needs no privilege", []string{"sh", "-c", "ping -q -c 3 -i 0.2 " + bed.FarAddr4 + " && ping -q -c 3 -i 0.2 " + bed.FarAddr6}},
		{"Throughput", []string{self, "throughput", "out", net.JoinHostPort(bed.FarAddr4, bulkPort)}},
		{"", []string{self, "throughput", "in", net.JoinHostPort(bed.FarAddr4, bulkPort)}},
	} {
		if s.title != "" {
			fmt.Printf("# %s:\n", s.title)
		}
		fmt.Printf("$ pasta --config-net --no-map-gw -- %s\n", s.text(self))
		cmd := exec.CommandContext(ctx, pasta, append([]string{"--config-net", "--no-map-gw", "-q", "--"}, s.argv...)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		p, err := b.Host.Spawn(bed.Nobody, cmd)
		if err != nil {
			return err
		}
		if status := p.Status(); status != 0 {
			return fmt.Errorf("exit status %d", status)
		}
		fmt.Println()
	}
	fmt.Printf("A namespace was made, connected, used for \"true\" and gone again in %.0f ms.\n", float64(started.Microseconds())/1e3)
	return nil
}

// serve offers a page, and a port that takes and gives as much as it can, in far.
func serve(far *bed.NS) error {
	web, err := far.Listen("tcp", ":"+webPort)
	if err != nil {
		return err
	}
	go http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello %s, you have reached %s.\n", r.RemoteAddr, r.Host)
	}))
	bulk, err := far.Listen("tcp", ":"+bulkPort)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := bulk.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				first := make([]byte, 1)
				if _, err := io.ReadFull(c, first); err != nil {
					return
				}
				if first[0] == 'o' {
					n, _ := io.Copy(io.Discard, c)
					fmt.Fprintln(c, n)
					return
				}
				for b := make([]byte, 128<<10); ; {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		}
	}()
	return nil
}

// throughput sends to or receives from addr for a while and says how fast.
func throughput(dir, addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(dir[:1])); err != nil {
		return err
	}
	b := make([]byte, 128<<10)
	begin := time.Now()
	if err := c.SetDeadline(begin.Add(length)); err != nil {
		return err
	}
	var n int64
	for err == nil {
		var m int
		if dir == "out" {
			m, err = c.Write(b)
		} else {
			m, err = c.Read(b)
		}
		n += int64(m)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if dir == "out" { // what counts is what has arrived, and when
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if _, err := fmt.Fscan(c, &n); err != nil {
			return err
		}
	}
	fmt.Printf("TCP %s: %.1f Gbit/s\n", dir, float64(n)*8/time.Since(begin).Seconds()/1e9)
	return nil
}
