package app

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/forward"
	"fusilli/actors/rules"
	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/internal/logging"
	"fusilli/internal/netconf"
	"fusilli/internal/process"
	"fusilli/splice"
)

// portRules turns the port specifiers of cfg into rules for this host. What is wrong with them is
// said beforehand.
func portRules(cfg *config.Config, host *autodetect.Host, env *process.Env, log *zap.Logger) (*config.Table, error) {
	if hostKernel().LocalPorts.High == 0 {
		log.Warn("Couldn't read the range of ephemeral ports, assuming " + config.DefaultEphemeral.String())
	}
	table, err := checkRules(cfg, host, log)
	if err != nil {
		return nil, err
	}
	for _, w := range table.Warnings {
		log.Warn(w)
	}
	if env.NetNS == nil { // nothing to look into, nor to listen in
		table.Outbound = nil
		table.Inbound = slices.DeleteFunc(table.Inbound, func(r config.Rule) bool { return r.Scan })
	}
	return table, nil
}

// checkRules returns the rules that the port specifiers of cfg make. Why one is refused is logged
// before the error is returned.
func checkRules(cfg *config.Config, host *autodetect.Host, log *zap.Logger) (*config.Table, error) {
	table, err := config.Rules(cfg.Ports, ruleEnv(cfg, host))
	if err != nil {
		var refused *config.Error
		if errors.As(err, &refused) {
			for _, w := range refused.Warnings {
				log.Warn(w)
			}
		}
		return nil, err
	}
	return table, nil
}

// ruleEnv is what rules may ask for on this host.
func ruleEnv(cfg *config.Config, host *autodetect.Host) config.Env {
	ephemeral := config.DefaultEphemeral
	if p := hostKernel().LocalPorts; p.High != 0 {
		ephemeral = config.PortRange{First: p.Low, Last: p.High}
	}
	return config.Env{
		IPv4: host.V4.Enabled(), IPv6: host.V6.Enabled(), TCP: cfg.TCP, UDP: cfg.UDP,
		BindToDevice: canBindToDevice(), Ephemeral: ephemeral,
	}
}

// hostKernel returns what autodetect.ReadKernel finds, which is looked for once.
var hostKernel = sync.OnceValue(func() autodetect.Kernel {
	return autodetect.ReadKernel(os.DirFS(autodetect.Sysctls))
})

// canBindToDevice tells whether SO_BINDTODEVICE needs no privileges (Linux 5.7).
func canBindToDevice() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true // the rule will tell
	}
	defer unix.Close(fd)
	return unix.BindToDevice(fd, "lo") != unix.EPERM
}

// ports are what forwards ports.
type ports struct {
	*forward.Forwarder
	splicer *splice.Splicer // nil: the guest is no namespace
}

// listen opens what listens for the rules of table. Flows from socket to socket count against
// limit; nil: one of their own. The caller has it run, or closes it.
func listen(cfg *config.Config, host *autodetect.Host, env *process.Env, table *config.Table, tap forward.Tap, announce *flow.Announcer, limit *flow.Limit, log *zap.Logger) (*ports, error) {
	p := &ports{}
	c := forward.Config{
		Log: log, Tap: tap,
		IPv4: host.V4.Enabled(), IPv6: host.V6.Enabled(),
		FreeBind: cfg.FreeBind, Scope: uint32(max(host.V6.Index, 0)),
	}
	if env.NetNS != nil {
		kernel := hostKernel()
		p.splicer = splice.New(splice.Config{
			Log: logging.Limit(log), Announce: announce, InNamespace: env.NetNS.Do, Limit: limit,
			UDPTimeout: kernel.UDPTimeout, UDPStreamTimeout: kernel.UDPStreamTimeout,
		})
		if err := env.NetNS.Do(splice.ReusePorts); err != nil {
			log.Debug("Can't reuse ports early", zap.Error(err))
		}
		c.Splice, c.InNamespace = socketToSocket{p.splicer}, env.NetNS.Do
		c.Policy = rules.Policy{Splice: !cfg.NoSplice, SpliceOnly: cfg.SpliceOnly, KeepLoopback: cfg.HostLoToNSLo}
	}
	var err error
	if p.Forwarder, err = forward.New(c); err != nil {
		return nil, err
	}
	for dir, list := range [][]config.Rule{config.Inbound: table.Inbound, config.Outbound: table.Outbound} {
		if len(list) == 0 {
			continue
		}
		failures, err := p.takeOver(config.Direction(dir), list, log)
		report(p.Forwarder, failures, err, log)
		if err != nil {
			p.Close()
			return nil, err
		}
	}
	return p, nil
}

// A container that is started again wants the ports it had, and our predecessor learns only a
// moment later that its namespace is gone.
const (
	takeOverTime = 500 * time.Millisecond
	takeOverStep = 5 * time.Millisecond
)

// takeOver adds list as Add does, and waits for ports that somebody else has.
func (p *ports) takeOver(dir config.Direction, list []config.Rule, log *zap.Logger) ([]forward.Failure, error) {
	taken := func(f forward.Failure) bool { return errors.Is(f.Err, unix.EADDRINUSE) }
	begun := time.Now()
	for waits := false; ; waits = true {
		failures, err := p.Add(dir, list...)
		if err == nil || !slices.ContainsFunc(failures, taken) || time.Since(begun) > takeOverTime {
			return failures, err
		}
		if !waits {
			log.Debug("waits for a port", zap.Error(&failures[0]))
		}
		time.Sleep(takeOverStep)
	}
}

// together forwards while run runs, which ends when ctx does, or before.
func (p *ports) together(ctx context.Context, run func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { p.Run(ctx) })
	if p.splicer != nil {
		parts.Go(func() { p.splicer.Run(ctx) }) // returns nil
	}
	err := run(ctx)
	cancel()
	parts.Wait()
	return err
}

// report says which ports could not be had, and what to do about a want of descriptors. err is why
// that is fatal, if it is.
func report(f *forward.Forwarder, failures []forward.Failure, err error, log *zap.Logger) {
	say := log.Warn
	if err != nil {
		say = log.Error
	}
	spent := false
	for i := range failures {
		say(failures[i].Error())
		spent = spent || errors.Is(failures[i].Err, unix.EMFILE)
	}
	if spent {
		say(f.LimitText())
	}
}

// socketToSocket has the splicer carry what the forwarder hands over.
type socketToSocket struct{ *splice.Splicer }

func (s socketToSocket) TCP(fd int, to forward.Side, dst netip.AddrPort) {
	s.Splicer.TCP(fd, splice.Side(to), dst)
}

func (s socketToSocket) UDP(fd int, to forward.Side, src, dst netip.AddrPort, first [][]byte) {
	s.Splicer.UDP(fd, splice.Side(to), src, dst, first)
}

// translateLocally connects the namespace's loopback interface with the host's, and nothing else
// (--splice-only), until ctx ends.
func translateLocally(ctx context.Context, cfg *config.Config, host *autodetect.Host, env *process.Env, table *config.Table, log *zap.Logger) error {
	err := env.NetNS.Do(func() error {
		_, err := netconf.Configure("", netconf.Plan{})
		return err
	})
	if err != nil {
		return err
	}
	if cfg.Log.Summary {
		s := summary{cfg: cfg, host: host, dns: &autodetect.DNS{}, inbound: table.Inbound, outbound: table.Outbound}
		for _, line := range s.lines() {
			log.Info(line)
		}
	}
	ports, err := listen(cfg, host, env, table, nil, flow.NewAnnouncer(log), nil, log)
	if err != nil {
		return err
	}
	var open undo
	defer open.do()
	open.add(ports.Close)
	ctl, err := openControl(cfg, host, env, ports, log)
	if err != nil {
		return err
	}
	open.add(ctl.close)
	watch := observe(cfg, nil, log)
	defer watch.close()
	if err := env.Ready(); err != nil {
		return err
	}
	open.forget()
	defer ctl.serve(ctx)()
	watch.start(spliceCounts(ports.splicer))
	err = ports.together(ctx, func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	})
	dumpCounts(log, nil, ports.splicer)
	return err
}
