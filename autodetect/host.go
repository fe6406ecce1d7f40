package autodetect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// Local is the Family.Index of a family that has no template interface.
const Local = -1

// tapName is what a tap is called when there is no template to name it after.
const tapName = "tap0"

// Guest's and our own addresses where no template gives any.
var (
	localAddress4 = netip.AddrFrom4([4]byte{169, 254, 2, 1})
	localGateway4 = netip.AddrFrom4([4]byte{169, 254, 2, 2})
	localGateway6 = netip.MustParseAddr("fe80::1")
)

const localPrefix4 = 16

// ErrUnusable is returned when an outbound interface that there is cannot carry the family, or is
// one for a family that is disabled. Its text is one other programs match.
var ErrUnusable error = fatalText("External interface not usable")

// ErrNoIPv6 is returned when only IPv6 is wanted and the kernel has none. Its text is
// one other programs match.
var ErrNoIPv6 error = fatalText("IPv6 not available but --ipv6-only given")

// fatalText is an error whose text belongs to the command line's interface.
type fatalText string

func (e fatalText) Error() string { return string(e) }

// Options is what the user has already decided. The zero value decides nothing.
type Options struct {
	Interface string // template for both families; wins over FamilyOptions.Outbound
	V4, V6    FamilyOptions
}

// FamilyOptions is the part of Options for one address family.
type FamilyOptions struct {
	Disabled  bool       // the family is not wanted at all
	Outbound  string     // outbound interface; the template, unless Options.Interface is set
	Address   netip.Addr // of the guest, instead of the template's; invalid if not given
	PrefixLen int        // of Address, bits; 0 if not given. IPv6 always has 64
	Gateway   netip.Addr // instead of the template's; invalid if not given
}

// Host is what was found out. It is never changed after Detect has returned it, and its
// slices must not be written to.
type Host struct {
	V4, V6 Family
	// Notices are the informational messages for the user, in order, and Warnings are those that
	// say that something is not as the user wants it.
	Notices, Warnings []string
}

// Family is what a guest is to have of one address family.
type Family struct {
	// Index is that of the template interface, Local where there is none, 0 if the
	// family is disabled.
	Index int
	Name  string           // of the template; empty in local mode
	MTU   int              // of the template, bytes; 0 in local mode
	MAC   net.HardwareAddr // of the template; nil if it has none

	Address   netip.Addr // assigned to the guest; invalid for IPv6 in local mode
	PrefixLen int        // of Address, bits
	Gateway   netip.Addr // as seen by the guest; invalid on a point-to-point link
	// LinkLocal is our own link-local address on the tap (IPv6 only): the gateway if
	// that is one, else the template's.
	LinkLocal netip.Addr

	// Addresses and Routes are those of the template, for copying: payloads of
	// RTM_NEWADDR messages (not deprecated, wider than the link), and of RTM_NEWROUTE
	// messages (main table, unicast, every hop through the template), as the kernel
	// sent them and in its order. They are meant to be copied only where CopyAddresses
	// and CopyRoutes say so: not in local mode, and not in place of an address or a
	// gateway that the user gave.
	Addresses, Routes         [][]byte
	CopyAddresses, CopyRoutes bool
}

// Enabled tells whether the family is in use, be it in local mode.
func (f *Family) Enabled() bool { return f.Index != 0 }

// TapName returns the default name of the guest's interface: that of the template, IPv4's
// first, or "tap0".
func (h *Host) TapName() string {
	switch {
	case h.V4.Name != "":
		return h.V4.Name
	case h.V6.Name != "":
		return h.V6.Name
	}
	return tapName
}

// Detect reads the configuration of the network namespace the calling thread is in.
//
// Having no network at all is not an error, nor is an outbound interface that does not exist: it
// may come, and until then flows say that they cannot use it. Errors are: a template of Options
// that does not exist, ErrUnusable, ErrNoIPv6, and a kernel that does not answer.
func Detect(o Options) (*Host, error) {
	conn, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	var h Host
	if !o.V6.Disabled && !IPv6Available() {
		if o.V4.Disabled {
			return nil, ErrNoIPv6
		}
		o.V6.Disabled = true
	}
	d := detector{conn: conn, host: &h}
	if o.Interface != "" {
		if d.wanted, err = d.conn.LinkByName(o.Interface); err != nil {
			return nil, fatalText(fmt.Sprintf("Invalid interface name %s: %s", o.Interface, reason(err)))
		}
	}
	if h.V4, err = d.family(ipv4, o.V4); err != nil {
		return nil, err
	}
	if h.V6, err = d.family(ipv6, o.V6); err != nil {
		return nil, err
	}
	return &h, nil
}

// IPv6Available tells whether the kernel has IPv6 at all, as it has not when booted with
// ipv6.disable=1.
func IPv6Available() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	_ = unix.Close(fd)
	return true
}

// reason is why err happened as the C library words it, without what the kernel said beyond
// the error number: users and programs know these texts.
func reason(err error) string {
	var e unix.Errno
	if !errors.As(err, &e) {
		return err.Error()
	}
	text := e.Error()
	return strings.ToUpper(text[:1]) + text[1:]
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

// detector is one run of Detect.
type detector struct {
	conn   *rtnl.Conn
	wanted rtnl.Link // the template the user asked for; Index is 0 if none
	links  []rtnl.Link
	host   *Host
}

func (d *detector) notice(format string, args ...any) {
	d.host.Notices = append(d.host.Notices, fmt.Sprintf(format, args...))
}

// link reads an interface once, however many families use it.
func (d *detector) link(index int) (rtnl.Link, error) {
	for _, l := range d.links {
		if l.Index == index {
			return l, nil
		}
	}
	l, err := d.conn.LinkByIndex(index)
	if err == nil {
		d.links = append(d.links, l)
	}
	return l, err
}

// family finds out all about one of them.
func (d *detector) family(fam family, o FamilyOptions) (Family, error) {
	if o.Disabled {
		if o.Outbound != "" {
			return Family{}, ErrUnusable
		}
		return Family{}, nil
	}
	link := d.wanted
	forced := false
	if link.Index == 0 && o.Outbound != "" {
		l, err := d.conn.LinkByName(o.Outbound)
		if err == nil {
			link, forced = l, true
		} else {
			d.host.Warnings = append(d.host.Warnings, fmt.Sprintf("Outbound interface %s (%s): %s", o.Outbound, fam.name, reason(err)))
		}
	}

	messages, routes, err := d.conn.Routes(fam.af)
	if err != nil {
		return Family{}, fmt.Errorf("list %s routes: %w", fam.name, err)
	}
	if link.Index == 0 {
		index, notice := template(routes, fam.name)
		if notice != "" {
			d.notice("%s", notice)
		}
		if index != 0 {
			// An interface that has gone in between is no template.
			if link, err = d.link(index); err != nil && !errors.Is(err, unix.ENODEV) {
				return Family{}, fmt.Errorf("read interface %d: %w", index, err)
			}
		}
	}
	if link.Index != 0 {
		addresses, err := d.conn.Addresses(fam.af, link.Index)
		if err != nil {
			return Family{}, fmt.Errorf("list %s addresses of %s: %w", fam.name, link.Name, err)
		}
		if f, ok := fromTemplate(fam, o, link, addresses, messages, routes); ok {
			return f, nil
		}
	}
	if forced {
		return Family{}, ErrUnusable
	}
	d.notice("%s: no external interface as template, use local mode", fam.name)
	return localMode(fam, o), nil
}

// localMode returns the family without a template. What the user gave stays.
func localMode(fam family, o FamilyOptions) Family {
	f := Family{Index: Local, Address: o.Address, PrefixLen: prefixLen(fam, o, 0), Gateway: o.Gateway}
	if fam == ipv6 {
		f.LinkLocal = localGateway6
		if !f.Gateway.IsValid() {
			f.Gateway = localGateway6
		}
		if f.Gateway.IsLinkLocalUnicast() {
			f.LinkLocal = f.Gateway
		}
		return f
	}
	if !f.Address.IsValid() {
		f.Address = localAddress4
		if o.PrefixLen == 0 {
			f.PrefixLen = localPrefix4
		}
	}
	if !f.Gateway.IsValid() {
		f.Gateway = localGateway4
	}
	return f
}

// prefixLen returns the length to use for the guest's address: the user's, else that of
// the template's address, else by the address's class (RFC 791 section 3.2).
func prefixLen(fam family, o FamilyOptions, found int) int {
	switch {
	case fam == ipv6:
		return 64
	case o.PrefixLen != 0:
		return o.PrefixLen
	case !o.Address.Is4():
		return found
	}
	switch first := o.Address.As4()[0]; {
	case first < 128:
		return 8
	case first < 192:
		return 16
	case first < 224:
		return 24
	}
	return 32
}
