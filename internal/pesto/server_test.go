package pesto

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// forwarder is one without sockets.
type forwarder struct {
	mu    sync.Mutex
	rules [2][]config.Rule
	err   error
}

func (f *forwarder) List(dir config.Direction) []config.Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.rules[dir])
}

func (f *forwarder) Replace(inbound, outbound []config.Rule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = [2][]config.Rule{inbound, outbound}
	return f.err
}

// service is a server at path, until the test ends.
type service struct {
	*forwarder
	*Server
	path string
	logs *observer.ObservedLogs
}

func newServer(t *testing.T, passt bool) *service {
	t.Helper()
	s := &service{forwarder: &forwarder{rules: [2][]config.Rule{rules(t, "-t 80", "-u 53"), rules(t, "-T 70")}}}
	if passt {
		s.rules[config.Outbound] = nil
	}
	var core zapcore.Core
	core, s.logs = observer.New(zap.DebugLevel)
	s.Server = &Server{Forwarding: s.forwarder, Env: everything, Namespace: !passt, Log: zap.New(core)}
	return s
}

func serve(t *testing.T, passt bool) *service {
	t.Helper()
	s := newServer(t, passt)
	s.listen(t)
	return s
}

// listen serves at s.path, until the test ends.
func (s *service) listen(t *testing.T) {
	t.Helper()
	s.path = filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { s.Serve(ctx, l) })
	t.Cleanup(func() {
		cancel()
		served.Wait()
	})
}

// said returns what was logged, without the PIDs.
func (s *service) said() (lines []string) {
	for _, e := range s.logs.TakeAll() {
		text, _, _ := strings.Cut(e.Message, ", PID ")
		lines = append(lines, e.Level.String()+": "+text)
	}
	return lines
}

// Each row runs the program against one server after the other: what it prints, its status, and
// what the server logs.
func TestClientAndServer(t *testing.T) {
	const accepted = "info: Accepted configuration client"
	const initial = "  HOST\n    TCP [*]:80  =>  80 \n    UDP [*]:53  =>  53 \n"
	const splice = "  SPLICE\n    TCP [*]%lo:70  =>  70 \n"
	for _, tt := range []struct {
		name   string
		passt  bool
		args   string
		fail   error
		out    string // PATH is the path
		err    string
		status int
		log    []string
	}{
		{name: "show", out: "passt/pasta configuration (PATH)\n" + initial + splice, log: []string{accepted}},
		{name: "show, passt", passt: true, args: "-s", out: "passt/pasta configuration (PATH)\n" + initial, log: []string{accepted}},
		{name: "add, and show", passt: true, args: "-s -A -t 81", out: "Previous configuration (PATH)\n" + initial + "Updated configuration (PATH)\n" + initial + "    TCP [*]:81  =>  81 \n",
			log: []string{accepted, "info: New forwarding rules for HOST:", "info:     TCP [*]:80  =>  80 ", "info:     UDP [*]:53  =>  53 ", "info:     TCP [*]:81  =>  81 "}},
		{name: "a mode alone changes nothing, and shows nothing", args: "-A",
			log: []string{accepted, "info: New forwarding rules for HOST:", "info:     TCP [*]:80  =>  80 ", "info:     UDP [*]:53  =>  53 ",
				"info: New forwarding rules for SPLICE:", "info:     TCP [*]%lo:70  =>  70 "}},
		{name: "a mode alone, and show", passt: true, args: "-s -D", out: "Previous configuration (PATH)\n" + initial + "Updated configuration (PATH)\n" + initial,
			log: []string{accepted, "info: New forwarding rules for HOST:", "info:     TCP [*]:80  =>  80 ", "info:     UDP [*]:53  =>  53 "}},
		{name: "show, and a wrong step", passt: true, args: "-A -t 81 -t x -s", status: 1, out: "Previous configuration (PATH)\n" + initial,
			err: "Invalid port specifier 'x'\n", log: []string{accepted}},
		{name: "replace", args: "-T none",
			log: []string{accepted, "info: New forwarding rules for HOST:", "info:     TCP [*]:80  =>  80 ", "info:     UDP [*]:53  =>  53 ", "info: New forwarding rules for SPLICE:"}},
		{name: "ports that cannot be had", args: "-t 7", fail: errors.New("Couldn't listen on requested ports"),
			log: []string{accepted, "info: New forwarding rules for HOST:", "info:     TCP [*]:7  =>  7 ", "info: New forwarding rules for SPLICE:", "info:     TCP [*]%lo:70  =>  70 ",
				"error: Couldn't listen on requested ports", "error: Error switching to new forwarding rules"}},
		{name: "a wrong step", args: "-A -t 80", status: 1,
			err: "Forwarding configuration conflict: TCP [*]:80  =>  80  versus TCP [*]:80  =>  80 \nUnable to add rule TCP [*]:80  =>  80 \n", log: []string{accepted}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.passt)
			s.err = tt.fail
			before := s.List(config.Inbound)
			var out, errs bytes.Buffer
			argv := append([]string{"pesto"}, append(strings.Fields(tt.args), s.path)...)
			status := Main(argv, &out, &errs, "1")
			want := []any{tt.status, strings.ReplaceAll(tt.out, "PATH", s.path), tt.err}
			if diff := cmp.Diff(want, []any{status, out.String(), errs.String()}); diff != "" {
				t.Errorf("status, output and errors, - want, + got:\n%s", diff)
			}
			if tt.status != 0 && !slices.Equal(before, s.List(config.Inbound)) {
				t.Error("rules are changed")
			}
			if diff := cmp.Diff(tt.log, s.said()); diff != "" {
				t.Errorf("log, - want, + got:\n%s", diff)
			}
		})
	}
}

// talk is a client that sends b once it is greeted, and then waits for the end of the connection.
func talk(t *testing.T, path string, b []byte) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := readGreeting(c); err != nil {
		t.Fatal(err)
	}
	c.Write(b) // it may be too much
	c.(*net.UnixConn).CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", rest, err)
	}
}

// What a client asks for is done as a whole or, if anything is wrong with it, not at all.
func TestInvalidUpdateChangesNothing(t *testing.T) {
	table := func(id uint8, specs ...string) Table { return Table{ID: id, Rules: rules(t, specs...)} }
	scan := appendUpdate(nil, []Table{table(1, "-t auto")})
	twice := append(table(1, "-t 1").Rules, table(1, "-t 0.0.0.0/1").Rules...)
	port0 := rules(t, "-t 1")
	port0[0].Ports.First = 0
	beyond := rules(t, "-t 1-10")
	beyond[0].To = 65530
	group := rules(t, "-u 0.0.0.0/1:192.0.2.5")
	group[0].Target = netip.MustParseAddr("224.0.0.1")
	for _, tt := range []struct {
		name  string
		passt bool
		b     []byte
		log   []string
	}{
		{"unknown table", false, []byte{2, 0, 0, 0, 0, 0}, []string{"table 2 is not known"}},
		{"a table of the other mode", true, appendUpdate(nil, []Table{table(3, "-T 80")}), []string{"table 3 is not known"}},
		{"scanning in passt", true, scan, []string{"'auto' port forwarding is only allowed for pasta"}},
		{"the second is wrong", false, append(appendUpdate(nil, []Table{table(1, "-t 1")})[:5+ruleSize], 3, 0, 0, 1, 0), []string{"256 rules, more than 255"}},
		{"parts with too much together", false, slices.Concat(appendUpdate(nil, []Table{table(1, "-t 1")})[:5+ruleSize], []byte{1, 0, 0, 0, 255}), []string{"256 rules, more than 255"}},
		{"parts in conflict", false, slices.Concat(appendUpdate(nil, []Table{table(1, "-t 1")})[:5+ruleSize], appendUpdate(nil, []Table{table(1, "-t 1")})), []string{
			"Forwarding configuration conflict: TCP [*]:1  =>  1  versus TCP [*]:1  =>  1 ", "Unable to add rule TCP [*]:1  =>  1 "}},
		{"it breaks off", false, appendUpdate(nil, []Table{table(1, "-t 1")})[:5+ruleSize], []string{"unexpected EOF"}},
		{"a conflict", false, appendUpdate(nil, []Table{{ID: 1, Rules: twice}}), []string{
			"Forwarding configuration conflict: TCP [0.0.0.0]:1  =>  1  versus TCP [*]:1  =>  1 ", "Unable to add rule TCP [0.0.0.0]:1  =>  1 "}},
		{"port 0", false, appendUpdate(nil, []Table{{ID: 1, Rules: port0}}), []string{"Forwarding rule attempts to map from port 0", "Unable to add rule TCP [*]:0-1  =>  1-2 "}},
		{"to ports beyond the last", false, appendUpdate(nil, []Table{{ID: 1, Rules: beyond}}), []string{
			"Forwarding rule attempts to map to port 0", "Unable to add rule TCP [*]:1-10  =>  65530-65539 "}},
		{"to a group", false, appendUpdate(nil, []Table{{ID: 1, Rules: group}}), []string{
			"Multicast target address 224.0.0.1 for forwarding rule", "Unable to add rule UDP [0.0.0.0]:1  =>  224.0.0.1:1 "}},
		{"noise", false, bytes.Repeat([]byte{1, 0, 0, 0, 200, 7}, 1<<16), []string{"rule 0: protocol 0 is not forwarded"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.passt)
			before := [][]config.Rule{s.List(0), s.List(1)}
			talk(t, s.path, tt.b)
			if diff := cmp.Diff(before, [][]config.Rule{s.List(0), s.List(1)}, sameAddr); diff != "" {
				t.Errorf("rules have changed:\n%s", diff)
			}
			lines := s.said()
			last := len(tt.log) - 1
			want := []string{"info: Accepted configuration client"}
			for _, line := range tt.log[:last] {
				want = append(want, "warn: "+line)
			}
			want = append(want, "warn: Invalid request of configuration client, nothing is changed: "+tt.log[last])
			if tt.name == "noise" && len(lines) > 1 {
				lines = lines[:1]
				want = want[:1]
			}
			if diff := cmp.Diff(want, lines); diff != "" {
				t.Errorf("log, - want, + got:\n%s", diff)
			}
			// The next one is served.
			talk(t, s.path, appendUpdate(nil, []Table{table(1, "-t 7")}))
			if got := texts(s.List(config.Inbound)); !slices.Equal(got, []string{"TCP [*]:7  =>  7 "}) {
				t.Errorf("rules %v", got)
			}
		})
	}
}

// A table may come in parts, also with others in between, and an empty one among them.
func TestTableInParts(t *testing.T) {
	s := serve(t, false)
	part := func(id uint8, specs ...string) Table { return Table{ID: id, Rules: rules(t, specs...)} }
	talk(t, s.path, appendUpdate(nil, []Table{part(1, "-t 1", "-u 2"), part(3, "-T 3"), part(1, "-t 4"), part(3), part(3, "-U 5")}))
	got := [][]string{texts(s.List(config.Inbound)), texts(s.List(config.Outbound))}
	want := [][]string{texts(rules(t, "-t 1", "-u 2", "-t 4")), texts(rules(t, "-T 3", "-U 5"))}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Where there is one IP version, all addresses are those of it, however a client says that.
func TestOneFamily(t *testing.T) {
	s := newServer(t, false)
	s.Env.IPv6 = false
	s.listen(t)
	both := Table{ID: 1, Rules: rules(t, "-t 1")}
	talk(t, s.path, appendUpdate(nil, []Table{both}))
	if got := texts(s.List(config.Inbound)); !slices.Equal(got, []string{"TCP [0.0.0.0]:1  =>  1 "}) {
		t.Errorf("rules %v", got)
	}
	var out bytes.Buffer
	if status := Main([]string{"pesto", "-s", "-D", "-t", "1", "-A", "-t", "2", s.path}, &out, &out, "1"); status != 0 ||
		!strings.HasSuffix(out.String(), "\n  HOST\n    TCP [0.0.0.0]:2  =>  2 \n  SPLICE\n") {
		t.Errorf("status %d: %s", status, out.String())
	}
	if got := texts(s.List(config.Inbound)); !slices.Equal(got, []string{"TCP [0.0.0.0]:2  =>  2 "}) {
		t.Errorf("rules %v", got)
	}
}

// pipes accepts connections in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return nil }

// Clients that stop at whatever point are dropped, and the next one is served, which has waited. A
// client that has been served is not waited for.
func TestClientThatStalls(t *testing.T) {
	for _, tt := range []struct {
		name  string
		stall func(c net.Conn)
	}{
		{"it reads nothing", func(net.Conn) {}},
		{"it reads the greeting", func(c net.Conn) { readGreeting(c) }},
		{"it sends half of a table", func(c net.Conn) {
			readGreeting(c)
			c.Write([]byte{1, 0, 0, 0, 7, 0})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, false)
				l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { s.Serve(ctx, l); close(ended) }()
				stalled, theirs := net.Pipe()
				defer stalled.Close()
				l.conns <- theirs
				go tt.stall(stalled)
				begun := time.Now()
				c, theirs := net.Pipe()
				defer c.Close()
				l.conns <- theirs
				if waited := time.Since(begun); waited != patience {
					t.Errorf("the next client waited %v, want %v", waited, patience)
				}
				if _, err := readGreeting(c); err != nil {
					t.Error(err)
				}
				if _, err := c.Write(appendUpdate(nil, nil)); err != nil {
					t.Error(err)
				}
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("%v, want EOF", err)
				}
				synctest.Wait()
				if len(s.List(config.Inbound)) != 0 {
					t.Error("the next client was not heard")
				}
				if said := fmt.Sprint(s.said()); !strings.Contains(said, "warn: Configuration client has taken too long, nothing is changed") {
					t.Error(said)
				}
				// The end does not wait for a client either.
				last, theirs := net.Pipe()
				defer last.Close()
				l.conns <- theirs
				if _, err := readGreeting(last); err != nil {
					t.Error(err)
				}
				begun = time.Now()
				cancel()
				<-ended
				if took := time.Since(begun); took != 0 {
					t.Errorf("it took %v to end", took)
				}
			})
		})
	}
}

// tired accepts nobody, several times.
type tired struct {
	pipes
	left int
}

func (l *tired) Accept() (net.Conn, error) {
	if l.left--; l.left >= 0 {
		return nil, errors.New("too many open files")
	}
	return l.pipes.Accept()
}

// A want of descriptors passes; it is said once.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, false)
		l := &tired{pipes: pipes{conns: make(chan net.Conn), done: make(chan struct{})}, left: 50}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.Serve(ctx, l); close(ended) }()
		c, theirs := net.Pipe()
		defer c.Close()
		l.conns <- theirs
		if _, err := readGreeting(c); err != nil {
			t.Error(err)
		}
		cancel()
		<-ended
		if said := s.said(); len(said) < 1 || strings.Count(fmt.Sprint(said), "No configuration client") != 1 {
			t.Error(said)
		}
	})
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	nobody := filepath.Join(dir, "nobody")
	for _, tt := range []struct {
		name, args string
		status     int
		out, err   string // how they begin
	}{
		{"help", "-h", 0, "Usage: ./pesto [OPTION]... PATH\n", ""},
		{"help, whatever follows", "-A --help --nonsense", 0, "Usage: ./pesto [OPTION]... PATH\n", ""},
		{"version", "--version x y", 0, "pesto 1.2\nCopyright ", ""},
		{"unknown option", "--nonsense", 1, "", "./pesto: unrecognized option '--nonsense'\nTry './pesto --help' for all options.\n"},
		{"unknown letter", "-x", 1, "", "./pesto: invalid option -- 'x'\nTry "},
		{"no value", "-t", 1, "", "./pesto: option requires an argument -- 't'\nTry "},
		{"no path", "-A -t 80", 1, "", "Usage: ./pesto [OPTION]... PATH\n"},
		{"two paths", "a b", 1, "", "Usage: ./pesto [OPTION]... PATH\n"},
		{"an option behind the path", "a -s", 1, "", "Usage: ./pesto [OPTION]... PATH\n"},
		{"nobody there", "-t 80 " + nobody, 1, "", "Failed to connect to " + nobody + ": No such file or directory\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			status := Main(append([]string{"./pesto"}, strings.Fields(tt.args)...), &out, &errs, "1.2")
			if status != tt.status || !strings.HasPrefix(out.String(), tt.out) || !strings.HasPrefix(errs.String(), tt.err) || tt.out == "" && out.Len() > 0 || tt.err == "" && errs.Len() > 0 {
				t.Errorf("status %d, output %q, errors %q", status, out.String(), errs.String())
			}
		})
	}
}

// A server that is another program, or goes away, is said to be so.
func TestStrangeServers(t *testing.T) {
	for name, row := range map[string]struct{ greeting, want string }{
		"it hangs up":     {"", "the server has hung up"},
		"halfway through": {string(appendGreeting(nil, nil)[:7]), "the server has hung up"},
		"another program": {"HTTP/1.1 400 Bad Request\r\n\r\n", "this is not a control socket"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					io.WriteString(c, row.greeting)
					c.Close()
				}
			}()
			var out, errs bytes.Buffer
			status := Main([]string{"pesto", path}, &out, &errs, "1")
			if want := "Failed to read configuration from " + path + ": " + row.want + "\n"; status != 1 || errs.String() != want || out.Len() > 0 {
				t.Errorf("status %d, %q, %q; want %q", status, out.String(), errs.String(), want)
			}
		})
	}
}

// The help fits a terminal, and both it and the manual page have each option.
func TestHelpAndManual(t *testing.T) {
	page, err := os.ReadFile("../../man/pesto.1")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(help, "\n")
	if len(lines) > 23 {
		t.Errorf("%d lines of help", len(lines))
	}
	for _, line := range lines {
		n := 0
		for _, c := range line {
			if n++; c == '\t' {
				n = (n + 7) / 8 * 8
			}
		}
		if n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	tags := 0
	for _, f := range flags {
		inHelp, inPage := "      --"+f.Long, `\fB\-\-`+strings.ReplaceAll(f.Long, "-", `\-`)+`\fR`
		if f.Short != "" {
			inHelp, inPage = "  -"+f.Short+", --"+f.Long, `\fB\-`+f.Short+`\fR, `+inPage
		}
		inPage = "\n.TP\n" + inPage
		if f.Arg {
			inHelp, inPage = inHelp+" ", inPage+` \fI`
		} else {
			inHelp, inPage = inHelp+"\t", inPage+"\n"
		}
		if !strings.Contains(help, "\n"+inHelp) {
			t.Errorf("no %q in the help", inHelp)
		}
		if !strings.Contains(string(page), inPage) {
			t.Errorf("no %q in the manual page", inPage)
		}
		tags++
	}
	if got := strings.Count(string(page), "\n.TP\n\\fB\\-"); got != tags {
		t.Errorf("%d options in the manual page, want %d", got, tags)
	}
}
