package pesto

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/config"
	"fusilli/internal/unixsock"
)

const (
	// patience is how long a client may take from being accepted to the end of what it asks for.
	patience = 5 * time.Second
	// acceptPause is how long nobody is accepted once there was no descriptor for a client.
	acceptPause = 100 * time.Millisecond
)

// Forwarding is what a Server shows and changes. One goroutine calls its methods.
type Forwarding interface {
	// List returns the rules of a direction.
	List(dir config.Direction) []config.Rule
	// Replace puts inbound and outbound in the place of all rules there are. What of it could not
	// be done is for it to log; the error says that something of importance was not.
	Replace(inbound, outbound []config.Rule) error
}

// Server answers clients of a control socket.
type Server struct {
	Forwarding Forwarding
	Env        config.Env // what rules may ask for
	Namespace  bool       // the guest is one: there are outbound rules, and ports to be scanned for
	Log        *zap.Logger
}

// Serve answers clients of l, one after the other, until ctx ends. It closes l. A client that takes
// too long is dropped.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	short := false // of descriptors or memory
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			short = false
			s.client(ctx, c)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case !short:
			s.Log.Warn("No configuration client can be accepted at present", zap.Error(err))
			short = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(acceptPause):
		}
	}
}

// client serves one client.
func (s *Server) client(ctx context.Context, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	end := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer end()
	s.Log.Info(fmt.Sprintf("Accepted configuration client, PID %d", pidOf(c)))
	offered := s.tables()
	if _, err := c.Write(appendGreeting(nil, offered)); err != nil {
		s.gone(err)
		return
	}
	asked, err := readUpdate(c, offered)
	if err == io.EOF {
		return // it has seen what it wanted to
	}
	if err != nil {
		s.gone(err)
		return
	}
	s.apply(asked)
}

// gone says why a client gets nothing.
func (s *Server) gone(err error) {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		s.Log.Warn("Configuration client has taken too long, nothing is changed")
	case errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET):
		s.Log.Debug("Configuration client has hung up", zap.Error(err))
	default:
		s.Log.Warn("Invalid request of configuration client, nothing is changed: " + err.Error())
	}
}

// pidOf returns the process at the other end of c, 0 if it is not known or not visible.
func pidOf(c net.Conn) int32 {
	peer, err := unixsock.Peer(c)
	if err != nil {
		return 0
	}
	return peer.Pid
}

// tables are those there are now.
func (s *Server) tables() []Table {
	caps := capsOf(s.Env)
	if s.Namespace {
		caps |= CapScan
	}
	tables := []Table{{ID: hostID, Name: hostName, Caps: caps, Rules: s.Forwarding.List(config.Inbound)}}
	if s.Namespace {
		tables = append(tables, Table{ID: spliceID, Name: spliceName, Caps: caps, Rules: s.Forwarding.List(config.Outbound)})
	}
	return tables
}

// apply puts the tables that a client asks for in force, if they can be.
func (s *Server) apply(asked []Table) {
	var checked config.Table
	for _, t := range asked {
		if err := s.check(&checked, &t); err != nil {
			var refused *config.Error
			if errors.As(err, &refused) {
				for _, line := range refused.Warnings {
					s.Log.Warn(line)
				}
			}
			s.gone(err)
			return
		}
	}
	for _, t := range asked {
		s.Log.Info("New forwarding rules for " + t.Name + ":")
		for _, r := range t.Rules {
			s.Log.Info("    " + r.String())
		}
	}
	if err := s.Forwarding.Replace(checked.Inbound, checked.Outbound); err != nil {
		s.Log.Error(err.Error())
		s.Log.Error("Error switching to new forwarding rules")
	}
}

// check adds the rules of t to those that were checked before.
func (s *Server) check(checked *config.Table, t *Table) error {
	if t.Caps&CapScan == 0 && slices.ContainsFunc(t.Rules, func(r config.Rule) bool { return r.Scan }) {
		return errors.New("'auto' port forwarding is only allowed for pasta")
	}
	return checked.Add(direction(t.Name), s.Env, t.Rules...)
}

// direction is that of the rules of a table.
func direction(table string) config.Direction {
	if table == spliceName {
		return config.Outbound
	}
	return config.Inbound
}
