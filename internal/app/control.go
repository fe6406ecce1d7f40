package app

import (
	"context"
	"net"
	"sync"

	"go.uber.org/zap"

	"fusilli/actors/forward"
	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/internal/pesto"
	"fusilli/internal/process"
)

// controlName is the name under which the translator gets the control socket.
const controlName = "control"

// controlQueue is the number of clients that wait for the control socket.
const controlQueue = 128

// control is the server of a translator's control socket; nil: none.
type control struct {
	*pesto.Server
	listener net.Listener
}

// openControl takes over the control socket, if the launcher has passed one on.
func openControl(cfg *config.Config, host *autodetect.Host, env *process.Env, p *ports, log *zap.Logger) (*control, error) {
	l, err := takeSocket(controlName, env, log)
	if l == nil {
		return nil, err
	}
	return &control{&pesto.Server{
		Forwarding: controlled{p.Forwarder, log},
		Env:        ruleEnv(cfg, host), Namespace: env.NetNS != nil, Log: log,
	}, l}, nil
}

// close is for a control socket that is not served.
func (c *control) close() {
	if c != nil {
		c.listener.Close()
	}
}

// serve answers clients until ctx ends or the function it returns is called, which waits for the
// client of the moment to be dropped.
func (c *control) serve(ctx context.Context) (stop func()) {
	if c == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var served sync.WaitGroup
	served.Go(func() { c.Serve(ctx, c.listener) })
	return func() {
		cancel()
		served.Wait()
	}
}

// controlled forwards what clients of the control socket ask for.
type controlled struct {
	*forward.Forwarder
	log *zap.Logger
}

// Replace implements pesto.Forwarding.
func (c controlled) Replace(inbound, outbound []config.Rule) error {
	failures, err := c.Forwarder.Replace(inbound, outbound)
	report(c.Forwarder, failures, err, c.log)
	return err
}
