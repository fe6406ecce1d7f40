package splice

import (
	"net/netip"
	"runtime"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
)

// conn is one connection. The goroutine in serve is the only one that touches it.
type conn struct {
	s   *Splicer
	w   *watch
	dst netip.AddrPort

	side [2]end    // the accepted socket, and the one that connects
	flow [2]stream // from that side to the other

	connected bool
}

// serve carries the accepted connection fd, which it closes, to dst on side to, until it ends.
func (s *Splicer) serve(w *watch, fd int, to Side, dst netip.AddrPort) {
	c := &conn{s: s, w: w, dst: dst}
	c.side[0].fd, c.side[1].fd = fd, -1
	clean := false
	defer func() { c.close(clean) }()
	if !c.open(to) {
		return
	}
	clean = c.run()
}

// open begins to connect. It reports whether that is under way.
func (c *conn) open(to Side) bool {
	fd, err := c.s.tcp(to, c.dst.Addr().Is4())
	if err != nil {
		c.s.troubled("Unable to open socket for new connection", err)
		return false
	}
	c.side[1].fd = fd
	sock.PrepareStream(c.side[0].fd)
	if e := sock.Connect(fd, c.dst); e != 0 && e != unix.EINPROGRESS {
		c.refused(e)
		return false
	}
	for i := range c.side {
		if err := c.w.add(i, c.side[i].fd); err != nil {
			c.s.troubled("Unable to watch socket of new connection", err)
			return false
		}
	}
	c.s.spinner.Extend()
	return true
}

func (c *conn) refused(e unix.Errno) {
	c.s.counters.Refused.Add(1)
	c.s.cfg.Log.Debug("Couldn't connect spliced connection", zap.Stringer("host", c.dst), zap.Error(e))
}

// run moves data until the connection is over. It reports whether both directions have ended as
// they should.
func (c *conn) run() (clean bool) {
	over := false
	for !over && !c.s.stopping() {
		c.w.each(func() bool {
			over, clean = c.advance()
			return over
		})
	}
	return clean
}

// advance does all there is to do now. It reports whether the connection is over then, and whether
// both directions have ended as they should.
func (c *conn) advance() (over, clean bool) {
	for {
		c.note()
		switch {
		case c.s.stopping():
			return true, false
		case c.connected:
		case c.side[1].failed:
			c.refused(sock.Error(c.side[1].fd))
			return true, false
		case c.side[0].failed:
			return true, false // the client has given up
		case c.side[1].writable:
			c.connected = true
		}
		more := false
		if c.connected {
			var e unix.Errno
			if more, e = c.turn(); e != 0 || c.side[0].failed || c.side[1].failed {
				c.finish(e)
				return true, false
			}
			if c.side[0].shut && c.side[1].shut {
				return true, true
			}
		}
		if more {
			runtime.Gosched() // others have something to move as well
			c.w.look()
		} else if !c.linger() {
			return false, false
		}
	}
}

// note notes what the watch has seen.
func (c *conn) note() {
	for _, ev := range c.w.take() {
		s := &c.side[ev.Fd]
		s.readable = s.readable || ev.Events&^unix.EPOLLOUT != 0
		s.writable = s.writable || ev.Events&unix.EPOLLOUT != 0
		s.hup = s.hup || ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
		s.urgent = s.urgent || ev.Events&unix.EPOLLPRI != 0
		s.failed = s.failed || ev.Events&unix.EPOLLERR != 0
	}
}

// turn moves what can be moved now, but no more than a turn. It returns whether there is more, and
// the error that ends the connection.
func (c *conn) turn() (more bool, e unix.Errno) {
	for i := range c.flow {
		n, again, e := c.flow[i].run(&c.side[i], &c.side[1-i], &c.s.pipes)
		if n > 0 {
			c.s.counters.Bytes.Add(uint64(n))
			c.s.spinner.Message(c.w, flow.Side(i+1), n)
		}
		if e != 0 {
			return false, e
		}
		more = more || again
	}
	return more, 0
}

// linger reports whether something has happened before it is time to sleep. In the pace of
// requests and answers it looks for the next one.
func (c *conn) linger() bool {
	if c.s.spin(c.w) {
		return true
	}
	if c.flow[0].corked || c.flow[1].corked {
		// In a bulk transfer whoever feeds it may just want the CPU. What comes at once saves a
		// wake-up, and goes along in larger segments.
		c.s.spinner.Yield()
		if c.w.look() {
			return true
		}
	}
	for i := range c.flow {
		c.flow[i].flush(&c.side[1-i])
		c.flow[i].rest(&c.s.pipes)
	}
	return false
}

// finish passes on what was sent before the connection failed with e, or with an error that a
// socket has, as far as it goes without waiting.
func (c *conn) finish(e unix.Errno) {
	for i := range c.side {
		c.side[i].shut = true // what looks like an end now is none
	}
	for i := range c.flow {
		c.side[i].readable = true
		for more := true; more; {
			var err unix.Errno
			if _, more, err = c.flow[i].run(&c.side[i], &c.side[1-i], &c.s.pipes); e == 0 {
				e = err
			}
		}
	}
	c.s.cfg.Log.Debug("Spliced connection failed", zap.Stringer("host", c.dst), zap.Error(e))
}

// close closes both sockets, so that the peers see the end they have made themselves if clean, and
// a reset if not.
func (c *conn) close(clean bool) {
	for i := range c.flow {
		c.flow[i].drop(&c.s.pipes)
	}
	for i := range c.side {
		fd := c.side[i].fd
		if fd < 0 {
			continue
		}
		if !clean {
			sock.Reset(fd)
		}
		closeFD(fd)
	}
}
