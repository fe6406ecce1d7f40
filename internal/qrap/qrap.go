package qrap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/internal/unixsock"
)

const (
	maxProbe  = 99
	probeWait = 500 * time.Millisecond
	// while a passt sends us away since it has not noticed yet that its client has gone
	retries    = 50
	retryPause = 50 * time.Millisecond
)

// Main is the program: args are its arguments without its name. It returns only if QEMU was not
// executed, with the exit status.
func Main(args, environ []string, stderr io.Writer) int {
	return run(args, environ, stderr, unixsock.DefaultPath, unix.Exec)
}

func run(args, environ []string, stderr io.Writer, path func(int) string, execute func(string, []string, []string) error) int {
	fd, qemu, argv, err := plan(args)
	if err != nil {
		fmt.Fprintln(stderr, err)
		fmt.Fprintln(stderr, "Usage: qrap [FDNUM QEMU_CMD] [QEMU_ARG]...")
		return 1
	}
	s, err := connect(path, stderr)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	if s != fd {
		err = unix.Dup3(s, fd, 0)
		unix.Close(s)
	} else {
		_, err = unix.FcntlInt(uintptr(s), unix.F_SETFD, 0)
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err == nil {
		err = execute(qemu, argv, environ)
	}
	fmt.Fprintf(stderr, "execute %s: %v\n", qemu, err)
	return 1
}

// plan returns what is to be executed, with which arguments, and the socket's descriptor.
func plan(args []string) (fd int, qemu string, argv []string, err error) {
	if len(args) >= 2 {
		if n, err := strconv.Atoi(args[0]); err == nil && n >= 3 {
			if qemu, err := exec.LookPath(args[1]); err == nil {
				return n, qemu, args[1:], nil
			}
		}
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i386"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	for _, name := range []string{"kvm", "qemu-kvm", "qemu-system-" + arch, "/usr/libexec/qemu-kvm"} {
		if qemu, err := exec.LookPath(name); err == nil {
			rest, err := rewrite(args)
			return defaultFD, qemu, append([]string{name}, rest...), err
		}
	}
	return 0, "", nil, errors.New("no QEMU found")
}

// connect returns a socket connected to the first passt that answers.
func connect(path func(int) string, stderr io.Writer) (int, error) {
	for i := 1; i <= maxProbe; i++ {
		var err error
		for range retries {
			var fd int
			if fd, err = probe(path(i)); err == nil {
				fmt.Fprintf(stderr, "Connected to %s\n", path(i))
				return fd, nil
			}
			if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				break
			}
			time.Sleep(retryPause)
		}
		if errors.Is(err, unix.ENOENT) {
			continue // that would be most of them
		}
		fmt.Fprintf(stderr, "%v\nProbe of %s failed\n", err, path(i))
	}
	return -1, errors.New("no passt answers")
}

// probe connects to path and sees whether there is an answer to what a guest may ask.
func probe(path string) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	limit := unix.NsecToTimeval(probeWait.Nanoseconds())
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &limit); err != nil {
			return -1, fmt.Errorf("setsockopt: %w", err)
		}
	}
	if err := again(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) }); err != nil {
		return -1, fmt.Errorf("connect: %w", err)
	}
	if err := again(func() error { return unix.Sendto(fd, questions(), unix.MSG_NOSIGNAL, nil) }); err != nil {
		return -1, fmt.Errorf("send: %w", err)
	}
	n := 0
	err = again(func() (err error) {
		n, _, err = unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK)
		return err
	})
	if err == nil && n == 0 {
		err = unix.ECONNRESET
	}
	if err != nil {
		return -1, fmt.Errorf("receive: %w", err)
	}
	// QEMU has no limit on its waits.
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &unix.Timeval{}); err != nil {
			return -1, fmt.Errorf("setsockopt: %w", err)
		}
	}
	return fd, nil
}

// again calls f until no signal of the runtime interrupts it: calls with a limit are not begun
// again by the kernel (signal(7)).
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// questions are an ARP request and a neighbour solicitation from nobody for nobody, as the stream
// has them.
func questions() []byte {
	arp := make([]byte, 42)
	for i := range 12 {
		arp[i] = 0xff
	}
	binary.BigEndian.PutUint16(arp[12:], 0x0806)
	binary.BigEndian.PutUint64(arp[14:], 0x0001_0800_0604_0001)

	ns := make([]byte, 78)
	copy(ns, arp[:12])
	binary.BigEndian.PutUint16(ns[12:], 0x86dd)
	ip := ns[14:]
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], 24)
	ip[6], ip[7] = 58, 255
	ip[40] = 135

	b := binary.BigEndian.AppendUint32(nil, uint32(len(arp)))
	b = append(b, arp...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(ns)))
	return append(b, ns...)
}
