package netconf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// loopbackIndex is that of lo in every network namespace.
const loopbackIndex = 1

// minMTU6 is the least MTU of a link that carries IPv6 (RFC 8200 section 5), in bytes.
const minMTU6 = 1280

// Plan is what the guest's namespace is to look like.
type Plan struct {
	// Configure asks for all of it (--config-net). Without it only lo is brought up and
	// the MAC address set; the tap stays down and without addresses.
	Configure bool

	MAC        net.HardwareAddr // set if not nil, else the kernel's is kept
	MTU        int              // bytes; 0 leaves the kernel's
	TxQueueLen int              // frames; 0 leaves the kernel's
	V4, V6     Family
}

// Family is the part of a Plan for one address family.
type Family struct {
	Enabled bool

	Address   netip.Addr // set if CopyAddresses is not; none if invalid
	PrefixLen int        // of Address, bits
	Gateway   netip.Addr // of the default route if CopyRoutes is not set; no route if invalid

	// CopyAddresses asks for the Addresses to be copied, payloads of RTM_NEWADDR
	// messages, and CopyRoutes for the Routes, payloads of RTM_NEWROUTE messages. The
	// messages are not written to. Address and Gateway are then the replacement for what
	// cannot be copied.
	CopyAddresses, CopyRoutes bool
	Addresses, Routes         [][]byte
}

// Result is what came of a Plan.
type Result struct {
	Index int              // of the tap; 0 without one
	MAC   net.HardwareAddr // of the guest's end of the tap; nil without one
	// the tap's link-local IPv6 address, made by the guest's kernel; invalid if none
	LinkLocal netip.Addr
	// NoV4 and NoV6 tell that the namespace's kernel lacks a family that was enabled.
	NoV4, NoV6 bool
	// Warnings are messages for the user, in order.
	Warnings []string
}

// Configure applies p in the network namespace the calling thread is in, to lo and to the
// tap called name, or to lo alone if name is empty. The caller has locked its goroutine
// to the thread and holds CAP_NET_ADMIN over the namespace. It neither starts goroutines
// nor keeps anything open.
//
// The texts of its errors and warnings are those of network.md section 6, which other
// programs match. Errors wrap the kernel's unix.Errno. What was done until then stays.
func Configure(name string, p Plan) (Result, error) {
	conn, err := rtnl.Open()
	if err != nil {
		return Result{}, err
	}
	defer conn.Close()
	c := configurer{conn: conn, plan: p}
	err = c.run(name)
	return c.result, err
}

// configurer is one run of Configure.
type configurer struct {
	conn   *rtnl.Conn
	plan   Plan
	link   rtnl.Link // the tap
	result Result
}

func (c *configurer) warn(format string, args ...any) {
	c.result.Warnings = append(c.result.Warnings, fmt.Sprintf(format, args...))
}

func (c *configurer) run(name string) error {
	if err := c.setLink(loopbackIndex, unix.IFF_UP, unix.IFF_UP); err != nil {
		return failed("Couldn't bring up loopback interface in namespace", err)
	}
	if name == "" {
		return nil
	}
	var err error
	if c.link, err = c.conn.LinkByName(name); err != nil {
		return fmt.Errorf("read interface %q in namespace: %w", name, err)
	}
	c.result.Index, c.result.MAC = c.link.Index, c.link.MAC
	if c.plan.MAC != nil {
		body := rtnl.AppendAttr(rtnl.LinkBody(c.link.Index, 0, 0), unix.IFLA_ADDRESS, c.plan.MAC)
		if err := c.conn.Do(unix.RTM_NEWLINK, 0, body); err != nil {
			return failed("Couldn't set MAC address in namespace", err)
		}
		c.result.MAC = c.plan.MAC
	}
	if !c.plan.Configure {
		return nil
	}
	return c.configure()
}

func (c *configurer) configure() error {
	if n := c.plan.MTU; n != 0 {
		if err := c.setNumber(unix.IFLA_MTU, n); err != nil {
			c.warn("Couldn't set MTU %d in namespace: %v", n, err)
		}
	}
	if n := c.plan.TxQueueLen; n != 0 {
		if err := c.setNumber(unix.IFLA_TXQLEN, n); err != nil {
			c.warn("Couldn't set transmit queue length %d in namespace: %v", n, err)
		}
	}

	// A link that does no ARP needs no duplicate address detection either: the kernel
	// then does not start it on the link-local address it makes when the link comes up.
	// Once that address says itself that it wants none, the link can be a normal one.
	v6 := c.plan.V6.Enabled
	flags := uint32(unix.IFF_UP)
	if v6 {
		flags |= unix.IFF_NOARP
	}
	if err := c.setLink(c.link.Index, flags, flags); err != nil {
		return failed("Couldn't bring up interface in namespace", err)
	}
	if v6 {
		c.adoptLinkLocal()
		if err := c.setLink(c.link.Index, 0, unix.IFF_NOARP); err != nil {
			c.warn("Couldn't enable neighbour discovery in namespace: %v", err)
		}
	}

	if c.plan.V4.Enabled {
		if err := c.addresses(ipv4, &c.plan.V4, &c.result.NoV4); err != nil {
			return err
		}
	}
	if v6 {
		if err := c.addresses(ipv6, &c.plan.V6, &c.result.NoV6); err != nil {
			return err
		}
	}
	// Routes come after all the addresses, IPv6 first: an IPv4 route may have an IPv6
	// gateway (RTA_VIA, RFC 5549).
	if v6 && !c.result.NoV6 {
		if err := c.routes(ipv6, &c.plan.V6, &c.result.NoV6); err != nil {
			return err
		}
	}
	if c.plan.V4.Enabled && !c.result.NoV4 {
		return c.routes(ipv4, &c.plan.V4, &c.result.NoV4)
	}
	return nil
}

func (c *configurer) setLink(index int, flags, change uint32) error {
	return c.conn.Do(unix.RTM_NEWLINK, 0, rtnl.LinkBody(index, flags, change))
}

func (c *configurer) setNumber(attr uint16, n int) error {
	return c.conn.Do(unix.RTM_NEWLINK, 0,
		rtnl.AppendUint32(rtnl.LinkBody(c.link.Index, 0, 0), attr, uint32(n)))
}

// family is one of the two IP versions.
type family struct {
	name string // as in messages
	af   uint8  // AF_*
}

var (
	ipv4 = family{"IPv4", unix.AF_INET}
	ipv6 = family{"IPv6", unix.AF_INET6}
)

// unsupported tells whether a refused address or route means that the family is not to be had on
// the tap at all: not in the kernel, switched off by disable_ipv6, or on a link too small
// for it.
func (c *configurer) unsupported(fam family, err error) bool {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return true
	case fam != ipv6:
		return false
	}
	small := c.plan.MTU != 0 && c.plan.MTU < minMTU6
	return errors.Is(err, unix.EACCES) || small && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV))
}

// stepError is a fatal error. Its text begins as network.md section 6 says.
type stepError struct {
	step string
	err  error
}

func failed(step string, err error) error { return &stepError{step, err} }

func (e *stepError) Error() string { return e.step + ": " + reason(e.err) }
func (e *stepError) Unwrap() error { return e.err }

// reason is why err happened as the C library words it: users and programs know these texts.
func reason(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}
