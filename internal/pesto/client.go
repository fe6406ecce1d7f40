package pesto

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/internal/process"
)

const (
	// applyWait is how long the client waits for the server to do what it was asked for.
	applyWait = 10 * time.Second
	// busyPause is how long it waits to connect again to a server that has no room for another to
	// wait.
	busyPause = 20 * time.Millisecond
)

var flags = []config.Flag{
	{Long: "add", Short: "A"},
	{Long: "delete", Short: "D"},
	{Long: "clear", Short: "C", Arg: true},
	{Long: "tcp-ports", Short: "t", Arg: true},
	{Long: "udp-ports", Short: "u", Arg: true},
	{Long: "tcp-ns", Short: "T", Arg: true},
	{Long: "udp-ns", Short: "U", Arg: true},
	{Long: "show", Short: "s"},
	{Long: "debug", Short: "d"},
	{Long: "help", Short: "h"},
	{Long: "version"},
}

const help = `Change or show the ports that a running passt or pasta forwards. PATH is that of
its control socket, as given with --conf-path.

Options act in the order in which they are given:
  -t, --tcp-ports SPEC	TCP ports of the host that lead to the guest
  -u, --udp-ports SPEC	UDP ports of the host that lead to the guest
  -T, --tcp-ns SPEC	TCP ports of the namespace that lead to the host
  -U, --udp-ns SPEC	UDP ports of the namespace that lead to the host
    SPEC is as for pasta and passt. Without --add or --delete before, it takes
    the place of all ports, TCP and UDP, of that direction.
  -A, --add	the ports that follow are added
  -D, --delete	the ports that follow are removed; they must be there just so
  -C, --clear PIF	remove all from HOST (-t and -u) or SPLICE (-T and -U)

  -s, --show	show what there was, and what there is then
    default: without --add, --delete, --clear or ports, show what there is
  -d, --debug	say what happens
  -h, --help	show this text and exit
      --version	show the version and exit
`

// Main is the program: argv is its command line, with its name. It returns the exit status.
func Main(argv []string, stdout, stderr io.Writer, version string) int {
	fail := func(err error) int {
		var refused *config.Error
		if errors.As(err, &refused) {
			for _, line := range refused.Warnings {
				fmt.Fprintln(stderr, line)
			}
		}
		fmt.Fprintln(stderr, err)
		return 1
	}
	if len(argv) == 0 {
		return fail(process.Failf("Cannot determine argv[0]"))
	}
	usage := fmt.Sprintf("Usage: %s [OPTION]... PATH\n", argv[0])
	given, operands, err := config.Getopt(flags, argv[0], argv[1:])
	c := client{stdout: stdout, stderr: stderr}
	for _, g := range given {
		switch g.Long {
		case "help":
			_, err := io.WriteString(stdout, usage+"\n"+help)
			return written(err, fail)
		case "version":
			return written(config.ProgramVersion(stdout, "pesto", version), fail)
		case "show":
			c.show = true
		case "debug":
			c.debug = true
		default:
			c.steps = append(c.steps, g)
		}
	}
	if err == nil && len(operands) == 1 {
		if err := c.run(operands[0]); err != nil {
			return fail(err)
		}
		return 0
	}
	if err == nil {
		err = errors.New(strings.TrimSuffix(usage, "\n"))
	}
	fail(err)
	fmt.Fprintf(stderr, "Try '%s --help' for all options.\n", argv[0])
	return 1
}

func written(err error, fail func(error) int) int {
	if err != nil {
		return fail(fmt.Errorf("standard output: %w", err))
	}
	return 0
}

// client is one run of the program.
type client struct {
	steps  []config.Given // what changes something, or says how
	show   bool
	debug  bool
	stdout io.Writer
	stderr io.Writer
}

func (c *client) say(format string, args ...any) {
	if c.debug {
		fmt.Fprintf(c.stderr, format+"\n", args...)
	}
}

// run talks to the server at path.
func (c *client) run(path string) error {
	conn, err := connect(path)
	if err != nil {
		return process.Failf("Failed to connect to %s: %s", path, process.Reason(err))
	}
	defer conn.Close()
	c.say("Connected to %s", path)
	tables, err := readGreeting(conn)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
		err = errors.New("the server has hung up")
	}
	if err != nil {
		return process.Failf("Failed to read configuration from %s: %s", path, process.Reason(err))
	}
	for _, t := range tables {
		c.say("Table %s: %d rules, capabilities %#x", t.Name, len(t.Rules), uint32(t.Caps))
	}
	if len(c.steps) == 0 {
		return c.print("passt/pasta configuration", path, tables)
	}
	if c.show { // whatever becomes of the steps
		if err := c.print("Previous configuration", path, tables); err != nil {
			return err
		}
	}
	changed, err := edit(tables, c.steps, func(line string) { fmt.Fprintln(c.stderr, line) })
	if err != nil {
		return err
	}
	if _, err := conn.Write(appendUpdate(nil, changed)); err != nil {
		return process.Failf("Failed to send configuration to %s: %s", path, process.Reason(err))
	}
	c.say("Sent %d tables", len(changed))
	// The server closes the connection when it is done, and has nothing to say.
	conn.SetReadDeadline(time.Now().Add(applyWait))
	_, err = conn.Read(make([]byte, 1))
	c.say("Server is done: %v", err)
	if c.show {
		return c.print("Updated configuration", path, changed)
	}
	return nil
}

// connect connects to path, and waits while too many others do.
func connect(path string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", path)
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		time.Sleep(busyPause)
	}
}

// print shows tables.
func (c *client) print(title, path string, tables []Table) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s)\n", title, path)
	for _, t := range tables {
		fmt.Fprintf(&b, "  %s\n", t.Name)
		for _, r := range t.Rules {
			fmt.Fprintf(&b, "    %s\n", r)
		}
	}
	if _, err := io.WriteString(c.stdout, b.String()); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	return nil
}

// ephemeral are the ports that "all" leaves out here.
func ephemeral() config.PortRange {
	if p := autodetect.ReadKernel(os.DirFS(autodetect.Sysctls)).LocalPorts; p.High != 0 {
		return config.PortRange{First: p.Low, Last: p.High}
	}
	return config.DefaultEphemeral
}
