package app

import (
	"errors"
	"os"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/config"
	"fusilli/internal/process"
	"fusilli/internal/unixsock"
	"fusilli/tapio"
	"fusilli/tapio/vhost"
)

// guestName is the name under which the translator gets what its guest is at the other end of: with
// --fd a connected socket or a tap, else a listening socket.
const guestName = "guest"

// lowestOwn is the lowest number that the descriptor of --fd is moved to. All below may be taken
// by who is started from here.
const lowestOwn = 10

// takeGuest takes over the descriptor given with --fd, nil without. It is to be called before
// descriptors that others have leaked are closed.
func takeGuest(cfg *config.Config) (*os.File, error) {
	if cfg.FD < 0 {
		return nil, nil
	}
	fd, err := moveFD(cfg.FD)
	if err != nil {
		return nil, process.Failf("Could not move --fd descriptor: %s", process.Reason(err))
	}
	return os.NewFile(uintptr(fd), guestName), nil
}

// moveFD gives the inherited descriptor n a number and a life of our own.
func moveFD(n int) (int, error) {
	flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
	if err != nil {
		return -1, err
	}
	if flags&unix.FD_CLOEXEC != 0 {
		return -1, unix.EBADF // nobody has passed that on: it is one of ours
	}
	fd, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, lowestOwn)
	if err != nil {
		return -1, err
	}
	if n > unix.Stderr {
		unix.Close(n)
		return fd, nil
	}
	// A standard stream stays open, so that nothing else gets its number.
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, n, 0); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// listenGuest opens the socket that the hypervisor connects to, with the rights of the user who
// started us.
func listenGuest(cfg *config.Config, log *zap.Logger) (f *os.File, err error) {
	if cfg.VM.Socket != "" {
		f, err = unixsock.Listen(guestName, cfg.VM.Socket, 0)
	} else {
		f, cfg.VM.Socket, err = unixsock.ListenDefault(guestName)
	}
	if err != nil {
		return nil, err
	}
	log.Info("UNIX domain socket bound at " + cfg.VM.Socket)
	return f, nil
}

// hints say how to start a virtual machine that connects to the socket of cfg, if there is one.
func hints(cfg *config.Config) []string {
	if cfg.VM.Socket == "" {
		return nil
	}
	if cfg.VhostUser {
		return []string{
			"",
			"You can now start qemu with:",
			"    kvm ... -chardev socket,id=chr0,path=" + cfg.VM.Socket + " -netdev vhost-user,id=netdev0,chardev=chr0 -device virtio-net,netdev=netdev0" +
				" -object memory-backend-memfd,id=memfd0,share=on,size=$RAMSIZE -numa node,memdev=memfd0",
		}
	}
	return []string{
		"",
		"You can now start qemu (>= 7.2, with commit 13c6be96618c):",
		"    kvm ... -device virtio-net-pci,netdev=s -netdev stream,id=s,server=off,addr.type=unix,addr.path=" + cfg.VM.Socket,
		"or qrap, for earlier qemu versions:",
		"    ./qrap 5 kvm ... -net socket,fd=5 -net nic,model=virtio",
	}
}

// machineLink is a link to a virtual machine, whose hypervisor comes and goes.
type machineLink interface {
	tapio.Link
	tapio.Backpressure
	OnConnect(func()) // makes it call a function when frames can reach a new guest
}

// openGuest returns the link that the launcher has passed on. The path that was found for its
// socket is noted in cfg.
func openGuest(cfg *config.Config, env *process.Env, log *zap.Logger) (tapio.Link, error) {
	f, ok := env.File(guestName)
	if !ok {
		return nil, errors.New("no link to the guest was passed on")
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, lowestOwn)
	f.Close()
	if err != nil {
		return nil, err
	}
	switch {
	case cfg.VM.Packets:
		return tapio.NewPackets(fd)
	case cfg.Mode == config.Pasta:
		return tapio.TakeTap(fd, tapio.TapOptions{})
	case cfg.VhostUser && cfg.FD >= 0:
		return vhost.New(fd, vhost.Options{Log: log, Compat: cfg.VM.Compat})
	case cfg.FD >= 0:
		return tapio.NewStream(fd, tapio.StreamOptions{Log: log})
	}
	if a, err := unix.Getsockname(fd); err == nil {
		if u, ok := a.(*unix.SockaddrUnix); ok {
			cfg.VM.Socket = u.Name
		}
	}
	if cfg.VhostUser {
		return vhost.Listen(fd, vhost.Options{Log: log, OneOff: cfg.VM.OneOff, Compat: cfg.VM.Compat})
	}
	return tapio.ListenStream(fd, tapio.StreamOptions{Log: log, OneOff: cfg.VM.OneOff})
}
