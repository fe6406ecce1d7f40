package app

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors"
	"fusilli/actors/flow"
	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/actors/sock"
	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/internal/logging"
	"fusilli/internal/netconf"
	"fusilli/internal/process"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// tapQueueLen is the number of frames, of up to 64 KiB each, that the kernel queues for the reader:
// more than a window's worth of frames at the smallest MTU.
const tapQueueLen = 4096

// localRouteWait is how long the guest's kernel may take to notice an address it was given. It
// takes some milliseconds; without the wait a first answer might find no owner.
const localRouteWait = 200 * time.Millisecond

// translate connects the namespace of env as cfg says, and carries its flows until ctx ends or the
// tap is gone.
func translate(ctx context.Context, cfg *config.Config, env *process.Env, log *zap.Logger) error {
	host, err := autodetect.Detect(detection(cfg))
	if err != nil {
		return err
	}
	for _, n := range host.Notices {
		log.Info(n)
	}
	for _, w := range host.Warnings {
		log.Warn(w)
	}
	table, err := portRules(cfg, host, env, log)
	if err != nil {
		return err
	}
	if cfg.SpliceOnly {
		return translateLocally(ctx, cfg, host, env, table, log)
	}
	link, guest, err := connect(cfg, host, env, log)
	if err != nil {
		return err
	}
	var open undo // what the parts close once they run
	defer open.do()
	open.add(func() { link.Close() })
	dns, warnings := names(cfg, host)
	for _, w := range warnings {
		log.Warn(w)
	}
	if cfg.Log.Summary {
		s := summary{cfg: cfg, host: host, dns: &dns, inbound: table.Inbound, outbound: table.Outbound}
		if tap, ok := link.(*tapio.Tap); ok {
			s.tap = tap.Name()
		}
		for _, line := range append(s.lines(), hints(cfg)...) {
			log.Info(line)
		}
	}
	watch := observe(cfg, link, log)
	defer watch.close()
	ec := engineConfig(cfg, host, &dns, &guest, watch.link, logging.Limit(log))
	ec.DHCP, ec.DHCPv6 = dhcpServers(cfg, host, &dns, log)
	ec.Announce = flow.NewAnnouncer(log)
	vm, _ := link.(machineLink)
	if vm != nil {
		ec.Backpressure = vm
	}
	ec.Fragment = cfg.Mode == config.Passt
	ec.Limit = flowLimit(openFiles(), cfg.MaxFlows)
	ec.Memory = cfg.Memory
	limitHeap(ec.Limit, cfg.Memory)
	own := openHostAddrs(host, log)
	defer own.close()
	ec.HostHas = own.has
	engine := actors.New(ec)
	if vm != nil {
		vm.OnConnect(engine.Greet)
	}
	nb := openNeighbours(cfg, host, log)
	defer nb.close()
	gw := openGuestWatch(env, link, log)
	defer gw.close()
	ports, err := listen(cfg, host, env, table, engine, ec.Announce, ec.Limit, log)
	if err != nil {
		return err
	}
	open.add(ports.Close)
	api, err := openAPI(cfg, env, ports, log)
	if err != nil {
		return err
	}
	open.add(api.close)
	ctl, err := openControl(cfg, host, env, ports, log)
	if err != nil {
		return err
	}
	open.add(ctl.close)
	if err := env.Ready(); err != nil {
		return err
	}
	open.forget()
	defer api.serve(ctx)()
	defer ctl.serve(ctx)()
	if cfg.ConfigNet || cfg.Mode == config.Passt && cfg.FD >= 0 && !cfg.VhostUser {
		engine.Greet() // the guest is there from the beginning
	}
	watch.start(append(flowCounts(engine.Counters()), spliceCounts(ports.splicer)...))
	running, end := leaving(ctx, link)
	defer end()
	err = ports.together(running, func(ctx context.Context) error { return runBeside(ctx, engine, nb.run, gw.run) })
	dumpCounts(log, engine.Counters(), ports.splicer)
	return lostLink(err, log)
}

// undo closes what was opened one after the other, the last first, unless all of it could be.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

// forget is for when there is nothing to undo any more.
func (u *undo) forget() { *u = nil }

func (u *undo) do() {
	for _, f := range slices.Backward(*u) {
		f()
	}
}

// connect opens the guest's link.
func connect(cfg *config.Config, host *autodetect.Host, env *process.Env, log *zap.Logger) (tapio.Link, netconf.Result, error) {
	if env.NetNS == nil {
		link, err := openGuest(cfg, env, log)
		return link, netconf.Result{}, err
	}
	name := cfg.TapName
	if name == "" {
		name = host.TapName()
	}
	var tap *tapio.Tap
	var guest netconf.Result
	err := env.NetNS.Do(func() (err error) {
		if tap, err = tapio.OpenTap(name, tapio.TapOptions{}); err != nil {
			return err
		}
		if guest, err = netconf.Configure(tap.Name(), plan(cfg, host)); err != nil {
			return err
		}
		if cfg.ConfigNet && !cfg.Autoconf && host.V6.Enabled() && !guest.NoV6 {
			netconf.AwaitLocal(host.V6.Address, localRouteWait)
		}
		return nil
	})
	if err != nil {
		if tap != nil {
			tap.Close()
		}
		return nil, guest, err
	}
	for _, w := range guest.Warnings {
		log.Warn(w)
	}
	log.Debug("tap is open", zap.String("tap", tap.Name()), zap.Stringer("features", tap.Features()))
	return tap, guest, nil
}

// leaving returns a context that ends with ctx. If that is because the command has ended, a tap is
// left to its namespace first.
func leaving(ctx context.Context, link tapio.Link) (context.Context, context.CancelFunc) {
	tap, ok := link.(*tapio.Tap)
	if !ok {
		return context.WithCancel(ctx)
	}
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), process.ErrCommandEnded) {
			tap.Leave() // or it is removed here
		}
		end()
	})
	return running, func() {
		stop()
		end()
	}
}

// lostLink says what err, the end of an engine, means to the user. The texts are ones that others
// match.
func lostLink(err error, log *zap.Logger) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tapio.ErrClientGone):
		log.Info("Client connection closed, exiting")
		return nil
	case errors.Is(err, tapio.ErrListener):
		log.Debug("No client can be accepted", zap.Error(err))
		return process.Failf("Error on listening Unix socket, exiting")
	}
	log.Debug("The tap has failed", zap.Error(err))
	switch {
	case errors.Is(err, tapio.ErrGone), errors.Is(err, io.EOF):
		return process.Failf("EOF on tap device, exiting")
	case errors.Is(err, tapio.ErrWrite):
		return process.Failf("Write error on tap device, exiting")
	}
	return process.Failf("Error on tap device, exiting")
}

// procs returns the number of threads that run Go code at a time on a machine with so many CPUs.
// One is enough for some 20 Gbit/s and for most guests best: with a second, every packet that wakes
// a flow also wakes a thread that finds nothing to do, which costs a fifth of the CPU time and of
// the latency. More pay where CPUs are plenty and several flows are busy.
func procs(cpus int) int { return min(max(cpus/4, 1), 4) }

// detection is what the command line has decided of what would otherwise be found out.
func detection(cfg *config.Config) autodetect.Options {
	family := func(f *config.Family) autodetect.FamilyOptions {
		return autodetect.FamilyOptions{
			Disabled: !f.Enabled, Outbound: f.OutboundIf,
			Address: f.Address, PrefixLen: f.PrefixLen, Gateway: f.Gateway,
		}
	}
	return autodetect.Options{Interface: cfg.Interface, V4: family(&cfg.IPv4), V6: family(&cfg.IPv6)}
}

// plan is what the guest's namespace is to look like.
func plan(cfg *config.Config, host *autodetect.Host) netconf.Plan {
	family := func(c *config.Family, h *autodetect.Family) netconf.Family {
		return netconf.Family{
			Enabled: h.Enabled(),
			Address: h.Address, PrefixLen: h.PrefixLen, Gateway: h.Gateway,
			CopyAddresses: h.CopyAddresses && c.CopyAddrs, CopyRoutes: h.CopyRoutes && c.CopyRoutes,
			Addresses: h.Addresses, Routes: h.Routes,
		}
	}
	v6 := family(&cfg.IPv6, &host.V6)
	if cfg.Autoconf {
		v6 = netconf.Family{Enabled: v6.Enabled}
	}
	return netconf.Plan{
		Configure: cfg.ConfigNet, MAC: cfg.GuestMAC, MTU: cfg.MTU, TxQueueLen: tapQueueLen,
		V4: family(&cfg.IPv4, &host.V4), V6: v6,
	}
}

// engineConfig is what the translator's engine is told.
func engineConfig(cfg *config.Config, host *autodetect.Host, dns *autodetect.DNS, guest *netconf.Result, link tapio.Link, log *zap.Logger) actors.Config {
	v4, v6 := host.V4.Enabled() && !guest.NoV4, host.V6.Enabled() && !guest.NoV6
	kernel := hostKernel()
	c := actors.Config{
		Link: link, Log: log,
		OurMAC: frame.MAC(cfg.MAC), MTU: cfg.MTU,
		V4: v4, V6: v6,
		Neigh: responder(cfg, host, dns),
		Rules: rules.Rules{
			HostLoopback4: hostAlias(cfg, &cfg.IPv4, &host.V4),
			HostLoopback6: hostAlias(cfg, &cfg.IPv6, &host.V6),
			HostGuest4:    cfg.IPv4.HostGuestAddr,
			HostGuest6:    cfg.IPv6.HostGuestAddr,
			Assigned4:     host.V4.Address,
			Assigned6:     host.V6.Address,
			DNSMatch4:     dns.V4.Match,
			DNSMatch6:     dns.V6.Match,
			DNSHost4:      dns.V4.Host,
			DNSHost6:      dns.V6.Host,
			OurTap4:       host.V4.Gateway,
			OurLinkLocal:  host.V6.LinkLocal,
			Link4:         cfg.IPv4.Link,
			Link6:         cfg.IPv6.Link,
			Echo4:         cfg.IPv4.Echo,
			Echo6:         cfg.IPv6.Echo,
		},
		Host: sock.Host{
			Scope: uint32(max(host.V6.Index, 0)),
			Out4:  cfg.IPv4.Outbound, Out6: cfg.IPv6.Outbound,
			Device4: cfg.IPv4.OutboundIf, Device6: cfg.IPv6.OutboundIf,
			FreeBind: cfg.FreeBind, AnyPort: cfg.AnyUDPPort, Log: log,
		},
		NoTCP: !cfg.TCP, NoUDP: !cfg.UDP, NoICMP: !cfg.ICMP,
		Guest:      rules.Guest{V4: host.V4.Address, V6: host.V6.Address, LinkLocal: guest.LinkLocal},
		Frozen4:    cfg.IPv4.Address.IsValid() && cfg.IPv4.Address == host.V4.Address,
		Frozen6:    cfg.IPv6.Address.IsValid() && cfg.IPv6.Address == host.V6.Address,
		SYNRetries: synRetries(&kernel), SYNLinear: uint8(min(kernel.TCPSynLinearTimeouts, maxSYNRetries)),
		RTOMax:     kernel.TCPRTOMax,
		UDPTimeout: kernel.UDPTimeout, UDPStreamTimeout: kernel.UDPStreamTimeout,
		PeekOff4: v4 && sock.PeekOffset(unix.AF_INET), PeekOff6: v6 && sock.PeekOffset(unix.AF_INET6),
	}
	c.GuestMAC = frame.Broadcast // until it is known
	if guest.MAC != nil {
		c.GuestMAC = frame.MAC(guest.MAC)
	}
	return c
}

// maxSYNRetries bounds how often a guest is asked for a connection.
const maxSYNRetries = 7

func synRetries(k *autodetect.Kernel) uint8 {
	return uint8(min(k.TCPSynRetries+k.TCPSynLinearTimeouts, maxSYNRetries))
}

// responder is what the services on the guest's link answer.
func responder(cfg *config.Config, host *autodetect.Host, dns *autodetect.DNS) neigh.Responder {
	addr := func(a netip.Addr) (b frame.Addr) {
		if a.IsValid() {
			b = a.As16()
		}
		return b
	}
	r := neigh.Responder{
		MAC: frame.MAC(cfg.MAC), MTU: cfg.MTU,
		Guest4: addr(host.V4.Address), Our4: addr(host.V4.Gateway), Prefix: addr(host.V6.Address),
		Managed: true, NoRA: !cfg.RA,
		Neighbours: neighbourTable(cfg, host),
	}
	_, v6, search := announced(cfg, dns)
	r.Resolvers, r.Search = v6, searchList(search)
	if cfg.NDP {
		r.LinkLocal = addr(host.V6.LinkLocal)
	}
	return r
}
