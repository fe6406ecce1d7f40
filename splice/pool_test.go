package splice

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPoolWhileDescriptorsRunOut: who asks gets a descriptor or the reason why there is none, and
// the pool is full again when there are some.
func TestPoolWhileDescriptorsRunOut(t *testing.T) {
	var mu sync.Mutex
	left := 5 // sockets that can be had
	p := newPool(func() (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if left == 0 {
			return -1, unix.EMFILE
		}
		left--
		return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	}, func(f func() error) error { return f() })
	kept := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.spare)
	}
	before := descriptors(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { p.run(ctx); close(done) }()

	var ours []int
	seen := map[int]bool{}
	take := func() error {
		fd, err := p.get()
		if err == nil {
			if _, e := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); e != nil || seen[fd] {
				t.Errorf("descriptor %d: %v, given before %v", fd, e, seen[fd])
			}
			seen[fd] = true
			ours = append(ours, fd)
		}
		return err
	}
	var err error
	for len(ours) <= 5 && err == nil {
		err = take()
		if err != nil && kept() > 0 {
			err = nil // the pool has had the last one a moment ago
		}
	}
	if !errors.Is(err, unix.EMFILE) || len(ours) != 5 {
		t.Errorf("%d descriptors and %v, want 5 and EMFILE", len(ours), err)
	}
	mu.Lock()
	left = 1000
	mu.Unlock()
	for range 3 { // some that are there do not keep it from being filled
		if err := take(); err != nil {
			t.Error(err)
		}
		wait(t, "a full pool", func() bool { return kept() == poolSize || kept() > poolSize/2+1 && len(ours) > 6 })
	}
	stop()
	<-done
	for _, fd := range ours {
		unix.Close(fd)
	}
	wait(t, "descriptors to be closed", func() bool { return descriptors(t) <= before })
}

// TestSmallMessagesDoNotWait: neither of the two sockets in the middle keeps a small message back
// until the one before it is acknowledged (Nagle's algorithm, which costs 40 ms with delayed
// acknowledgements).
func TestSmallMessagesDoNotWait(t *testing.T) {
	for _, family := range loopbacks {
		t.Run(family.name, func(t *testing.T) {
			s := start(t)
			client, server := spliced(t, s, family.addr)
			check := func(when string) {
				t.Helper()
				n := 0
				for fd := range 1 << 12 {
					peer, err := unix.Getpeername(fd)
					if err != nil || !isPort(peer, client) && !isPort(peer, server) {
						continue
					}
					n++
					if v, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY); err != nil || v != 1 {
						t.Errorf("%s: TCP_NODELAY is %d, %v", when, v, err)
					}
				}
				if n != 2 {
					t.Errorf("%s: %d sockets in the middle, want 2", when, n)
				}
			}
			say(t, client, "x")
			expect(t, server, "x")
			say(t, server, "y")
			expect(t, client, "y")
			check("after small messages")
			big := noise(4 << 20)
			go client.Write(big)
			expect(t, server, string(big))
			say(t, server, "thanks")
			expect(t, client, "thanks")
			check("after a large one")
		})
	}
}

// isPort reports whether a is of c's port.
func isPort(a unix.Sockaddr, c *net.TCPConn) bool {
	port := c.LocalAddr().(*net.TCPAddr).Port
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port == port
	case *unix.SockaddrInet6:
		return a.Port == port
	}
	return false
}
