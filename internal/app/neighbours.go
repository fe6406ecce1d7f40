package app

import (
	"context"
	"net/netip"
	"sync"

	"go.uber.org/zap"

	"fusilli/actors"
	"fusilli/actors/neigh"
	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/tapio/frame"
)

// neighbours tells an engine about the host's neighbours. A nil one has nothing to tell.
type neighbours struct {
	watch *autodetect.Neighbours
	log   *zap.Logger
}

// openNeighbours opens what the host's neighbours are watched with, before that is forbidden. A
// guest whose network exists on its link only has no use for them.
func openNeighbours(cfg *config.Config, host *autodetect.Host, log *zap.Logger) *neighbours {
	if cfg.IPv4.Link.IsValid() || cfg.IPv6.Link.IsValid() {
		return nil
	}
	w, err := autodetect.OpenNeighbours(host)
	if err != nil {
		log.Warn("The guest is not shown the hardware addresses of the host's neighbours", zap.Error(err))
	}
	if w == nil {
		return nil
	}
	return &neighbours{watch: w, log: log}
}

// close gives back what n has opened.
func (n *neighbours) close() {
	if n != nil {
		n.watch.Close()
	}
}

// runBeside runs e with parts beside it, which end with it. The result is e's.
func runBeside(ctx context.Context, e *actors.Engine, parts ...func(context.Context, *actors.Engine)) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, run := range parts {
		running.Go(func() { run(ctx, e) })
	}
	err := e.Run(ctx)
	cancel()
	running.Wait()
	return err
}

// run watches until ctx ends.
func (n *neighbours) run(ctx context.Context, e *actors.Engine) {
	if n == nil {
		return
	}
	var list []actors.Neighbour
	err := n.watch.Run(ctx, func(found []autodetect.Neighbour, all bool) {
		list = list[:0]
		for _, f := range found {
			list = append(list, actors.Neighbour{Addr: f.Addr, MAC: f.MAC})
		}
		e.Neighbours(list, all)
	})
	if err != nil {
		n.log.Warn("The guest is not shown the hardware addresses of the host's neighbours any more", zap.Error(err))
	}
}

// neighbourTable returns the table of what the guest is told. The addresses that lead to the host
// itself are ours, whoever else has them, and so is our own.
func neighbourTable(cfg *config.Config, host *autodetect.Host) *neigh.Table {
	ours := host.V6.LinkLocal
	if ours == host.V6.Gateway {
		ours = netip.Addr{} // the gateway's
	}
	return neigh.NewTable(frame.MAC(cfg.MAC), frame.AddrOf(host.V4.Gateway), frame.AddrOf(host.V6.Gateway),
		frame.AddrOf(hostAlias(cfg, &cfg.IPv4, &host.V4)), frame.AddrOf(hostAlias(cfg, &cfg.IPv6, &host.V6)),
		frame.AddrOf(cfg.IPv4.HostGuestAddr), frame.AddrOf(cfg.IPv6.HostGuestAddr), frame.AddrOf(ours))
}
