package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/forward"
	"fusilli/config"
	"fusilli/internal/process"
	"fusilli/internal/slirp"
	"fusilli/internal/unixsock"
)

// apiName is the name under which the translator gets the API socket.
const apiName = "api"

// showSlirp shows what a command line of slirp4netns asks for.
func showSlirp(o *slirp.Options, version string) int {
	if o.Help {
		return printed(slirp.Help(os.Stdout))
	}
	return printed(slirp.Version(os.Stdout, version))
}

// launchSlirp is launch for a command line of slirp4netns.
func launchSlirp(start *process.Start, cfg *config.Config, o *slirp.Options, spec process.Spec, version string) int {
	if err := checkSlirp(o); err != nil {
		warn(cfg.Warnings)
		return fail(err.Error())
	}
	if o.Sandbox && enterForSandbox(&cfg.Target) {
		stayInside(&spec)
	}
	warn(cfg.Warnings)
	var err error
	if o.ReadyFD >= 0 {
		if spec.Ready, err = inherited(o.ReadyFD, "ready-fd"); err != nil {
			return fail(err.Error())
		}
	}
	if o.ExitFD >= 0 {
		// An event on a descriptor that there is none of comes at once.
		if spec.Exit, err = inherited(o.ExitFD, "exit-fd"); err != nil {
			return 0
		}
	}
	if err := process.CloseStray(); err != nil {
		return fail("Failed to close files leaked by parent: " + err.Error())
	}
	made := &sockets{start: start}
	defer made.close()
	if o.APISocket != "" {
		f, err := listenAPI(o.APISocket)
		if err != nil {
			return fail(fmt.Sprintf("cannot bind API socket %s: %s", o.APISocket, process.Reason(err)))
		}
		if err := made.passForUser(f, o.APISocket); err != nil {
			made.remove()
			return fail(err.Error())
		}
	}
	if o.BESS {
		f, err := acceptBESS(o.Target)
		if err != nil {
			made.remove()
			return fail(err.Error())
		}
		defer f.Close()
		start.Pass(f)
	}
	spec.Renounce = o.Sandbox
	// Root stays root.
	spec.RunAs = &process.User{UID: os.Geteuid(), GID: os.Getegid()}
	log, err := openLog(start, cfg, version)
	if err != nil {
		made.remove()
		return fail(err.Error())
	}
	defer log.Close()
	spec.Made = made.paths
	status, err := process.Launch(start, spec, log.Logger)
	if err != nil {
		log.Error(err.Error())
	}
	return status
}

// checkSlirp checks what a command line says about the host.
func checkSlirp(o *slirp.Options) error {
	if o.NetNSIsPath {
		if _, err := os.Stat(o.Target); err != nil {
			return fmt.Errorf("existing path expected when --netns-type=path: %s", process.Reason(err))
		}
	}
	if o.UserNSPath != "" {
		if _, err := os.Stat(o.UserNSPath); err != nil {
			return fmt.Errorf("userns path doesn't exist: %s", o.UserNSPath)
		}
	}
	return nil
}

// resolveOutbound puts the addresses that interfaces have now in the place of their names: to be
// sent from such an address, and wherever the routes lead, is all that is asked for.
func resolveOutbound(o *slirp.Options) error {
	for _, i := range []struct {
		name           *string
		addr           *netip.Addr
		option, family string
	}{
		{&o.OutboundIfV4, &o.OutboundV4, "outbound-addr", "ipv4"},
		{&o.OutboundIfV6, &o.OutboundV6, "outbound-addr6", "ipv6"},
	} {
		if *i.name == "" {
			continue
		}
		a, err := interfaceAddr(*i.name, i.family == "ipv6")
		if err != nil {
			return slirp.ErrOutbound{Option: i.option, Family: i.family}
		}
		*i.name, *i.addr = "", a
	}
	return nil
}

// interfaceAddr returns the first address of one family, not link-local, that an interface has.
func interfaceAddr(name string, v6 bool) (netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, err
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() == v6 && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("interface %s has no such address", name)
}

// inherited takes over a descriptor of the program that started us, which nobody else is to get.
func inherited(fd int, name string) (*os.File, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("%s %d: %s", name, fd, process.Reason(err))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// listenAPI opens the API socket.
func listenAPI(path string) (*os.File, error) {
	fd, err := listenAt(path, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), apiName), nil
}

// acceptBESS waits for a machine that connects to path, as User Mode Linux does, and returns the
// connection. Nobody else can connect then. The socket stays there.
func acceptBESS(path string) (*os.File, error) {
	l, err := listenAt(path, unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, fmt.Errorf("cannot bind BESS socket %s: %s", path, process.Reason(err))
	}
	defer unix.Close(l)
	warn([]string{"Waiting for connection to " + path})
	for {
		fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), guestName), nil
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return nil, fmt.Errorf("cannot accept on BESS socket %s: %s", path, process.Reason(err))
		}
	}
}

// listenAt opens a listening socket at path that only the user can connect to. One that was left
// there is replaced.
func listenAt(path string, kind int) (int, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		os.Remove(path) // or bind says why not
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unixsock.Bind(fd, path); err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// api is the API socket of a translator; nil: none.
type api struct {
	*slirp.API
	listener net.Listener
}

// openAPI takes over the API socket, if the launcher has passed one on.
func openAPI(cfg *config.Config, env *process.Env, p *ports, log *zap.Logger) (*api, error) {
	l, err := takeSocket(apiName, env, log)
	if l == nil {
		return nil, err
	}
	return &api{slirp.NewAPI(slirpPorts{p.Forwarder}, cfg.IPv4.Address), l}, nil
}

// close is for an API socket that is not served.
func (a *api) close() {
	if a != nil {
		a.listener.Close()
	}
}

// serve answers requests until ctx ends or the function it returns is called, which waits for the
// last answer.
func (a *api) serve(ctx context.Context) (stop func()) {
	if a == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var served sync.WaitGroup
	served.Go(func() { a.Serve(ctx, a.listener) })
	return func() {
		cancel()
		served.Wait()
	}
}

// slirpPorts forwards what the API is asked for.
type slirpPorts struct{ forwarder *forward.Forwarder }

func (p slirpPorts) Add(f slirp.Forward) error {
	failures, err := p.forwarder.Add(config.Inbound, forwardRule(f))
	if err != nil && len(failures) > 0 {
		return errors.New(process.Reason(failures[0].Err))
	}
	return err
}

func (p slirpPorts) Remove(f slirp.Forward) error {
	return p.forwarder.Remove(config.Inbound, forwardRule(f))
}

func forwardRule(f slirp.Forward) config.Rule {
	r := config.Rule{
		Listen: f.Host.Addr(), Ports: config.PortRange{First: f.Host.Port(), Last: f.Host.Port()},
		Target: f.Guest.Addr(), To: f.Guest.Port(),
	}
	if f.UDP {
		r.Protocol = config.UDP
	}
	if r.Listen.IsUnspecified() {
		r.Listen = netip.IPv4Unspecified()
	}
	return r
}
