package forward

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fusilli/config"
)

// replace makes specs the rules, which must work.
func (p *place) replace(t testing.TB, specs ...string) {
	t.Helper()
	table := parse(t, specs...)
	if failures, err := p.Replace(table.Inbound, table.Outbound); err != nil || len(failures) > 0 {
		t.Fatalf("%v: %v, %v", specs, failures, err)
	}
}

// sockets returns the descriptors of all listeners, by side, protocol and port.
func (p *place) sockets() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]int{}
	for dir, list := range p.rules {
		for _, r := range list {
			for port, l := range r.listeners {
				all[fmt.Sprint(Side(dir), r.Protocol, port)] = l.fd
			}
		}
	}
	return all
}

// Each row replaces rules by others. The ports that are kept have the same socket before and after.
func TestReplace(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new []string
		kept     []string
		want     []string // all of them, after
	}{
		{"the same", []string{"-t 80", "-T 70"}, []string{"-T 70", "-t 80"}, []string{"HOST TCP 80", "SPLICE TCP 70"}, []string{"HOST TCP 80", "SPLICE TCP 70"}},
		{"none", []string{"-t 80", "-u 81", "-T 70", "-U 71"}, nil, nil, nil},
		{"from none", nil, []string{"-t 80", "-U 71"}, nil, []string{"HOST TCP 80", "SPLICE UDP 71"}},
		{"one more", []string{"-t 80"}, []string{"-t 80", "-t 81"}, []string{"HOST TCP 80"}, []string{"HOST TCP 80", "HOST TCP 81"}},
		{"leading elsewhere", []string{"-t 80", "-u 80"}, []string{"-t 80:8080", "-u 80:8080"}, []string{"HOST TCP 80", "HOST UDP 80"}, []string{"HOST TCP 80", "HOST UDP 80"}},
		{"another range", []string{"-t 80-83"}, []string{"-t 82-84"}, []string{"HOST TCP 82", "HOST TCP 83"}, []string{"HOST TCP 82", "HOST TCP 83", "HOST TCP 84"}},
		{"another protocol", []string{"-t 80"}, []string{"-u 80"}, nil, []string{"HOST UDP 80"}},
		{"another address", []string{"-t 80"}, []string{"-t 127.0.0.1/80"}, nil, []string{"HOST TCP 80"}},
		{"another interface", []string{"-t 80"}, []string{"-t %lo/80"}, nil, []string{"HOST TCP 80"}},
		{"a part of a range, a hole", []string{"-t 80-84"}, []string{"-t 80-84,~82"}, []string{"HOST TCP 80", "HOST TCP 81", "HOST TCP 83", "HOST TCP 84"},
			[]string{"HOST TCP 80", "HOST TCP 81", "HOST TCP 83", "HOST TCP 84"}},
		{"only what is bound", []string{"-t 5000-5001"}, []string{"-t 5000-5001,auto"}, []string{"HOST TCP 5000"}, []string{"HOST TCP 5000"}},
		{"not only what is bound", []string{"-t 5000-5001,auto"}, []string{"-t 5000-5001"}, []string{"HOST TCP 5000"}, []string{"HOST TCP 5000", "HOST TCP 5001"}},
		{"all, and only what is bound", []string{"-t auto"}, []string{"-t auto", "-u auto"}, []string{"HOST TCP 5000"}, []string{"HOST TCP 5000", "HOST UDP 5000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t, nil)
			service, err := p.ns.Listen("tcp", ":5000")
			if err != nil {
				t.Fatal(err)
			}
			defer service.Close()
			p.add(t, tt.old...)
			before := p.sockets()
			p.replace(t, tt.new...)
			after := p.sockets()
			want := map[string]int{}
			for _, name := range tt.want {
				want[name] = 0
			}
			names := maps.Clone(after)
			for name := range names {
				names[name] = 0
			}
			if diff := cmp.Diff(want, names); diff != "" {
				t.Errorf("ports, - want, + got:\n%s", diff)
			}
			for _, name := range tt.kept {
				if before[name] == 0 || before[name] != after[name] {
					t.Errorf("%s had descriptor %d, has %d", name, before[name], after[name])
				}
			}
			if n := p.sides[Host].len() + p.sides[Namespace].len(); n != len(tt.want) {
				t.Errorf("%d listeners, want %d", n, len(tt.want))
			}
			udp := map[uint16]int{}
			for port, n := range p.twin.listens {
				if n != 0 {
					udp[port] = n
				}
			}
			wantUDP := map[uint16]int{}
			for _, r := range p.rules[config.Inbound] {
				for port := range r.listeners {
					if r.Protocol == config.UDP {
						wantUDP[port] = 1
					}
				}
			}
			if diff := cmp.Diff(wantUDP, udp); diff != "" {
				t.Errorf("UDP ports the engine knows, - want, + got:\n%s", diff)
			}
		})
	}
}

// A port leads where the rules of the moment say.
func TestReplacedPortLeadsElsewhere(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-t 80:8080", "-u 80:8080")
	for _, to := range []string{"8081", "8082"} {
		p.replace(t, "-t 80:"+to, "-u 80:"+to)
		dial(t, p.host, "tcp", "", "127.0.0.1:80")
		if got, _ := p.twin.take(); got.To != "192.0.2.10:"+to {
			t.Errorf("%+v", got)
		}
		fmt.Fprint(dial(t, p.host, "udp", "", "127.0.0.1:80"), "hello")
		if got, _ := p.twin.take(); got.To != "192.0.2.10:"+to {
			t.Errorf("%+v", got)
		}
	}
}

// Rules that cannot be in force together change nothing; a port that is taken is missing, is said,
// and is had as soon as it is free.
func TestReplaceFails(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-t 80")
	list := append(parse(t, "-t 80").Inbound, parse(t, "-t 127.0.0.1/80").Inbound...)
	if failures, err := p.Replace(list, nil); !errors.Is(err, errConflict) || failures != nil {
		t.Errorf("%v, %v", failures, err)
	}
	dial(t, p.host, "tcp", "", "127.0.0.1:80")
	p.twin.take()

	taken, err := p.host.Listen("tcp4", "0.0.0.0:81")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	table := parse(t, "-t 81", "-t 82", "-u 83", "-T 84")
	const missing = "Listen failed for HOST TCP port */81: Address already in use"
	for range 2 {
		failures, err := p.Replace(table.Inbound, table.Outbound)
		if err != errListen || len(failures) != 1 || failures[0].Error() != missing {
			t.Errorf("%v, %v", failures, err)
		}
		dial(t, p.host, "tcp", "", "127.0.0.1:82")
		p.twin.take()
		dial(t, p.ns, "tcp", "", "127.0.0.1:84")
		p.twin.take()
	}
	if got := p.List(config.Inbound); len(got) != 3 {
		t.Errorf("rules %v", got)
	}
	taken.Close()
	p.replace(t, "-t 81", "-t 82", "-u 83", "-T 84")
	dial(t, p.host, "tcp", "", "127.0.0.1:81")
	p.twin.take()
	p.twin.none()
}

// Best effort is said once.
func TestReplaceRepeatsNoWarning(t *testing.T) {
	p := newPlace(t, nil)
	taken, err := p.host.Listen("tcp4", "0.0.0.0:81")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const all = "-t ~1-79,~83-65535"
	for i, more := range []string{"-u 90", "-u 91", "-u 92"} {
		table := parse(t, all, more)
		failures, err := p.Replace(table.Inbound, nil)
		if err != nil || (len(failures) == 1) != (i == 0) {
			t.Errorf("%d: %v, %v", i, failures, err)
		}
	}
}

// While rules change, no connection to a port of theirs is refused, and none is lost.
func TestReplaceUnderLoad(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-t 80", "-T 80")
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for _, n := range []interface{ Do(func() error) error }{p.host, p.ns} {
		clients.Go(func() {
			for ctx.Err() == nil {
				var c net.Conn
				err := n.Do(func() (err error) {
					d := net.Dialer{Timeout: 10 * time.Second}
					d.SetMultipathTCP(false)
					c, err = d.Dial("tcp4", "127.0.0.1:80")
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
				c.Close()
				mu.Lock()
				made++
				mu.Unlock()
			}
		})
	}
	for i := range 200 {
		p.replace(t, fmt.Sprintf("-t 79-%d", 80+i%3), fmt.Sprintf("-T 80:%d", 1000+i))
	}
	cancel()
	clients.Wait()
	for range made {
		if b, fd := p.twin.take(); b.Kind == "" {
			t.Error(b)
		} else {
			unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	}
	p.twin.none()
}

// A listener that rests since there are no descriptors accepts again although its rule has changed.
func TestReplaceWakesAListenerThatRests(t *testing.T) {
	p := newPlace(t, nil)
	p.add(t, "-t 80:1")
	s := p.sides[Host]
	p.mu.Lock()
	l := p.rules[config.Inbound][0].listeners[80]
	p.mu.Unlock()
	s.mu.Lock()
	s.rest(l, unix.EMFILE)
	s.mu.Unlock()
	p.replace(t, "-t 80:2")
	dial(t, p.host, "tcp", "", "127.0.0.1:80")
	if got, _ := p.twin.take(); got.To != "192.0.2.10:2" {
		t.Errorf("%+v", got)
	}
}

// A link-local address with an interface takes no question to the kernel about the interface, which
// a confined process may not ask.
func TestLinkLocalAddressOnAnInterface(t *testing.T) {
	p := newPlace(t, nil)
	if err := p.host.IP("addr add fe80::77/64 dev h0 nodad"); err != nil {
		t.Fatal(err)
	}
	p.add(t, "-t fe80::77%h0/80", "-u fe80::77%h0/80")
	dial(t, p.host, "tcp", "", "[fe80::77%h0]:80")
	if got, _ := p.twin.take(); got.Kind != "tap TCP" {
		t.Errorf("%+v", got)
	}
}
