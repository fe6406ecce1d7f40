package slirp

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Options are a checked command line.
type Options struct {
	Help, Version bool // show that and exit; nothing else is set

	Target string // PID, or path with NetNSIsPath or BESS
	Tap    string // name of the interface

	NetNSIsPath bool
	UserNSPath  string // empty: by the PID, or none
	BESS        bool   // no namespace: a machine connects to a socket at Target, see config.VM

	Configure    bool
	MTU          int // bytes
	IPv6         bool
	CIDR         netip.Prefix     // the IPv4 network
	MAC          net.HardwareAddr // nil: the kernel's choice
	ExitFD       int              // -1: none
	ReadyFD      int              // -1: none
	APISocket    string           // path; empty: none
	NoLoopback   bool             // the gateway does not lead to the host's loopback address
	NoDNS        bool             // no resolver on the network
	Sandbox      bool
	Seccomp      bool
	OutboundV4   netip.Addr // source address; invalid: the kernel's choice
	OutboundV6   netip.Addr
	OutboundIfV4 string // source interface; empty: the kernel's choice
	OutboundIfV6 string

	Warnings []string // one line each

	netNSType bool // --netns-type was given
}

const (
	maxMTU    = 65521
	maxSocket = 107 // sun_path of unix(7), without the NUL
)

// UsageError is a command line to be answered with the help text, both on standard error, and
// status 1. Text may be empty.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }

// option is one row of the table of options.
type option struct {
	short byte // 0: none
	long  string
	arg   string // name of the value; empty: takes none
	help  string
	set   func(o *Options, value string) error
}

var table = []option{
	{'c', "configure", "", "set the interface up, with address and route",
		func(o *Options, _ string) error { o.Configure = true; return nil }},
	{'e', "exit-fd", "FD", "end when something happens on that descriptor",
		func(o *Options, v string) (err error) { o.ExitFD, err = descriptor("exit-fd", v); return err }},
	{'r', "ready-fd", "FD", "write 1 to that descriptor when everything works",
		func(o *Options, v string) (err error) { o.ReadyFD, err = descriptor("ready-fd", v); return err }},
	{'m', "mtu", "MTU", "MTU of the interface (default=1500, max=65521)", setMTU},
	{'6', "enable-ipv6", "", "IPv6 as well as IPv4",
		func(o *Options, _ string) error { o.IPv6 = true; return nil }},
	{'a', "api-socket", "PATH", "socket to change forwarded ports by", setAPISocket},
	{0, "cidr", "CIDR", "the IPv4 network (default=10.0.2.0/24)", setCIDR},
	{0, "disable-host-loopback", "", "the gateway does not lead to the host's 127.0.0.1",
		func(o *Options, _ string) error { o.NoLoopback = true; return nil }},
	{0, "netns-type", "TYPE", "what the first word is: path or pid (default=pid)", setNetNSType},
	{0, "userns-path", "PATH", "user namespace to join",
		func(o *Options, v string) error { o.UserNSPath = v; return nil }},
	{0, "enable-sandbox", "", "an empty root but for /etc and /run, and no capabilities",
		func(o *Options, _ string) error { o.Sandbox = true; return nil }},
	{0, "enable-seccomp", "", "a filter on system calls",
		func(o *Options, _ string) error { o.Seccomp = true; return nil }},
	{0, "outbound-addr", "ADDR", "IPv4 address or interface to send from", setOutbound4},
	{0, "outbound-addr6", "ADDR", "IPv6 address or interface to send from", setOutbound6},
	{0, "disable-dns", "", "no resolver at 10.0.2.3",
		func(o *Options, _ string) error { o.NoDNS = true; return nil }},
	{0, "macaddress", "MAC", "hardware address of the interface, with -c only", setMAC},
	{0, "target-type", "TYPE", "what to connect: netns, or bess: whoever connects to the socket PATH, with a frame in each packet (default=netns)", setTargetType},
	{'h', "help", "", "show this help and exit",
		func(o *Options, _ string) error { o.Help = true; return nil }},
	{'v', "version", "", "show the version and exit",
		func(o *Options, _ string) error { o.Version = true; return nil }},
}

// Parse reads a command line; argv[0] is the program's name as it was called. The error is a
// *UsageError, or an error whose text is the whole message; both end the program with status 1.
//
// Options may follow the other words, long ones be abbreviated, short ones be clustered, as
// getopt_long(3) has it.
func Parse(argv []string) (*Options, error) {
	o := &Options{MTU: 1500, CIDR: netip.MustParsePrefix("10.0.2.0/24"), ExitFD: -1, ReadyFD: -1, Tap: "tap0"}
	name := "slirp4netns"
	if len(argv) > 0 {
		name, argv = argv[0], argv[1:]
	}
	p := parser{name: name, rest: argv, options: o}
	words, err := p.run()
	if err != nil || o.Help || o.Version {
		return o, err
	}
	switch {
	case len(words) == 0:
		return nil, &UsageError{}
	case len(words) > 2:
		o.Warnings = append(o.Warnings, fmt.Sprintf("too many arguments, %d of them are ignored", len(words)-2))
	}
	o.Target = words[0]
	if o.BESS {
		return o, o.checkBESS(len(words))
	}
	if len(words) > 1 {
		o.Tap = words[1]
	}
	if o.Tap == "" || len(o.Tap) > 15 || strings.ContainsAny(o.Tap, "/ \t\n") {
		return nil, fmt.Errorf("invalid tap name %q", o.Tap)
	}
	if !o.NetNSIsPath {
		if pid, err := strconv.ParseInt(o.Target, 10, 32); err != nil || pid <= 0 {
			return nil, errors.New("PID must be a positive integer")
		}
	}
	if o.MAC != nil && !o.Configure {
		return nil, errMACAlone
	}
	return o, nil
}

// checkBESS refuses what means a namespace, and words beyond the socket's path.
func (o *Options) checkBESS(words int) error {
	for _, c := range []struct {
		option string
		given  bool
	}{{"configure", o.Configure}, {"netns-type", o.netNSType}, {"userns-path", o.UserNSPath != ""}} {
		if c.given {
			return &UsageError{Text: "--" + c.option + " conflicts with --target-type=bess"}
		}
	}
	switch {
	case words > 1:
		return &UsageError{Text: "too many arguments"}
	case len(o.Target) > maxSocket:
		return fmt.Errorf("the specified BESS socket path is too long (>= %d)", maxSocket+1)
	case o.MAC != nil:
		return errMACAlone
	}
	return nil
}

var errMACAlone = errors.New("--macaddr cannot be specified when --configure or -c is not specified")

// parser is the state of one Parse.
type parser struct {
	name    string
	rest    []string
	options *Options
}

// run reads all options and returns the other words.
func (p *parser) run() (words []string, err error) {
	for len(p.rest) > 0 {
		w := p.rest[0]
		p.rest = p.rest[1:]
		switch {
		case w == "--":
			return append(words, p.rest...), nil
		case strings.HasPrefix(w, "--"):
			err = p.long(w[2:])
		case len(w) > 1 && w[0] == '-':
			err = p.cluster(w[1:])
		default:
			words = append(words, w)
		}
		if err != nil || p.options.Help || p.options.Version {
			return nil, err
		}
	}
	return words, nil
}

func (p *parser) long(word string) error {
	name, value, attached := strings.Cut(word, "=")
	var found []*option
	for i := range table {
		if table[i].long == name {
			found = []*option{&table[i]}
			break
		}
		if strings.HasPrefix(table[i].long, name) {
			found = append(found, &table[i])
		}
	}
	switch len(found) {
	case 0:
		return p.usage("unrecognized option '--%s'", word)
	case 1:
	default:
		var names strings.Builder
		for _, o := range found {
			fmt.Fprintf(&names, " '--%s'", o.long)
		}
		return p.usage("option '--%s' is ambiguous; possibilities:%s", word, names.String())
	}
	o := found[0]
	switch {
	case o.arg == "" && attached:
		return p.usage("option '--%s' doesn't allow an argument", o.long)
	case o.arg != "" && !attached:
		if len(p.rest) == 0 {
			return p.usage("option '--%s' requires an argument", o.long)
		}
		value, p.rest = p.rest[0], p.rest[1:]
	}
	return o.set(p.options, value)
}

func (p *parser) cluster(letters string) error {
	for len(letters) > 0 {
		var o *option
		for i := range table {
			if table[i].short == letters[0] {
				o = &table[i]
			}
		}
		if o == nil {
			return p.usage("invalid option -- '%c'", letters[0])
		}
		letter := letters[0]
		letters = letters[1:]
		value := ""
		if o.arg != "" {
			if value, letters = letters, ""; value == "" {
				if len(p.rest) == 0 {
					return p.usage("option requires an argument -- '%c'", letter)
				}
				value, p.rest = p.rest[0], p.rest[1:]
			}
		}
		if err := o.set(p.options, value); err != nil || p.options.Help || p.options.Version {
			return err
		}
	}
	return nil
}

func (p *parser) usage(format string, args ...any) error {
	return &UsageError{Text: p.name + ": " + fmt.Sprintf(format, args...)}
}

func descriptor(option, v string) (int, error) {
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return -1, fmt.Errorf("%s must be a non-negative integer", option)
	}
	return int(n), nil
}

func setMTU(o *Options, v string) error {
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil || n == 0 || n > maxMTU {
		return fmt.Errorf("MTU must be a positive integer (< %d)", maxMTU+1)
	}
	o.MTU = int(n)
	return nil
}

func setAPISocket(o *Options, v string) error {
	if len(v) > maxSocket {
		return fmt.Errorf("the specified API socket path is too long (>= %d)", maxSocket+1)
	}
	o.APISocket = v
	return nil
}

func setCIDR(o *Options, v string) error {
	p, err := netip.ParsePrefix(v)
	if err != nil || !p.Addr().Is4() {
		return fmt.Errorf("invalid CIDR: %s", v)
	}
	switch {
	case p.Bits() < 1 || p.Bits() > 25:
		return errors.New("prefix length needs to be 1-25")
	case p.Masked() != p:
		return fmt.Errorf("CIDR needs to be a network address like %s, not like %s", p.Masked(), p)
	}
	o.CIDR = p
	return nil
}

func setNetNSType(o *Options, v string) error {
	o.netNSType = true
	switch v {
	case "path":
		o.NetNSIsPath = true
	case "pid":
		o.NetNSIsPath = false
	default:
		return errors.New("the specified netns-type is neither path nor pid")
	}
	return nil
}

func setTargetType(o *Options, v string) error {
	if v != "netns" && v != "bess" {
		return errors.New(`--target-type must be either "netns" or "bess"`)
	}
	o.BESS = v == "bess"
	return nil
}

func setMAC(o *Options, v string) error {
	mac, err := net.ParseMAC(v)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return fmt.Errorf("--macaddress %s is not the hardware address of an interface", v)
	}
	o.MAC = mac
	return nil
}

// Outbound addresses are taken for interface names if they are not addresses.

func setOutbound4(o *Options, v string) error {
	a, err := netip.ParseAddr(v)
	if err == nil && a.Is4() {
		o.OutboundV4, o.OutboundIfV4 = a, ""
		return nil
	}
	if err := outboundInterface("outbound-addr", "ipv4", v); err != nil {
		return err
	}
	o.OutboundIfV4, o.OutboundV4 = v, netip.Addr{}
	return nil
}

func setOutbound6(o *Options, v string) error {
	a, err := netip.ParseAddr(v)
	if err == nil && a.Is6() && a.Zone() == "" {
		o.OutboundV6, o.OutboundIfV6 = a, ""
		return nil
	}
	if err := outboundInterface("outbound-addr6", "ipv6", v); err != nil {
		return err
	}
	o.OutboundIfV6, o.OutboundV6 = v, netip.Addr{}
	return nil
}

// ErrOutbound is an outbound address that is neither an address nor an interface. Its text is the
// whole message to the user.
type ErrOutbound struct{ Option, Family string }

func (e ErrOutbound) Error() string {
	return e.Option + " has to be valid " + e.Family + " address or interface name."
}

func outboundInterface(option, family, v string) error {
	if _, err := netip.ParseAddr(v); err == nil || v == "" || len(v) > 15 || strings.ContainsAny(v, "/ \t\n") {
		return ErrOutbound{option, family}
	}
	return nil
}

// Addr returns the address number n of the IPv4 network.
func (o *Options) Addr(n int) netip.Addr {
	a := o.CIDR.Addr().As4()
	sum := uint32(a[0])<<24 + uint32(a[1])<<16 + uint32(a[2])<<8 + uint32(a[3]) + uint32(n&math.MaxInt32)
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// PID returns the process whose namespaces are connected; 0 with NetNSIsPath.
func (o *Options) PID() int {
	if o.NetNSIsPath {
		return 0
	}
	pid, _ := strconv.Atoi(o.Target) // checked by Parse
	return pid
}
