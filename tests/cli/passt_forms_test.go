package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// otherPasst is the other implementation, for virtual machines.
const otherPasst = "/usr/bin/passt"

// machine is the outcome of passt.
type machine struct {
	Run outcome
	// where it listens: name of the file, of those in the run's directory and in /tmp
	Socket   string
	Answers  bool // the first client
	Refuses  bool // another one meanwhile
	EndsWith bool // it ends with the first client
	Again    bool // answers the next one
	Left     bool // the socket is there when it has ended
}

// TestPasstSideBySide is TestSideBySide for passt: its socket, its clients and its end.
func TestPasstSideBySide(t *testing.T) {
	if _, err := os.Stat(otherPasst); err != nil {
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

	const unbound = "a path that cannot be bound is refused"
	const signals = "in background the other one is the first process of its namespace, and deaf to what it does not handle"
	for _, tt := range []struct {
		args   string // with {sock}, {file} for what they stand for
		there  string // what is at {sock} or the first default path: "stale", "used", "file"
		end    string // the signal that ends it, TERM if it is empty
		fd     bool   // with a connection as descriptor 3
		reason string
	}{
		{args: "-s {sock} -P {file}"},
		{args: "--socket {sock} --pid {file}", end: "QUIT"},
		{args: "-s {sock} -P {file}", end: "INT", reason: signals},
		{args: "-f -s {sock} -P {file}"},
		{args: "-fs{sock} -P{file}", end: "QUIT"},
		{args: "--foreground --socket={sock} --pid={file}", end: "INT"},
		{args: "-f -s {sock} -P {file}", end: "HUP"},
		{args: "-s {sock} -P {file}", there: "stale"},
		{args: "-s {sock} -P {file}", there: "used"},
		{args: "-s {sock} -P {file}", there: "file", reason: "what is no socket is somebody's file, and stays"},
		{args: "-P {file}"},
		{args: "-f -P {file}"},
		{args: "-P {file}", there: "stale"},
		{args: "-P {file}", there: "used"},
		{args: "-1 -s {sock} -P {file}"},
		{args: "--one-off -f -s {sock} -P {file}"},
		{args: "-f --fd 3 -P {file}", fd: true},
		{args: "-F 3 -P {file}", fd: true},
		{args: "-1 -f -F 3 -P {file}", fd: true},
		{args: "-4 -m 1400 -a 10.77.0.2 -n 24 -g 10.77.0.1 -M 02:00:00:00:00:09 -s {sock} -P {file}"},
		{args: "-t 8022:22 -u 5353 -s {sock} -P {file}"},
		{args: "-i h0 -o 10.77.0.2 --no-map-gw -D none -S none -s {sock} -P {file}"},
		{args: "--no-dhcp-dns --no-dhcp-search --no-dhcp --no-dhcpv6 --no-ndp --no-ra -s {sock} -P {file}"},

		{args: "-s /nonexistent/sock -P {file}", reason: unbound},
		{args: "-s / -P {file}", reason: unbound},
		{args: "-s " + strings.Repeat("x", 108) + " -P {file}"},
		{args: "-s {sock} -P /nonexistent/file"},
		{args: "-f -s {sock} -P /dev/full"},
		{args: "-s {sock} -l /nonexistent/log"},
		{args: "-f -F 77 -P {file}", reason: "a descriptor that is not open is refused"},
		{args: "-s {sock} -f -F -1"},
		{args: "-s {sock} -f -F"},
		{args: "-s"},
		{args: "-s {sock} extra"},
		{args: "-s {sock} -T 22"},
		{args: "-s {sock} -I tap0"},
		{args: "-s {sock} --netns x"},
		{args: "-s {sock} --netns-only"},
		{args: "-s {sock} --ns-mac-addr 02:00:00:00:00:09"},
		{args: "-s {sock} --config-net -P {file}", reason: "what is for pasta is refused"},
		{args: "-s {sock} --dhcp-dns"},
		{args: "-s {sock} -t auto"},
		{args: "-s {sock} -t 22,22x"},
		{args: "-s {sock} -i nosuch0"},
		{args: "-s {sock} -a 127.0.0.1"},
		{args: "-s {sock} -m 70000"},
		{args: "-s {sock} --runas nosuchuser"},

		{args: "-s {sock} -f -F 3 -P {file}", fd: true, reason: "the last of a path and a descriptor counts"},
		{args: "-s nosuch/path -s {sock} -P {file}", reason: "the last of several paths counts"},
		{args: "-1 -1 -s {sock} -P {file}", reason: "a flag may be repeated"},
	} {
		t.Run(tt.args+" "+tt.there+tt.end, func(t *testing.T) {
			// not with a default path, all of which are one run's
			if tt.fd || strings.Contains(tt.args, "-s") {
				t.Parallel()
			}
			run := func(program string, within time.Duration) machine {
				end := ending{"TERM", within}
				if tt.end != "" {
					end.by = tt.end
				}
				return serveMachine(t, b, program, tt.args, tt.there, end, tt.fd)
			}
			compare(t, run(otherPasst, theirTime(tt.reason)), run("passt", limit), tt.reason)
		})
	}
}

// serveMachine runs passt and what a hypervisor does with it.
func serveMachine(t *testing.T, b *bed.Bed, program, args, there string, end ending, fd bool) machine {
	t.Helper()
	dir := room(t)
	path, pidFile := filepath.Join(dir, "sock"), filepath.Join(dir, "pid")
	place := path
	if !strings.Contains(args, "{sock}") {
		place = "/tmp/passt_1.socket"
	}
	occupy(t, place, there)
	args = strings.NewReplacer("{sock}", path, "{file}", pidFile).Replace(args)
	var files []*os.File
	var given net.Conn
	if fd {
		given, files = connected(t)
	}
	s := begin(t, b, bed.Nobody, pidFile, files, append([]string{program}, strings.Fields(args)...)...)
	for _, f := range files {
		f.Close()
	}
	m := machine{Run: s.ready(t)}
	if s.pid == 0 {
		return m
	}

	first := given
	var socket string
	if first == nil {
		if socket, first = find(place, there); first == nil {
			unix.Kill(s.pid, unix.SIGKILL)
			return m
		}
		m.Socket = filepath.Base(socket)
	}
	defer first.Close()
	m.Answers = answers(first)
	if socket != "" && m.Answers {
		if second, err := net.Dial("unix", socket); err == nil {
			m.Refuses = turnedAway(second)
			second.Close()
		}
	}
	first.Close()
	if strings.Contains(args, "-1") || strings.Contains(args, "--one-off") || fd {
		s.gone(t, &m.Run, end.within)
		m.EndsWith = m.Run.Ends
	} else {
		m.Again = comesBack(socket)
		unix.Kill(s.pid, unix.SignalNum("SIG"+end.by))
		s.gone(t, &m.Run, end.within)
	}
	if socket != "" {
		_, err := os.Lstat(socket)
		m.Left = err == nil
	}
	unix.Kill(s.pid, unix.SIGKILL) // if it has not ended
	for _, f := range tmpSockets() {
		os.Remove(f)
	}
	return m
}

// occupy makes what is at path before the run.
func occupy(t *testing.T, path, what string) {
	t.Helper()
	switch what {
	case "":
		return
	case "file":
		if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chown(path, 65534, 65534); err != nil && canBeNobody() {
		t.Fatal(err)
	}
	os.Chmod(path, 0o777)
	if what == "stale" {
		l.Close()
		return
	}
	t.Cleanup(func() { l.Close() })
}

// connected returns both ends of a connection, the other one to be passed on.
func connected(t *testing.T) (net.Conn, []*os.File) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(p[0]), "ours")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, []*os.File{os.NewFile(uintptr(p[1]), "theirs")}
}

func tmpSockets() []string {
	all, _ := filepath.Glob("/tmp/passt_*.socket") // the pattern is good
	return all
}

// find connects to the socket of the run: at place, or at a default path that is not the one in use
// before. There is neither if nobody listens.
func find(place, there string) (string, net.Conn) {
	paths := []string{place}
	if strings.HasPrefix(place, "/tmp/") {
		paths = tmpSockets()
	}
	for _, path := range paths {
		if there == "used" && path == place {
			continue
		}
		if c, err := net.Dial("unix", path); err == nil {
			return path, c
		}
	}
	return "", nil
}

// answers asks who has the gateway's address and reports whether there is an answer.
func answers(c net.Conn) bool {
	q := binary.BigEndian.AppendUint32(nil, 60)
	q = append(q, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 8, 6)
	q = append(q, 0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 1, 10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1)
	q = append(q, make([]byte, 64-len(q))...)
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write(q); err != nil {
		return false
	}
	for {
		var n uint32
		if binary.Read(c, binary.BigEndian, &n) != nil || n > 1<<16 {
			return false
		}
		f := make([]byte, n)
		if _, err := io.ReadFull(c, f); err != nil {
			return false
		}
		if len(f) >= 42 && bytes.Equal(f[12:22], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}) && bytes.Equal(f[28:32], []byte{10, 77, 0, 1}) {
			return true
		}
	}
}

// comesBack reports whether a client is served after another. It tries again, since it is turned
// away while the end of that one has not been noticed.
func comesBack(socket string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return bed.Wait(ctx, "an answer", func() (bool, error) {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false, err
		}
		defer c.Close()
		return answers(c), nil
	}) == nil
}

// turnedAway reports whether c is closed by the other side.
func turnedAway(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(limit))
	n, err := c.Read(make([]byte, 1))
	ne, ok := err.(net.Error)
	return n == 0 && !(ok && ne.Timeout())
}
