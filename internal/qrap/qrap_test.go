package qrap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRewrite(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", "-netdev socket,fd=5,id=hostnet0"},
		{"no other device", "-m 1 -net nic -netdev user,id=x", "-m 1 -netdev socket,fd=5,id=hostnet0"},
		{"q35", "-machine pc-q35-6.2,accel=kvm -device pcie-root-port,bus=pci.3,addr=0x0 -device x,bus=pci.4 -device virtio-net-pci,netdev=x,bus=pci.5",
			"-machine pc-q35-6.2,accel=kvm -device pcie-root-port,bus=pci.3,addr=0x0 -device x,bus=pci.4 " +
				"-device virtio-net-pci,bus=pci.5,addr=0x0,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{"no machine is as q35", "-device usb", "-device usb -device virtio-net-pci,bus=pci.3,addr=0x0,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{"i440fx", "-machine pc-i440fx-6.2 -device a,bus=pci.0,addr=0x2.0x1 -device e1000,addr=0x3 -device b,addr=0x3 -device c,bus=other,addr=0x4",
			"-machine pc-i440fx-6.2 -device a,bus=pci.0,addr=0x2.0x1 -device b,addr=0x3 -device c,bus=other,addr=0x4 " +
				"-device virtio-net-pci,bus=pci.0,addr=0x4,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{"s390", "-machine s390-ccw-virtio -device virtio-blk-ccw,devno=fe.0.1 -device virtio-net-ccw,devno=fe.0.2",
			"-machine s390-ccw-virtio -device virtio-blk-ccw,devno=fe.0.1 -device virtio-net-ccw,devno=fe.0.2,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{"JSON", `-device {"driver":"usb","bus":"pci.3"} -device {"driver":"rtl8139","netdev":"x"}`,
			`-device {"driver":"usb","bus":"pci.3"} -device {"driver":"virtio-net-pci","bus":"pci.4","addr":"0x0","netdev":"hostnet0","x-txburst":4096} ` +
				`-netdev {"type":"socket","fd":"5","id":"hostnet0"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := rewrite(strings.Fields(tt.in))
			if d := cmp.Diff(strings.Fields(tt.want), got); err != nil || d != "" {
				t.Errorf("%v\n%s", err, d)
			}
		})
	}
	var full []string
	for i := 3; i <= 30; i++ {
		full = append(full, "-device", fmt.Sprintf("x,bus=pci.%d", i))
	}
	if _, err := rewrite(full); err == nil {
		t.Error("found an address on a full bus")
	}
}

// FuzzRewrite: any command line is changed to one that has our network and no other.
func FuzzRewrite(f *testing.F) {
	f.Add("-machine pc -device {\"driver\":1} -net")
	f.Add("-device driver=e1000 -netdev x")
	f.Fuzz(func(t *testing.T, s string) {
		args := strings.Fields(s)
		got, err := rewrite(args)
		if err != nil {
			return
		}
		again, err := rewrite(slices.Clone(got))
		if err != nil {
			return
		}
		if d := cmp.Diff(got[len(got)-1], again[len(again)-1]); d != "" {
			t.Error(d)
		}
	})
}

// answering is a passt that answers the probe with the given bytes, or closes without.
func answering(t *testing.T, path, answer string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 128)
			if _, err := io.ReadFull(c, b); err == nil && answer != "" {
				if !bytes.Equal(b, questions()) {
					t.Errorf("asked % x", b)
				}
				io.WriteString(c, answer)
				defer c.Close()
				continue
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	if err := os.WriteFile(path(1), nil, 0o600); err != nil { // nobody listens
		t.Fatal(err)
	}
	answering(t, path(3), "yes")
	qemu := filepath.Join(dir, "qemu")
	if err := os.WriteFile(qemu, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const fd = 77
	defer unix.Close(fd)
	var errs strings.Builder
	executed := errors.New("executed")
	got := run([]string{fmt.Sprint(fd), qemu, "-m", "1"}, []string{"A=B"}, &errs, path, func(name string, argv, env []string) error {
		if name != qemu || !slices.Equal(argv, []string{qemu, "-m", "1"}) || !slices.Equal(env, []string{"A=B"}) {
			t.Errorf("executes %s %q %q", name, argv, env)
		}
		b := make([]byte, 3)
		if _, err := unix.Read(fd, b); err != nil || string(b) != "yes" {
			t.Errorf("from the socket: %q, %v", b, err)
		}
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags != 0 {
			t.Errorf("flags of the socket %x, %v", flags, err)
		}
		return executed
	})
	if got != 1 || !strings.Contains(errs.String(), "Connected to "+path(3)) || !strings.Contains(errs.String(), "Probe of "+path(1)+" failed") {
		t.Errorf("status %d: %s", got, &errs)
	}
}

// A passt that is about to be ready for another client resets connections: it is asked again.
func TestRunAsksAgain(t *testing.T) {
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	l, err := net.Listen("unix", path(1))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 { // and leaves what it was sent
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.ReadFull(c, make([]byte, len(questions())))
		c.Write([]byte("yes"))
	}()
	defer func() { l.Close(); <-done }()
	var errs strings.Builder
	fd, err := connect(path, &errs)
	if err != nil || errs.String() != "Connected to "+path(1)+"\n" {
		t.Fatalf("%v: %s", err, &errs)
	}
	unix.Close(fd)
}

// TestPlan is what is executed: what the user says, if that can be, else the first QEMU there is.
func TestPlan(t *testing.T) {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if arch == "" {
		t.Skip("no such QEMU")
	}
	native := "qemu-system-" + arch
	const card = "-netdev socket,fd=5,id=hostnet0"
	for _, tt := range []struct{ name, have, args, fd, want string }{
		{"as the user says", "kvm mine", "9 mine -m 1", "9", "mine -m 1"},
		{"a path", "", "3 /bin/sh -c x", "3", "/bin/sh -c x"},
		{"descriptor 2", "kvm mine", "2 mine -m 1", "5", "kvm 2 mine -m 1 " + card},
		{"a program that is not there", "kvm", "9 mine -m 1", "5", "kvm 9 mine -m 1 " + card},
		{"kvm first", "kvm qemu-kvm " + native, "-m 1", "5", "kvm -m 1 " + card},
		{"then qemu-kvm", "qemu-kvm " + native, "-m 1", "5", "qemu-kvm -m 1 " + card},
		{"then that of the architecture", native, "-m 1", "5", native + " -m 1 " + card},
		{"none", "", "-m 1", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range strings.Fields(tt.have) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir)
			fd, qemu, argv, err := plan(strings.Fields(tt.args))
			if tt.want == "" {
				if _, there := os.Stat("/usr/libexec/qemu-kvm"); err == nil && there != nil {
					t.Errorf("executes %s", qemu)
				}
				return
			}
			if err != nil || fmt.Sprint(fd) != tt.fd || strings.Join(argv, " ") != tt.want || filepath.Base(qemu) != filepath.Base(argv[0]) {
				t.Errorf("%s with %q and descriptor %d, %v", qemu, argv, fd, err)
			}
		})
	}
}

func TestRunWithoutPasst(t *testing.T) {
	dir := t.TempDir()
	var errs strings.Builder
	status := run([]string{"5", "/bin/sh"}, nil, &errs, func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }, func(string, []string, []string) error {
		t.Error("executed")
		return nil
	})
	if status != 1 || !strings.Contains(errs.String(), "no passt answers") {
		t.Errorf("status %d: %s", status, &errs)
	}
}
