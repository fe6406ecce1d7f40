//go:build linux

// Agent is the first process of a test guest: it makes the guest habitable and runs the commands
// that come over a virtio-serial port. By other names it is a program for those commands: send,
// sink and echo, see traffic.go.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/guest/wire"
)

func main() {
	if os.Getpid() != 1 {
		if err := traffic(filepath.Base(os.Args[0]), os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	err := boot()
	fmt.Fprintln(os.Stderr, "agent:", err) // on the console
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot runs commands until the port fails.
func boot() error {
	for _, m := range []struct{ dev, dir, fs string }{
		{"dev", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"tmp", "/tmp", "tmpfs"},
	} {
		os.MkdirAll(m.dir, 0o755)
		if err := unix.Mount(m.dev, m.dir, m.fs, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	list, err := os.ReadFile("/etc/boot-modules")
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(string(list)) {
		if err := insert(path); err != nil {
			return err
		}
	}
	os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
	os.Setenv("HOME", "/")
	unix.Sethostname([]byte("guest"))
	os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, out)
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	return (&agent{out: json.NewEncoder(port), commands: make(map[int]*command)}).serve(port)
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("insert %s: %w", path, err)
	}
	return nil
}

// openPort waits for the port, which appears a moment after its driver.
func openPort() (*os.File, error) {
	const class = "/sys/class/virtio-ports"
	for range 1000 {
		names, _ := os.ReadDir(class)
		for _, n := range names {
			if b, err := os.ReadFile(filepath.Join(class, n.Name(), "name")); err == nil && strings.TrimSpace(string(b)) == wire.Port {
				fd, err := unix.Open("/dev/"+n.Name(), unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err == nil {
					return os.NewFile(uintptr(fd), n.Name()), nil
				}
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, errors.New("no port")
}

// agent runs commands. Its reader is the only one that touches commands but for their ends.
type agent struct {
	mu       sync.Mutex
	out      *json.Encoder
	commands map[int]*command
}

type command struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func (a *agent) say(m wire.Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out.Encode(m)
}

func (a *agent) serve(port io.Reader) error {
	a.say(wire.Message{Op: wire.Ready})
	in := json.NewDecoder(bufio.NewReaderSize(port, 64<<10))
	for {
		var m wire.Message
		if err := in.Decode(&m); err != nil {
			return err
		}
		a.mu.Lock()
		c := a.commands[m.ID]
		a.mu.Unlock()
		switch {
		case m.Op == wire.Run:
			a.start(m.ID, string(m.Data))
		case c == nil:
		case m.Op == wire.Input:
			c.in.Write(m.Data)
		case m.Op == wire.EOF:
			c.in.Close()
		case m.Op == wire.Kill:
			unix.Kill(-c.cmd.Process.Pid, syscall.Signal(m.Code))
		}
	}
}

// stream passes on what a command writes.
type stream struct {
	a  *agent
	id int
	op string
}

func (s stream) Write(b []byte) (int, error) {
	s.a.say(wire.Message{ID: s.id, Op: s.op, Data: b})
	return len(b), nil
}

func (a *agent) start(id int, line string) {
	c := &command{cmd: exec.Command("/bin/sh", "-c", line)}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.cmd.Stdout, c.cmd.Stderr = stream{a, id, wire.Output}, stream{a, id, wire.Errors}
	c.cmd.WaitDelay = time.Second // for streams that its children keep
	var err error
	if c.in, err = c.cmd.StdinPipe(); err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		a.say(wire.Message{ID: id, Op: wire.Errors, Data: []byte(err.Error())})
		a.say(wire.Message{ID: id, Op: wire.Exit, Code: 127})
		return
	}
	a.mu.Lock()
	a.commands[id] = c
	a.mu.Unlock()
	go func() {
		c.cmd.Wait()
		code := c.cmd.ProcessState.ExitCode()
		if ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
		a.mu.Lock()
		delete(a.commands, id)
		a.mu.Unlock()
		a.say(wire.Message{ID: id, Op: wire.Exit, Code: code})
	}()
}
