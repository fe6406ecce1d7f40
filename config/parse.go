package config

import (
	"errors"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// Parse reads a command line as the program called argv[0] gets it. The error is a *UsageError
// if a word is no option, else an *Error.
//
// The name of argv[0] decides about the mode, so it has to be passed on as it was.
func Parse(argv []string) (*Config, error) {
	if len(argv) == 0 {
		return nil, errorf("Cannot determine argv[0]")
	}
	words, wrong := normalise(options, argv[0], argv[1:])
	mode, vhostUser := modeOf(argv[0], words)
	if mode == 0 {
		return nil, errorf(`Cannot determine mode, invoke as "passt" or "pasta"`)
	}

	p := parser{cfg: defaults(mode, vhostUser)}
	err := p.read(words)
	if err == nil && p.cfg.Action != Run {
		return p.cfg, nil
	}
	if err == nil {
		err = wrong
	}
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return nil, p.explain(err)
	}
	return p.cfg, nil
}

// modeOf returns the mode by the program's name, or by --vhost-user among words, which are
// normalised. It is zero if the name is neither.
func modeOf(argv0 string, words []string) (mode Mode, vhostUser bool) {
	for _, w := range words {
		switch w {
		case "--vhost-user=true":
			return Passt, true
		case "--":
			return modeByName(argv0), false
		}
	}
	return modeByName(argv0), false
}

func modeByName(argv0 string) Mode {
	switch base := path.Base(argv0); {
	case strings.Contains(base, "pasta"):
		return Pasta
	case strings.Contains(base, "passt"):
		return Passt
	}
	return 0
}

// parser is the state of one Parse.
type parser struct {
	cfg  *Config
	err  error    // of the last option read
	args []string // what follows the options

	addrHasLength, hasNetmask bool // each excludes the other
	noCopyRoutes, noCopyAddrs bool

	ports []portsOption // in order; parsed when all other options are known to be right
}

// portsOption is one -t, -u, -T or -U.
type portsOption struct {
	proto Protocol
	dir   Direction
	value string
}

// read has the library parse words, which are normalised, and so acts on one after the other
// until there is an error or an action.
func (p *parser) read(words []string) error {
	app := &cli.App{
		Name:            p.cfg.Mode.String(),
		Flags:           flags(options, p),
		HideHelp:        true, // the row --help of the table is the only one
		HideVersion:     true,
		HideHelpCommand: true,
		Writer:          io.Discard,
		ErrWriter:       io.Discard,
		Reader:          strings.NewReader(""),
		Compiled:        time.Unix(1, 0), // or the library has a look at the executable
		Action: func(c *cli.Context) error {
			p.args = c.Args().Slice()
			return nil
		},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return err },
		ExitErrHandler: func(*cli.Context, error) {}, // or the library exits
	}
	err := app.Run(append([]string{app.Name}, words...))
	if p.err != nil {
		return p.err
	}
	if p.cfg.Action != Run {
		return nil
	}
	return err
}

// explain completes err, one of ours, with what only the parser knows.
func (p *parser) explain(err error) error {
	var usage *UsageError
	if errors.As(err, &usage) {
		usage.Mode, usage.Warnings = p.cfg.Mode, p.cfg.Warnings
		usage.Suggestion = nearest(usage.unknown, p.cfg.Mode)
	}
	var plain *Error
	if errors.As(err, &plain) {
		plain.Warnings = slices.Concat(p.cfg.Warnings, plain.Warnings)
	}
	return err
}

// check looks at the options together, once all are read, and works in what they imply. The
// order of the steps decides which of several errors is reported.
func (p *parser) check() error {
	c := p.cfg
	if c.NoSplice && c.HostLoToNSLo {
		return errorf("--host-lo-to-ns-lo is incompatible with --no-splice")
	}
	if !c.ConfigNet {
		switch {
		case p.noCopyRoutes:
			return errorf("--no-copy-routes needs --config-net")
		case p.noCopyAddrs:
			return errorf("--no-copy-addrs needs --config-net")
		}
	}
	if c.SpliceOnly {
		if c.NoSplice {
			return errorf("--splice-only is incompatible with --no-splice")
		}
		c.HostLoToNSLo, c.ICMP = true, false
		c.DNS = DNS{None: true, NoSearch: true}
		c.IPv4.DNS, c.IPv6.DNS = nil, nil
	}
	p.checkMTU()
	if err := p.checkPorts(); err != nil {
		return err
	}
	if err := p.checkTarget(); err != nil {
		return err
	}
	p.imply()
	return nil
}

func (p *parser) checkMTU() {
	mtu := strconv.Itoa(p.cfg.MTU)
	if p.cfg.MTU == 0 {
		return
	}
	if p.cfg.IPv4.Enabled && p.cfg.MTU < 68 { // RFC 791, 3.2
		p.warn("MTU " + mtu + " is too small for IPv4 (minimum 68)")
	}
	if p.cfg.IPv6.Enabled && p.cfg.MTU < 1280 { // RFC 8200, 5
		p.warn("MTU " + mtu + " is too small for IPv6 (minimum 1280)")
	}
}

// checkPorts parses the port specifiers and, for pasta, adds "auto" for each letter that was not
// given, unless its protocol is off.
func (p *parser) checkPorts() error {
	c := p.cfg
	all := slices.Clone(p.ports)
	if c.Mode == Pasta {
		for _, d := range []portsOption{
			{TCP, Inbound, "auto"}, {TCP, Outbound, "auto"}, {UDP, Inbound, "auto"}, {UDP, Outbound, "auto"},
		} {
			given := slices.ContainsFunc(p.ports, func(o portsOption) bool {
				return o.proto == d.proto && o.dir == d.dir
			})
			on := c.TCP && d.proto == TCP || c.UDP && d.proto == UDP
			if on && !given {
				all = append(all, d)
			}
		}
	}
	for _, o := range all {
		spec, err := ParsePorts(o.value, o.proto, o.dir, c.Mode)
		if err != nil {
			return err
		}
		c.Ports = append(c.Ports, spec)
	}
	return nil
}

// checkTarget sorts out what follows the options.
func (p *parser) checkTarget() error {
	if p.cfg.Mode != Pasta {
		if len(p.args) > 0 {
			return errorf("Extra non-option argument: %s", p.args[0])
		}
		return nil
	}
	t := &p.cfg.Target
	switch {
	case t.NetNSPath != "":
		if len(p.args) > 0 {
			return errorf("Both --netns and PID or command given")
		}
		t.Kind = NetNS
		if t.UserNS == CreateUserNS {
			t.UserNS = KeepUserNS
		}
	case len(p.args) == 0:
		t.Kind = Shell
	case len(p.args) == 1 && isNumber(p.args[0]):
		pid, ok := decimal(p.args[0], math.MaxInt32)
		if !ok || pid == 0 {
			return errorf("Invalid PID %s", p.args[0])
		}
		proc := "/proc/" + strconv.Itoa(pid) + "/ns/"
		t.Kind, t.PID, t.NetNSPath = PID, pid, proc+"net"
		// The process's own user namespace is joined even with --netns-only, as ever.
		if t.UserNS != JoinUserNS {
			t.UserNS, t.UserNSPath = JoinUserNS, proc+"user"
		}
	default:
		t.Kind, t.Args = Command, slices.Clone(p.args)
	}
	return nil
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// imply works in what options and the target say about each other.
func (p *parser) imply() {
	c := p.cfg
	if c.FD >= 0 {
		c.VM.OneOff = true
	}
	if c.Commanded() {
		c.Foreground = true
	}
	c.Log.Summary = c.Log.Level >= LevelInfo && (!c.Commanded() || c.Log.Level >= LevelDebug)

	for _, f := range []*Family{&c.IPv4, &c.IPv6} {
		f.CopyAddrs = c.ConfigNet && !p.noCopyAddrs && !f.Address.IsValid()
		f.CopyRoutes = c.ConfigNet && !p.noCopyRoutes && !f.Gateway.IsValid()
	}
	c.RA = c.RA && !c.ConfigNet
	c.NDP = c.NDP && c.ICMP && c.IPv6.Enabled
	c.RA = c.RA && c.NDP
	c.DHCP = c.DHCP && c.IPv4.Enabled
	c.DHCPv6 = c.DHCPv6 && c.IPv6.Enabled
}
