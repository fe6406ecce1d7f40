package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the two ends of the link.
const (
	HostAddr4 = "10.77.0.2"
	HostAddr6 = "fd77::2"
	FarAddr4  = "10.77.0.1"
	FarAddr6  = "fd77::1"
)

// Config says how a bed is made.
type Config struct {
	MTU  int         // of the link between host and far; 0 is 1500
	Link *LinkConfig // the link itself; nil is a veth pair
}

// Bed is two network namespaces and what was made in them. It has one owner.
type Bed struct {
	Host *NS // where a translator runs; its interface is "h0"
	Far  *NS // the remote peer; its interface is "f0"

	link    *Link
	targets []*Target
}

// New makes a bed. It must run inside [Isolate].
func New(cfg Config) (*Bed, error) {
	if Outside() {
		return nil, errors.New("a bed is made inside bed.Isolate only")
	}
	b := &Bed{}
	if err := b.make(cfg); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// make does what New says; what it made before an error is in b.
func (b *Bed) make(cfg Config) (err error) {
	if b.Host, err = NewNS("host"); err != nil {
		return err
	}
	if b.Far, err = NewNS("far"); err != nil {
		return err
	}
	if cfg.Link != nil {
		if b.link, err = NewLink(*cfg.Link, b.Host, "h0", b.Far, "f0"); err != nil {
			return err
		}
	} else if err = b.Host.IP("link add h0 type veth peer name f0 netns " + b.Far.Path()); err != nil {
		return err
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	for _, end := range []struct {
		ns                *NS
		dev, addr4, addr6 string
		more              string
	}{
		{b.Far, "f0", FarAddr4, FarAddr6, ""},
		{b.Host, "h0", HostAddr4, HostAddr6,
			"route add default via " + FarAddr4 + "\nroute add ::/0 via " + FarAddr6},
	} {
		// Link-local addresses without duplicate detection: nobody else is on the link.
		if err = end.ns.Sysctl("ipv6/conf/"+end.dev+"/accept_dad", "0"); err != nil {
			return err
		}
		err = end.ns.IP(fmt.Sprintf("link set %[1]s mtu %[2]d up\naddr add %[3]s/24 dev %[1]s\naddr add %[4]s/64 dev %[1]s nodad\n%[5]s",
			end.dev, cfg.MTU, end.addr4, end.addr6, end.more))
		if err != nil {
			return err
		}
	}
	// Unprivileged echo, as distributions set it.
	if err = b.Host.Sysctl("ipv4/ping_group_range", "0 2147483647"); err != nil {
		// Groups that the user namespace does not map are refused.
		if err = b.Host.Sysctl("ipv4/ping_group_range", "0 0"); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the targets, the link and the namespaces.
func (b *Bed) Close() {
	for _, t := range b.targets {
		t.Close()
	}
	if b.link != nil {
		b.link.Close()
	}
	for _, n := range []*NS{b.Host, b.Far} {
		if n != nil {
			n.Close()
		}
	}
}

// Target is a user and network namespace to be connected, and the process that keeps it.
type Target struct {
	*NS
	PID    int // of the process in it, as seen by host
	holder *exec.Cmd
	closed bool
}

// Target starts a process of the unprivileged user in fresh user and network namespaces.
// Nothing is configured in them. It is closed with the bed at the latest.
func (b *Bed) Target(ctx context.Context) (*Target, error) {
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--net", "sleep", "infinity")
	if err := b.Host.Start(Nobody, cmd); err != nil {
		return nil, err
	}
	t := &Target{PID: cmd.Process.Pid, holder: cmd}
	b.targets = append(b.targets, t)
	err := Wait(ctx, "the holder of the target namespace", func() (bool, error) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", t.PID))
		return strings.TrimSpace(string(comm)) == "sleep", err
	})
	if err != nil {
		t.Close()
		return nil, err
	}
	if t.NS, err = OpenNS("target", t.PID); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Enter returns the command that runs argv as root of the target's user namespace, in both
// its namespaces. It is to be started in host, as [Nobody]: the namespaces are that user's.
func (t *Target) Enter(argv ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(t.PID), "-U", "-n", "--preserve-credentials", "--"}, argv...)...)
}

// Configured waits until the target has an address of wide scope and a default route, with
// v6 for IPv6 too, and no address is tentative. It fails when p, the program that is to
// configure it, ends first.
func (t *Target) Configured(ctx context.Context, p *Process, v6 bool) error {
	families := []int{netlink.FAMILY_V4}
	if v6 {
		families = append(families, netlink.FAMILY_V6)
	}
	return Wait(ctx, "the target to be configured", func() (ok bool, err error) {
		select {
		case <-p.Done():
			return false, fmt.Errorf("%s ended: %s", p.Name(), p.Stderr())
		default:
		}
		err = t.Do(func() error {
			for _, f := range families {
				if ok, err = configured(f); !ok || err != nil {
					return err
				}
			}
			return nil
		})
		return ok, err
	})
}

// configured looks at one family in the thread's namespace.
func configured(family int) (bool, error) {
	addrs, err := netlink.AddrList(nil, family)
	if err != nil {
		return false, err
	}
	wide := false
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return false, nil
		}
		wide = wide || a.Scope == int(netlink.SCOPE_UNIVERSE)
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	return wide && len(routes) > 0, err
}

// Close kills the target's process and drops the namespace: with nobody else in it, it
// ends. Close may be called again.
func (t *Target) Close() error {
	if t.closed {
		return nil
	}
	t.closed = true
	t.holder.Process.Kill()
	t.holder.Wait()
	if t.NS != nil {
		return t.NS.Close()
	}
	return nil
}

// Wait asks cond until it says yes, fails, or ctx ends. what is for the message. It asks
// at first every millisecond, later ever more seldom.
func Wait(ctx context.Context, what string, cond func() (bool, error)) error {
	for pause := time.Millisecond; ; pause = min(pause*5/4, 50*time.Millisecond) {
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}
