package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// otherQrap is the other implementation of qrap.
const otherQrap = "/usr/bin/qrap"

// emulator takes the place of QEMU: it prints its arguments, each on a line of its own, and the
// first frame that comes from the descriptors that a row may have passed on.
const emulator = `#!/bin/sh
for a; do echo "$a"; done
for fd in 5 7; do
	[ ! -e /proc/$$/fd/$fd ] || echo "descriptor $fd:" $(head -c 64 <&$fd | od -An -v -tx1 | tr -d ' \n')
done
`

// TestQrap runs the same command lines with this program and with Debian's qrap, with this passt
// behind both, and compares what QEMU gets. A row with a reason is one where they differ on
// purpose.
func TestQrap(t *testing.T) {
	if _, err := os.Stat(otherQrap); err != nil {
		t.Skip(err)
	}
	b, err := bed.New(bed.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	// The default paths are to be nobody else's.
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount("/tmp", unix.MNT_DETACH) })
	dir := room(t)
	if err := os.WriteFile(filepath.Join(dir, "kvm"), []byte(emulator), 0o755); err != nil {
		t.Fatal(err)
	}
	const socket = "/tmp/passt_2.socket"
	pid := filepath.Join(dir, "pid")
	run := func(words ...string) (stdout, stderr string, status int) {
		t.Helper()
		ctx, cancel := patience()
		defer cancel()
		words = onHost(b.Host, bed.Nobody, words...)
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		cmd.Env = []string{"PATH=" + dir + ":" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Dir = "/"
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	if _, errs, status := run("passt", "-q", "-4", "-s", socket, "-P", pid); status != 0 {
		t.Fatalf("passt: status %d: %s", status, errs)
	}
	t.Cleanup(func() {
		text, err := os.ReadFile(pid)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		unix.Kill(n, unix.SIGTERM)
	})

	// of ARP: a question, or the answer to the probe
	const firstFrame = "0000003cffffffffffff9a559a559a55080600010800060400"
	for _, tt := range []struct {
		args, want string
		reason     string
	}{
		{args: "5 kvm -net socket,fd=5 -net nic,model=virtio", want: "-net socket,fd=5 -net nic,model=virtio"},
		{args: "7 kvm -m 1", want: "-m 1"},
		{args: "", want: "-netdev socket,fd=5,id=hostnet0"},
		{args: "-m 1 -net nic -netdev user,id=x", want: "-m 1 -netdev socket,fd=5,id=hostnet0"},
		{args: "2 kvm x", want: "2 kvm x -netdev socket,fd=5,id=hostnet0"},
		{args: "7 nosuch x", want: "7 nosuch x -netdev socket,fd=5,id=hostnet0"},
		{args: "-device usb -device virtio-net-pci,netdev=x -device e1000e,netdev=y",
			want: "-device usb -device virtio-net-pci,bus=pci.3,addr=0x0,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{args: "-machine pc-q35-6.2,accel=tcg -device a,bus=pci.3 -device b,bus=pci.5", want: "-machine pc-q35-6.2,accel=tcg -device a,bus=pci.3 -device b,bus=pci.5 " +
			"-device virtio-net-pci,bus=pci.4,addr=0x0,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{args: "-machine pc-i440fx-6.2 -device a,bus=pci.0,addr=0x2 -device b,bus=pci.0,addr=0x3", want: "-machine pc-i440fx-6.2 -device a,bus=pci.0,addr=0x2 -device b,bus=pci.0,addr=0x3 " +
			"-device virtio-net-pci,bus=pci.0,addr=0x4,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{args: "-machine s390-ccw-virtio -device a,devno=fe.0.1 -device virtio-net-ccw,devno=fe.0.2", want: "-machine s390-ccw-virtio -device a,devno=fe.0.1 " +
			"-device virtio-net-ccw,devno=fe.0.2,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0"},
		{args: `-device {"driver":"usb","bus":"pci.3"} -device {"driver":"rtl8139","netdev":"x"}`, want: `-device {"driver":"usb","bus":"pci.3"} ` +
			`-device {"driver":"virtio-net-pci","bus":"pci.4","addr":"0x0","netdev":"hostnet0","x-txburst":4096} -netdev {"type":"socket","fd":"5","id":"hostnet0"}`},
		{args: "-machine pc-i440fx-6.2 -device a,addr=0x2", want: "-machine pc-i440fx-6.2 -device a,addr=0x2 " +
			"-device virtio-net-pci,bus=pci.0,addr=0x3,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0",
			reason: "an address without a bus is taken, too"},
		{args: "-device usb -device e1000", want: "-device usb -device virtio-net-pci,bus=pci.3,addr=0x0,netdev=hostnet0,x-txburst=4096 -netdev socket,fd=5,id=hostnet0",
			reason: "a card without options is one of those that go"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			args := strings.Fields(tt.args)
			ours, errs, status := run(append([]string{"qrap"}, args...)...)
			theirs, _, _ := run(append([]string{otherQrap}, args...)...)
			fd := "5"
			if strings.HasPrefix(tt.args, "7 kvm") {
				fd = "7"
			}
			want := strings.ReplaceAll(tt.want, " ", "\n") + "\ndescriptor " + fd + ": " + firstFrame
			if !strings.HasPrefix(ours, want) || strings.Count(ours, "descriptor") != 1 || status != 0 {
				t.Errorf("status %d, QEMU got:\n%s\nwant:\n%s", status, ours, want)
			}
			if !strings.HasSuffix(errs, "Connected to "+socket+"\n") {
				t.Errorf("said: %s", errs)
			}
			if same := strings.HasPrefix(theirs, want); same != (tt.reason == "") {
				t.Errorf("with the other one (%s) QEMU got:\n%s", tt.reason, theirs)
			}
		})
	}
}
