package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
	"fusilli/tests/guest/wire"
)

// limit is how long anything may take that takes a moment, in a guest that is emulated.
const limit = 2 * time.Minute

var (
	program string // passt
	image   *Image
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return 1
	}
	var env []string
	if bed.Outside() {
		if raceEnabled {
			fmt.Fprintln(os.Stderr, "guest: not run with the race detector, which finds nothing in a guest")
			return 0
		}
		if _, err := exec.LookPath(qemu); err != nil {
			fmt.Fprintln(os.Stderr, "guest: SKIPPED, nothing tested:", err)
			return 0
		}
		img, err := Build()
		if err != nil {
			return fail(err)
		}
		dir, err := os.MkdirTemp("", "fusilli-guest")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(dir)
		path := os.Getenv("FUSILLI_BIN")
		if path == "" {
			path = filepath.Join(dir, "passt")
			build := exec.Command("go", "build", "-o", path, "fusilli")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if _, err := output(build); err != nil {
				return fail(err)
			}
		}
		env = append(img.Environ(), "FUSILLI_BIN="+path)
	}
	inside, status, err := bed.Isolate(env...)
	if err != nil {
		return fail(err)
	}
	if !inside {
		return status
	}
	image = PassedImage()
	if program, err = bed.Provide(os.Getenv("FUSILLI_BIN"), "passt"); err != nil {
		return fail(err)
	}
	return m.Run()
}

func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func newBed(t *testing.T) *bed.Bed {
	t.Helper()
	b, err := bed.New(bed.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// begin starts one of our programs on the bed's host, in the foreground, and waits until it is
// ready. line makes its command of the options that all have, and says where it runs. At the end of
// the test it must still run, or have been waited for, and end with status 0.
func begin(t *testing.T, b *bed.Bed, line func(common ...string) *exec.Cmd) *bed.Process {
	t.Helper()
	pid := filepath.Join(scratch(t), "pid")
	p, err := b.Host.Spawn(bed.Nobody, line("-f", "-P", pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if status := p.Stop(limit); status != 0 {
			t.Errorf("%s has status %d, want 0", p.Name(), status)
		}
		if t.Failed() {
			t.Logf("%s: %s", p.Name(), p.Stderr())
		}
		if s := p.Stderr(); strings.Contains(s, "panic") {
			t.Errorf("%s has a fault: %s", p.Name(), s)
		}
	})
	err = bed.Wait(patience(t), "the PID file", func() (bool, error) {
		select {
		case <-p.Done():
			return false, fmt.Errorf("%s has ended: %s", p.Name(), p.Stderr())
		default:
		}
		text, err := os.ReadFile(pid)
		return err == nil && strings.HasSuffix(string(text), "\n"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// scratch returns a directory that every user may write to.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "passt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// passt is a running program under test.
type passt struct {
	*bed.Process
	socket string
}

// start starts passt on the bed's host, with the far peer for gateway.
func start(t *testing.T, b *bed.Bed, args ...string) *passt {
	t.Helper()
	p := &passt{socket: filepath.Join(scratch(t), "socket")}
	p.Process = begin(t, b, func(common ...string) *exec.Cmd {
		return exec.Command(program, slices.Concat(common, []string{"--no-map-gw", "-s", p.socket}, args)...)
	})
	return p
}

// said waits until passt has written a line that contains text, so many times.
func (p *passt) said(t *testing.T, text string, times int) {
	t.Helper()
	err := bed.Wait(patience(t), text, func() (bool, error) { return strings.Count(p.Stderr(), text) >= times, nil })
	if err != nil {
		t.Errorf("%v: %s", err, p.Stderr())
	}
}

func boot(t *testing.T, p *passt, mac string) *VM {
	t.Helper()
	vm, err := Start(patience(t), Config{Image: image, Socket: p.socket, MAC: mac})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Close)
	return vm
}

// sh returns what a command that must succeed in the guest writes.
func sh(t *testing.T, vm *VM, line string) string {
	t.Helper()
	out, err := vm.Spawn(line).Wait(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sized is how much a transfer moves.
const sized = 4 << 20

// out moves a stream from the guest to addr, which leads to where somebody listens at an address of
// ns.
func out(t *testing.T, ns *bed.NS, at string, vm *VM, network, addr string, n int64) {
	t.Helper()
	const number = 7
	got := make(chan string, 1)
	switch network {
	case "tcp":
		l, err := ns.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				got <- err.Error()
				return
			}
			defer c.Close()
			d := wire.NewDigest()
			if _, err := io.Copy(d, c); err != nil {
				got <- err.Error()
				return
			}
			got <- d.String()
		}()
	default:
		c, err := ns.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			d, buf := wire.NewDigest(), make([]byte, 65536)
			for {
				k, from, err := c.ReadFrom(buf)
				if err != nil {
					got <- err.Error()
					return
				}
				if k == 0 {
					got <- d.String()
					return
				}
				d.Write(buf[:k])
				c.WriteTo([]byte{1}, from) // for the next one
			}
		}()
	}
	sh(t, vm, fmt.Sprintf("send %s %s %d %d", network, addr, number, n))
	select {
	case s := <-got:
		if want := wire.DigestOf(number, n); s != want {
			t.Errorf("%s to %s: got %s, want %s", network, addr, s, want)
		}
	case <-patience(t).Done():
		t.Errorf("%s to %s: the end did not come", network, addr)
	}
}

// in moves a stream from ns to the guest, which listens on port, by way of addr.
func in(t *testing.T, ns *bed.NS, vm *VM, network, addr string, n int64) {
	t.Helper()
	const number = 8
	ctx := patience(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	sink := vm.Spawn("sink " + network + " :" + port)
	if err := sink.Expect(ctx, "listening"); err != nil {
		t.Fatal(err)
	}
	c, err := ns.Dial(ctx, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	src := io.LimitReader(wire.Stream(number), n)
	if network == "tcp" {
		if _, err := io.Copy(struct{ io.Writer }{c}, src); err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).CloseWrite()
	} else {
		b := make([]byte, 1200)
		for err == nil {
			var k int
			if k, err = io.ReadFull(src, b); k > 0 {
				c.Write(b[:k])
				c.SetReadDeadline(time.Now().Add(limit))
				if _, err := c.Read(make([]byte, 1)); err != nil { // it paces us
					t.Fatalf("%s to %s: a datagram gets no answer: %v", network, addr, err)
				}
			}
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		c.Write(nil)
	}
	got, err := sink.Wait(ctx)
	if want := fmt.Sprintf("listening\n%s %d", wire.DigestOf(number, n), n); err != nil || got != want {
		t.Errorf("%s to %s: the guest got %s, %v, want %s", network, addr, got, err, want)
	}
}
