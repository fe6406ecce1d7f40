package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// NS is a network namespace, held by a descriptor. Its methods may be called side by side.
type NS struct {
	name string
	file *os.File
}

// NewNS makes a network namespace with its loopback interface up. name is for messages.
func NewNS(name string) (*NS, error) {
	n := &NS{name: name}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		n.file = f
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := n.IP("link set lo up"); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// OpenNS holds the network namespace that the process pid is in.
func OpenNS(name string, pid int) (*NS, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	return &NS{name: name, file: f}, nil
}

// Close lets go of the namespace. It ends when no process, socket or descriptor holds it.
func (n *NS) Close() error { return n.file.Close() }

// Path is a name for the namespace in the file system, valid until Close and in this
// process and its descendants.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Do runs fn with the calling thread inside the namespace. Goroutines that fn starts are
// not. fn may block; others are not held up.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.name, err)
		}
		return fn()
	})
}

// onThread runs fn on a thread that may change its network namespace, and changes it back.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the function ended its goroutine")
		defer func() { done <- err }()
		runtime.LockOSThread() // the thread ends with the goroutine where it cannot be put back
		home, err2 := os.Open("/proc/thread-self/ns/net")
		if err2 != nil {
			err = err2
			return
		}
		defer home.Close()
		err = fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-done
}

// User says who runs a program.
type User int

const (
	// Root is the caller: root, or root in a user namespace.
	Root User = iota
	// Nobody is an unprivileged user without any capability. Where the caller has no
	// other user to become it is the caller itself.
	Nobody
)

// Start starts cmd in the namespace as user, at the head of a process group of its own.
// The caller waits for it.
func (n *NS) Start(user User, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if user == Nobody {
		cmd.SysProcAttr.Credential = credential()
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if err := n.Do(cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", cmd.Path, n.name, err)
	}
	return nil
}

// Output runs a program to its end and returns its standard output. The error of a
// program that fails carries its standard error.
func (n *NS) Output(ctx context.Context, user User, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := n.Start(user, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s %s in %s: %w: %s", name, strings.Join(args, " "), n.name, err,
			strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// IP runs commands of ip(8), one a line, as root.
func (n *NS) IP(script string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(script + "\n")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err := n.Start(Root, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("ip in %s: %w: %s", n.name, err, strings.TrimSpace(errs.String()))
	}
	return nil
}

// Sysctl sets net.KEY of the namespace; key is written with slashes, as "ipv4/tcp_rmem".
func (n *NS) Sysctl(key, value string) error {
	return n.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0)
	})
}

// Dial connects from the namespace. addr is "IP:port"; the network is one of net.Dial's.
func (n *NS) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	d.FallbackDelay = -1 // no second goroutine: it would be on another thread
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen listens for streams in the namespace, without multipath TCP: that is another
// socket with another cost.
func (n *NS) Listen(network, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket in the namespace.
func (n *NS) ListenPacket(network, addr string) (net.PacketConn, error) {
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}
