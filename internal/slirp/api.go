package slirp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxRequest is the size in bytes a request must stay below.
	maxRequest = 4096
	// maxExcess is how much more than that, in bytes, is read and ignored.
	maxExcess = 1 << 20
	// patience is how long a client may take for its request, and for reading the answer.
	patience = 5 * time.Second
)

// Forward is one forwarded port. Addresses are IPv4.
type Forward struct {
	UDP         bool // else TCP
	Host, Guest netip.AddrPort
}

// Ports changes what is forwarded while the translator runs. Its methods are called one at a time.
type Ports interface {
	// Add forwards f from now on. The error says why that is not possible; nothing is
	// forwarded then.
	Add(f Forward) error
	// Remove ends what Add began. Connections that are there go on.
	Remove(f Forward) error
}

// API answers the requests of the API socket. It remembers the forwarded ports by number.
type API struct {
	ports Ports
	guest netip.Addr // for requests that name none

	mu      sync.Mutex
	last    int
	entries []entry
}

type entry struct {
	id int
	f  Forward
}

// NewAPI returns an API without forwarded ports. guest is the guest's address for requests that
// name none.
func NewAPI(ports Ports, guest netip.Addr) *API { return &API{ports: ports, guest: guest} }

// Serve answers clients of l, one request each, until ctx ends. It closes l, and returns when the
// last client has its answer.
func (a *API) Serve(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	slots := make(chan struct{}, 16) // clients at a time: none can keep others out for long
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, most likely.
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			c.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			end := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })
			defer end()
			c.SetDeadline(time.Now().Add(patience))
			a.serve(c)
		})
	}
}

// serve reads one request, up to the end of file, and answers it.
func (a *API) serve(c io.ReadWriter) {
	text, err := io.ReadAll(io.LimitReader(c, maxRequest))
	if err != nil {
		return
	}
	c.Write(append(a.Handle(text), '\n')) // a client that is gone needs no answer
	// What is not read resets the connection, and the answer is lost.
	io.CopyN(io.Discard, c, maxExcess)
}

// badRequest is why a request is refused.
type badRequest string

func (e badRequest) Error() string { return "bad request: " + string(e) }

// Handle answers the request text.
func (a *API) Handle(text []byte) []byte {
	answer, err := a.handle(text)
	if err != nil {
		answer = map[string]any{"error": map[string]string{"desc": err.Error()}}
	}
	out, err := json.Marshal(answer)
	if err != nil { // values of ours are always fit
		return []byte(`{"error":{"desc":"internal error"}}`)
	}
	return out
}

func (a *API) handle(text []byte) (any, error) {
	if len(text) >= maxRequest {
		return nil, badRequest("too large message")
	}
	var raw json.RawMessage
	// What follows the first value is ignored, as ever.
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&raw); err != nil {
		return nil, badRequest("cannot parse JSON")
	}
	var request map[string]json.RawMessage
	if json.Unmarshal(raw, &request) != nil {
		return nil, badRequest("json_object() failed")
	}
	var execute string
	if request["execute"] == nil || json.Unmarshal(request["execute"], &execute) != nil {
		return nil, badRequest("no execute found")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch execute {
	case "add_hostfwd":
		return a.add(request["arguments"])
	case "list_hostfwd":
		return a.list(), nil
	case "remove_hostfwd":
		return a.remove(request["arguments"])
	}
	return nil, badRequest("unknown execute")
}

func (a *API) add(raw json.RawMessage) (any, error) {
	refused := func(field string) error { return badRequest("add_hostfwd: bad arguments." + field) }
	var fields map[string]json.RawMessage
	json.Unmarshal(raw, &fields) // what is missing shows below
	var f Forward
	switch text, _ := str(fields["proto"]); text {
	case "tcp":
	case "udp":
		f.UDP = true
	default:
		return nil, refused("proto")
	}
	host, guest := netip.IPv4Unspecified(), a.guest
	var ok bool
	if v := fields["host_addr"]; named(v) {
		if host, ok = addr4(v); !ok {
			return nil, refused("host_addr")
		}
	}
	hostPort, ok := port(fields["host_port"])
	if !ok {
		return nil, refused("host_port")
	}
	if v := fields["guest_addr"]; named(v) {
		if guest, ok = addr4(v); !ok {
			return nil, refused("guest_addr")
		}
		if guest.IsUnspecified() {
			guest = a.guest
		}
	}
	guestPort, ok := port(fields["guest_port"])
	if !ok {
		return nil, refused("guest_port")
	}
	f.Host, f.Guest = netip.AddrPortFrom(host, hostPort), netip.AddrPortFrom(guest, guestPort)
	if err := a.ports.Add(f); err != nil {
		return nil, badRequest("add_hostfwd: slirp_add_hostfwd failed: " + err.Error())
	}
	a.last++
	a.entries = append(a.entries, entry{a.last, f})
	return result(map[string]int{"id": a.last}), nil
}

// listed is an entry as list_hostfwd shows it.
type listed struct {
	ID        int    `json:"id"`
	Proto     string `json:"proto"`
	HostAddr  string `json:"host_addr"`
	HostPort  uint16 `json:"host_port"`
	GuestAddr string `json:"guest_addr"`
	GuestPort uint16 `json:"guest_port"`
}

// list shows the entries in both places where clients look for them: the manual has them in
// "return", the program itself does not.
func (a *API) list() any {
	list := make([]listed, 0, len(a.entries))
	for _, e := range a.entries {
		proto := "tcp"
		if e.f.UDP {
			proto = "udp"
		}
		list = append(list, listed{e.id, proto, e.f.Host.Addr().String(), e.f.Host.Port(),
			e.f.Guest.Addr().String(), e.f.Guest.Port()})
	}
	entries := map[string]any{"entries": list}
	return map[string]any{"entries": list, "return": entries}
}

func (a *API) remove(raw json.RawMessage) (any, error) {
	var fields struct {
		ID *int `json:"id"`
	}
	if json.Unmarshal(raw, &fields) != nil || fields.ID == nil {
		return nil, badRequest("remove_hostfwd: bad arguments.id")
	}
	for i, e := range a.entries {
		if e.id != *fields.ID {
			continue
		}
		if err := a.ports.Remove(e.f); err != nil {
			return nil, badRequest("remove_hostfwd: slirp_remove_hostfwd failed: " + err.Error())
		}
		a.entries = append(a.entries[:i], a.entries[i+1:]...)
		return result(map[string]int{}), nil
	}
	return nil, badRequest("remove_hostfwd: bad arguments.id")
}

func result(v any) any { return map[string]any{"return": v} }

func str(raw json.RawMessage) (s string, ok bool) {
	return s, raw != nil && json.Unmarshal(raw, &s) == nil
}

// named reports whether an address is given. Podman gives empty ones.
func named(raw json.RawMessage) bool {
	s, ok := str(raw)
	return raw != nil && (!ok || s != "")
}

func addr4(raw json.RawMessage) (netip.Addr, bool) {
	s, ok := str(raw)
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Is4()
}

func port(raw json.RawMessage) (uint16, bool) {
	var n uint16
	if raw == nil || json.Unmarshal(raw, &n) != nil {
		return 0, false
	}
	return n, n != 0
}
