package guest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"fusilli/tests/guest/wire"
)

// qemu is the hypervisor, from 7.2 on.
var qemu = cmp.Or(os.Getenv("GUEST_QEMU"), "qemu-system-x86_64")

// Config says how a virtual machine is connected.
type Config struct {
	Image  *Image
	Socket string   // passt's; empty: File
	File   *os.File // the other end of passt's connection; nil, and no Socket: a network of its own
	Legacy bool     // use -netdev socket for File, as of old
	MAC    string   // empty: 52:54:00:12:34:56
	MiB    int      // memory; 0: 256
	SMP    string   // QEMU's -smp; empty: one processor whose memory barriers are some (see doc.go)
	Card   string   // more properties of the network card, each after a comma
}

// VM is a virtual machine that runs.
type VM struct {
	cmd    *exec.Cmd
	dir    string
	conn   net.Conn
	ready  chan struct{} // closed when the agent has said so
	ended  chan struct{} // closed when QEMU has
	reader sync.WaitGroup

	mu       sync.Mutex
	out      *json.Encoder
	last     int
	commands map[int]*Command
}

// Command is a shell command in the guest.
type Command struct {
	vm   *VM
	id   int
	line string
	done chan struct{} // closed at its end

	mu       sync.Mutex
	out, err bytes.Buffer
	code     int
	changed  chan struct{} // closed at each change, then replaced
}

// Start boots a machine and returns when its agent answers, or ctx ends.
func Start(ctx context.Context, cfg Config) (*VM, error) {
	vm, err := bootVM(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("virtual machine: %w", err)
	}
	return vm, nil
}

func bootVM(ctx context.Context, cfg Config) (*VM, error) {
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return nil, err
	}
	vm := &VM{dir: dir, ready: make(chan struct{}), ended: make(chan struct{}), commands: make(map[int]*Command)}
	port := filepath.Join(dir, "agent")
	l, err := net.Listen("unix", port)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	defer l.Close()
	if err := vm.boot(cfg, port); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	go func() { // QEMU's end, or ctx's, ends the wait for it
		select {
		case <-ctx.Done():
		case <-vm.ended:
		case <-vm.ready:
		}
		l.Close()
	}()
	if vm.conn, err = l.Accept(); err == nil {
		vm.out = json.NewEncoder(vm.conn)
		vm.reader.Go(vm.read)
		select {
		case <-vm.ready:
			return vm, nil
		case <-vm.ended:
			err = errors.New("QEMU has ended")
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	said := vm.Console()
	vm.Close()
	return nil, fmt.Errorf("%w: %s", err, said)
}

func (vm *VM) boot(cfg Config, port string) error {
	if cfg.MAC == "" {
		cfg.MAC = "52:54:00:12:34:56"
	}
	if cfg.MiB == 0 {
		cfg.MiB = 256
	}
	if cfg.SMP == "" {
		cfg.SMP = "1,maxcpus=2"
	}
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-m", strconv.Itoa(cfg.MiB), "-smp", cfg.SMP,
		"-machine", "q35,usb=off,sata=off,smbus=off,vmport=off,hpet=off"}
	if cfg.Image.KVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		// Emulated copies are faster with plain loads than with string instructions.
		args = append(args, "-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm,-avx,-avx2,-la57,-smap,-smep,-umip")
	}
	args = append(args, "-kernel", cfg.Image.Kernel, "-initrd", cfg.Image.Initrd,
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on net.ifnames=0 audit=0 cryptomgr.notests",
		"-serial", "file:"+filepath.Join(vm.dir, "console"),
		"-device", "virtio-serial-pci,max_ports=2",
		"-monitor", "unix:"+filepath.Join(vm.dir, "monitor")+",server=on,wait=off",
		"-chardev", "socket,id=agent,path="+port, "-device", "virtserialport,chardev=agent,name="+wire.Port)
	vm.cmd = exec.Command(qemu)
	switch {
	case cfg.Socket == "" && cfg.File == nil:
		args = append(args, "-netdev", "hubport,id=s,hubid=0") // connected to nothing
	case cfg.File == nil:
		args = append(args, "-netdev", "stream,id=s,server=off,addr.type=unix,addr.path="+cfg.Socket)
	case cfg.Legacy:
		args = append(args, "-netdev", "socket,id=s,fd=3")
	default:
		args = append(args, "-netdev", "stream,id=s,server=off,addr.type=fd,addr.str=3")
	}
	if cfg.File != nil {
		vm.cmd.ExtraFiles = []*os.File{cfg.File}
	}
	args = append(args, "-device", "virtio-net-pci,netdev=s,romfile=,id=card,mac="+cfg.MAC+cfg.Card)
	vm.cmd.Args = append(vm.cmd.Args, args...)
	errs, err := os.Create(filepath.Join(vm.dir, "qemu"))
	if err != nil {
		return err
	}
	defer errs.Close()
	vm.cmd.Stdout, vm.cmd.Stderr = errs, errs
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := vm.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(vm.ended)
		vm.cmd.Wait()
	}()
	return nil
}

// PID returns QEMU's.
func (vm *VM) PID() int { return vm.cmd.Process.Pid }

// Monitor makes QEMU's monitor execute a command, and returns what it says.
func (vm *VM) Monitor(line string) (string, error) {
	c, err := net.Dial("unix", filepath.Join(vm.dir, "monitor"))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	const prompt = "(qemu) "
	in := bufio.NewReader(c)
	said := func() (string, error) {
		var b []byte
		for !bytes.HasSuffix(b, []byte(prompt)) {
			c, err := in.ReadByte()
			if err != nil {
				return "", fmt.Errorf("monitor: %w: %s", err, b)
			}
			b = append(b, c)
		}
		return string(b[:len(b)-len(prompt)]), nil
	}
	if _, err := said(); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	return said()
}

// Console returns the last of what the guest's kernel, and QEMU, have said.
func (vm *VM) Console() string {
	var said []byte
	for _, name := range []string{"qemu", "console"} {
		b, _ := os.ReadFile(filepath.Join(vm.dir, name))
		said = append(said, b[max(len(b)-1000, 0):]...)
	}
	return string(said)
}

// Close ends the machine at once. It may be called more than once.
func (vm *VM) Close() {
	vm.cmd.Process.Kill()
	<-vm.ended
	if vm.conn != nil {
		vm.conn.Close()
	}
	vm.reader.Wait()
	os.RemoveAll(vm.dir)
}

// read takes what the agent says until the machine ends.
func (vm *VM) read() {
	in := json.NewDecoder(vm.conn)
	for {
		var m wire.Message
		if in.Decode(&m) != nil {
			break
		}
		if m.Op == wire.Ready {
			close(vm.ready)
			continue
		}
		vm.mu.Lock()
		c := vm.commands[m.ID]
		if m.Op == wire.Exit {
			delete(vm.commands, m.ID)
		}
		vm.mu.Unlock()
		if c != nil {
			c.take(m)
		}
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	for _, c := range vm.commands {
		c.take(wire.Message{Op: wire.Exit, Code: -1})
	}
	clear(vm.commands)
}

func (c *Command) take(m wire.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m.Op {
	case wire.Output:
		c.out.Write(m.Data)
	case wire.Errors:
		c.err.Write(m.Data)
	case wire.Exit:
		c.code = m.Code
		close(c.done)
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// Spawn starts a shell command.
func (vm *VM) Spawn(line string) *Command {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.last++
	c := &Command{vm: vm, id: vm.last, line: line, done: make(chan struct{}), changed: make(chan struct{})}
	vm.commands[c.id] = c
	// the end of QEMU ends all commands
	vm.out.Encode(wire.Message{ID: c.id, Op: wire.Run, Data: []byte(line)})
	return c
}

// Kill sends a signal to the command and its children.
func (c *Command) Kill(s syscall.Signal) {
	c.vm.mu.Lock()
	defer c.vm.mu.Unlock()
	c.vm.out.Encode(wire.Message{ID: c.id, Op: wire.Kill, Code: int(s)})
}

// Wait waits for the end of the command and returns what it wrote to standard output, without
// spaces around. Any status but 0 is an error, with what it wrote to standard error.
func (c *Command) Wait(ctx context.Context) (string, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		c.Kill(syscall.SIGKILL)
		return "", fmt.Errorf("%s: %w: %s%s", c.line, ctx.Err(), c.Output(), c.errors())
	}
	if c.code != 0 {
		return c.Output(), fmt.Errorf("%s: status %d: %s%s", c.line, c.code, c.Output(), c.errors())
	}
	return c.Output(), nil
}

// Output returns what has come so far.
func (c *Command) Output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.TrimSpace(c.out.String())
}

func (c *Command) errors() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.TrimSpace(c.err.String())
}

// Expect waits until the output has a line.
func (c *Command) Expect(ctx context.Context, line string) error {
	for {
		c.mu.Lock()
		changed := c.changed
		lines := strings.Split(c.out.String(), "\n")
		c.mu.Unlock()
		if slices.Contains(lines, line) {
			return nil
		}
		select {
		case <-changed:
		case <-c.done:
			return fmt.Errorf("%s: ended with status %d before it said %q: %s", c.line, c.code, line, c.errors())
		case <-ctx.Done():
			return fmt.Errorf("%s: %w before it said %q", c.line, ctx.Err(), line)
		}
	}
}

// Run runs a command to its end, which is to come within a minute.
func (vm *VM) Run(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return vm.Spawn(line).Wait(ctx)
}
