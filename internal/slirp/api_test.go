package slirp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

// fakePorts has every port but those in taken.
type fakePorts struct {
	taken map[uint16]bool
	now   map[Forward]bool
}

func newFakePorts() *fakePorts { return &fakePorts{map[uint16]bool{22: true}, map[Forward]bool{}} }

func (p *fakePorts) Add(f Forward) error {
	if p.taken[f.Host.Port()] || p.now[f] {
		return errors.New("address already in use")
	}
	p.now[f] = true
	return nil
}

func (p *fakePorts) Remove(f Forward) error {
	if !p.now[f] {
		return errors.New("not forwarded")
	}
	delete(p.now, f)
	return nil
}

// TestRequests: a row of requests to one API, each with the answer that clients know.
func TestRequests(t *testing.T) {
	a := NewAPI(newFakePorts(), netip.MustParseAddr("10.0.2.100"))
	bad := func(why string) string { return fmt.Sprintf(`{"error":{"desc":"bad request: %s"}}`, why) }
	add := func(args string) string { return `{"execute": "add_hostfwd", "arguments": {` + args + `}}` }
	one := `{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}`
	two := `{"id":2,"proto":"udp","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.15","guest_port":53}`
	for i, row := range []struct{ request, want string }{
		{`{"execute": "list_hostfwd"}`, `{"entries":[],"return":{"entries":[]}}`},
		{add(`"proto": "tcp", "host_port": 8080, "guest_port": 80`), `{"return":{"id":1}}`},
		{add(`"proto": "udp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": "10.0.2.15", "guest_port": 53`), `{"return":{"id":2}}`},
		{`{"execute": "list_hostfwd"}`, `{"entries":[` + one + `,` + two + `],"return":{"entries":[` + one + `,` + two + `]}}`},
		{add(`"proto": "tcp", "host_port": 22, "guest_port": 80`), bad("add_hostfwd: slirp_add_hostfwd failed: address already in use")},
		{add(`"host_port": 1, "guest_port": 80`), bad("add_hostfwd: bad arguments.proto")},
		{add(`"proto": "sctp", "host_port": 1, "guest_port": 80`), bad("add_hostfwd: bad arguments.proto")},
		{add(`"proto": "tcp", "host_port": 0, "guest_port": 80`), bad("add_hostfwd: bad arguments.host_port")},
		{add(`"proto": "tcp", "host_port": 70000, "guest_port": 80`), bad("add_hostfwd: bad arguments.host_port")},
		{add(`"proto": "tcp", "host_port": "80", "guest_port": 80`), bad("add_hostfwd: bad arguments.host_port")},
		{add(`"proto": "tcp", "host_port": 1`), bad("add_hostfwd: bad arguments.guest_port")},
		{add(`"proto": "tcp", "host_addr": "::1", "host_port": 1, "guest_port": 1`), bad("add_hostfwd: bad arguments.host_addr")},
		{add(`"proto": "tcp", "host_port": 1, "guest_addr": "foo", "guest_port": 1`), bad("add_hostfwd: bad arguments.guest_addr")},
		{`{"execute": "add_hostfwd"}`, bad("add_hostfwd: bad arguments.proto")},
		{`{"execute": "add_hostfwd", "arguments": 3}`, bad("add_hostfwd: bad arguments.proto")},
		{`{"execute": "remove_hostfwd", "arguments": {"id": 1}}`, `{"return":{}}`},
		{`{"execute": "remove_hostfwd", "arguments": {"id": 1}}`, bad("remove_hostfwd: bad arguments.id")},
		{`{"execute": "remove_hostfwd", "arguments": {"id": "2"}}`, bad("remove_hostfwd: bad arguments.id")},
		{`{"execute": "remove_hostfwd"}`, bad("remove_hostfwd: bad arguments.id")},
		{add(`"proto": "tcp", "host_port": 8080, "guest_port": 80`), `{"return":{"id":3}}`},
		{add(`"proto": "tcp", "host_addr": "", "host_port": 8081, "guest_addr": "", "guest_port": 80`), `{"return":{"id":4}}`}, // Podman's
		{`{"execute": "remove_hostfwd", "arguments": {"id": 4}}`, `{"return":{}}`},
		{`{"execute": "foo"}`, bad("unknown execute")},
		{`{"execute": 3}`, bad("no execute found")},
		{`{"x": 3}`, bad("no execute found")},
		{`[]`, bad("json_object() failed")},
		{`foo`, bad("cannot parse JSON")},
		{``, bad("cannot parse JSON")},
		{`{"execute": "list_hostfwd", "x": "` + strings.Repeat("0", maxRequest) + `"}`, bad("too large message")},
	} {
		if got := string(a.Handle([]byte(row.request))); got != row.want {
			t.Errorf("request %d, %.100s:\n got %s\nwant %s", i, row.request, got, row.want)
		}
	}
}

// TestServe: a client writes, half-closes and reads to the end; one that says nothing keeps nobody
// from that, and nothing is left when the context ends.
func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		NewAPI(newFakePorts(), netip.MustParseAddr("10.0.2.100")).Serve(ctx, l)
		close(done)
	}()
	silent, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ask := func(request string) string {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, request)
		c.(*net.UnixConn).CloseWrite()
		answer, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(answer))
	}
	for i := 1; i <= 3; i++ {
		request := fmt.Sprintf(`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": %d, "guest_port": 80}}`, 8000+i)
		if got, want := ask(request), fmt.Sprintf(`{"return":{"id":%d}}`, i); got != want {
			t.Errorf("answer %s, want %s", got, want)
		}
	}
	cancel()
	<-done
}

func FuzzHandle(f *testing.F) {
	f.Add([]byte(`{"execute": "list_hostfwd"}`))
	f.Add([]byte(`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8080, "guest_port": 80}}`))
	f.Add([]byte(`{"execute": "remove_hostfwd", "arguments": {"id": 1}}`))
	f.Fuzz(func(t *testing.T, request []byte) {
		ports := newFakePorts()
		a := NewAPI(ports, netip.MustParseAddr("10.0.2.100"))
		for range 2 {
			if !json.Valid(a.Handle(request)) {
				t.Error("the answer is no JSON")
			}
		}
		for f := range ports.now {
			if f.Host.Port() == 0 || f.Guest.Port() == 0 || !f.Host.Addr().Is4() || !f.Guest.Addr().Is4() {
				t.Errorf("forwarded %+v", f)
			}
		}
	})
}
