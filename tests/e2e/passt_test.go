package e2e

import (
	"bytes"
	"encoding/binary"
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

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// asPasst makes program available by the name of passt, once.
func asPasst(t *testing.T) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(program), "passt")
	if err := os.Symlink(filepath.Base(program), path); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return path
}

// passt starts passt in the foreground and waits until it is ready. It must end with status 0.
func passt(t *testing.T, b *bed.Bed, files []*os.File, args ...string) *bed.Process {
	t.Helper()
	return passtBy(t, b, nil, files, args...)
}

// passtBy is passt, started by the command by, which executes its arguments.
func passtBy(t *testing.T, b *bed.Bed, by []string, files []*os.File, args ...string) *bed.Process {
	t.Helper()
	pid := filepath.Join(scratch(t), "pid")
	argv := append(slices.Clone(by), append([]string{asPasst(t), "-f", "-P", pid}, args...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = files
	p, err := b.Host.Spawn(bed.Nobody, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if status := p.Stop(limit); status != 0 {
			t.Errorf("status %d, want 0: %s", status, p.Stderr())
		}
		if s := p.Stderr(); faulty(s) {
			t.Errorf("passt has a fault: %s", s)
		}
	})
	waitFor(t, "the PID file", func() bool {
		select {
		case <-p.Done():
			t.Fatalf("passt has ended: %s", p.Stderr())
		default:
		}
		text, err := os.ReadFile(pid)
		return err == nil && strings.HasSuffix(string(text), "\n")
	})
	return p
}

// hypervisor is a client of passt's stream, made of single frames.
type hypervisor struct {
	t *testing.T
	net.Conn
}

func plugIn(t *testing.T, path string) *hypervisor {
	t.Helper()
	h := &hypervisor{t: t}
	waitFor(t, "a connection", func() bool { // the backlog is short
		var err error
		h.Conn, err = net.Dial("unix", path)
		return err == nil
	})
	t.Cleanup(func() { h.Close() })
	return h
}

// question is an ARP request for the gateway, with its length.
func question() []byte {
	b := binary.BigEndian.AppendUint32(nil, 60)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 8, 6)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 1, 10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1)
	return append(b, make([]byte, 64-len(b))...)
}

// answered reads frames until one is the reply to question.
func (h *hypervisor) answered() {
	h.t.Helper()
	h.SetReadDeadline(time.Now().Add(limit))
	for {
		var n uint32
		if err := binary.Read(h, binary.BigEndian, &n); err != nil {
			h.t.Fatalf("no answer: %v", err)
		}
		f := make([]byte, n)
		if _, err := io.ReadFull(h, f); err != nil {
			h.t.Fatalf("no answer: %v", err)
		}
		if len(f) == 60 && bytes.Equal(f[:6], question()[10:16]) && bytes.Equal(f[12:22], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}) && bytes.Equal(f[28:32], []byte{10, 77, 0, 1}) {
			return
		}
	}
}

func said(t *testing.T, p *bed.Process, text string, times int) {
	t.Helper()
	waitFor(t, text, func() bool { return strings.Count(p.Stderr(), text) >= times })
}

// TestPasstClients: any bytes a client sends or does not take harm nobody but itself.
func TestPasstClients(t *testing.T) {
	b := newBed(t, defaultBed)
	socket := filepath.Join(scratch(t), "socket")
	p := passt(t, b, nil, "-s", socket)
	said(t, p, "UNIX domain socket bound at "+socket+"\n", 1)
	said(t, p, "\nYou can now start qemu", 1)
	clients := 0
	for _, tt := range []struct {
		name string
		do   func(h *hypervisor)
	}{
		{"byte by byte", func(h *hypervisor) {
			for range 3 {
				for _, c := range question() {
					h.Write([]byte{c})
				}
				h.answered()
			}
		}},
		{"many at once", func(h *hypervisor) {
			h.Write(bytes.Repeat(question(), 100))
			for range 50 { // the service may lose some
				h.answered()
			}
		}},
		{"length 0", func(h *hypervisor) { h.Write([]byte{0, 0, 0, 0}); io.Copy(io.Discard, h) }},
		{"length 13", func(h *hypervisor) { h.Write([]byte{0, 0, 0, 13}); io.Copy(io.Discard, h) }},
		{"length 65536", func(h *hypervisor) { h.Write([]byte{0, 1, 0, 0}); io.Copy(io.Discard, h) }},
		{"text", func(h *hypervisor) { h.Write([]byte("GET / HTTP/1.0\r\n\r\n")); io.Copy(io.Discard, h) }},
		{"endless frame", func(h *hypervisor) { h.Write([]byte{0, 0, 255, 255, 1, 2, 3}) }},
		{"half a length", func(h *hypervisor) { h.Write([]byte{0, 0}) }},
		{"does not read", func(h *hypervisor) {
			h.SetWriteDeadline(time.Now().Add(limit))
			if _, err := h.Write(bytes.Repeat(question(), 50000)); err != nil {
				t.Errorf("passt does not read any more: %v", err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := plugIn(t, socket)
			h.SetReadDeadline(time.Now().Add(limit))
			tt.do(h)
			h.Close()
			clients++
			said(t, p, "Client connection closed", clients)
			next := plugIn(t, socket)
			next.Write(question())
			next.answered()
			next.Close()
			clients++
			said(t, p, "Client connection closed", clients)
		})
	}
	said(t, p, "Bad frame size from guest, resetting connection", 4)

	h := plugIn(t, socket)
	h.Write(question())
	h.answered()
	second := plugIn(t, socket)
	second.SetReadDeadline(time.Now().Add(limit))
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("a second client is served")
	}
	said(t, p, "discarding connection from PID ", 1)
	h.Write(question())
	h.answered()
}

// TestPasstAsks: a client is asked for its addresses when it connects, as everybody, since it may
// have been there before and not send anything first.
func TestPasstAsks(t *testing.T) {
	b := newBed(t, defaultBed)
	socket := filepath.Join(scratch(t), "socket")
	passt(t, b, nil, "-q", "-s", socket)
	plugIn(t, socket).asked()
}

// asked waits until it was asked for both addresses.
func (h *hypervisor) asked() {
	h.t.Helper()
	h.SetReadDeadline(time.Now().Add(limit))
	arp, ns := false, false
	for !arp || !ns {
		var n uint32
		if err := binary.Read(h, binary.BigEndian, &n); err != nil {
			h.t.Fatalf("asked ARP %v, NDP %v: %v", arp, ns, err)
		}
		f := make([]byte, n)
		if _, err := io.ReadFull(h, f); err != nil {
			h.t.Fatal(err)
		}
		arp = arp || len(f) == 60 && f[0] == 0xff && bytes.Equal(f[12:22], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}) && bytes.Equal(f[38:42], []byte{10, 77, 0, 2})
		ns = ns || len(f) > 78-1 && f[0] == 0xff && f[12] == 0x86 && f[54] == 135
	}
}

// TestPasstFD: the connection is one that the caller has made, whatever its number; with its end
// passt ends.
func TestPasstFD(t *testing.T) {
	b := newBed(t, defaultBed)
	for _, n := range []int{0, 3, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := os.NewFile(uintptr(p[0]), "ours"), os.NewFile(uintptr(p[1]), "theirs")
			defer theirs.Close()
			cmd := exec.Command(asPasst(t), "-f", "--fd", fmt.Sprint(n))
			switch n {
			case 0:
				cmd.Stdin = theirs
			case 3:
				cmd.ExtraFiles = []*os.File{theirs}
			default:
				cmd.ExtraFiles = []*os.File{nil, theirs}
			}
			proc, err := b.Host.Spawn(bed.Nobody, cmd)
			if err != nil {
				t.Fatal(err)
			}
			defer proc.Stop(limit)
			c, err := net.FileConn(ours)
			ours.Close()
			if err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			h := &hypervisor{t, c}
			h.asked()
			h.Write(question())
			h.answered()
			h.Close()
			if status := proc.Status(); status != 0 || !strings.Contains(proc.Stderr(), "Client connection closed, exiting") ||
				strings.Contains(proc.Stderr(), "You can now start") {
				t.Errorf("status %d: %s", status, proc.Stderr())
			}
		})
	}
	t.Run("not open", func(t *testing.T) {
		proc, err := b.Host.Spawn(bed.Nobody, exec.Command(asPasst(t), "-f", "--fd", "77"))
		if err != nil {
			t.Fatal(err)
		}
		if status := proc.Status(); status != 1 || !strings.Contains(proc.Stderr(), "Could not move --fd descriptor: Bad file descriptor") {
			t.Errorf("status %d: %s", status, proc.Stderr())
		}
	})
}

// TestPasstOneOff: the end of the first client is the end.
func TestPasstOneOff(t *testing.T) {
	b := newBed(t, defaultBed)
	socket := filepath.Join(scratch(t), "socket")
	p := passt(t, b, nil, "--one-off", "-s", socket)
	h := plugIn(t, socket)
	h.Write(question())
	h.answered()
	h.Close()
	if status := p.Status(); status != 0 || !strings.Contains(p.Stderr(), "Client connection closed, exiting") {
		t.Errorf("status %d: %s", status, p.Stderr())
	}
	// Its socket's file is there still, and no obstacle.
	passt(t, b, nil, "-q", "-s", socket)
	q, err := b.Host.Spawn(bed.Nobody, exec.Command(asPasst(t), "-f", "-s", socket))
	if err != nil {
		t.Fatal(err)
	}
	if status := q.Status(); status != 1 || !strings.Contains(q.Stderr(), "Socket path "+socket+" already in use") {
		t.Errorf("status %d: %s", status, q.Stderr())
	}
}
