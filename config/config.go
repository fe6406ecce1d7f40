package config

import (
	"math"
	"net"
	"net/netip"
	"time"
)

// Mode is what the program acts as. The zero value is none.
type Mode uint8

// The modes.
const (
	Pasta Mode = iota + 1 // the guest is a network namespace
	Passt                 // the guest is a virtual machine
)

// String returns the name of the command: "pasta" or "passt".
func (m Mode) String() string {
	if m == Pasta {
		return "pasta"
	}
	return "passt"
}

// Action is what a command line asks for.
type Action uint8

// The actions. All but Run print something on standard output and end with status 0.
const (
	Run               Action = iota // translate
	PrintHelp                       // see Help
	PrintVersion                    // see Version
	PrintCapabilities               // see Capabilities
)

// Config is a checked command line. It is not changed after Parse has returned it; its slices
// and pointers must not be written to.
//
// If Action is not Run, only Action, Mode, VhostUser and Warnings mean anything.
type Config struct {
	Action    Action
	Mode      Mode
	VhostUser bool     // Passt with vhost-user instead of a stream socket
	Warnings  []string // to be printed first, one line each

	Foreground     bool   // do not go to the background; always with a command
	PIDFile        string // path; empty: none
	RunAs          *RunAs // nil: decided by who started the program
	ControlPath    string // of the socket for pesto; empty: none
	ChrootFallback bool   // chroot(2) where pivot_root(2) fails
	Log            Log
	Capture        string // path of the capture file; empty: none
	CaptureSize    int64  // bytes at which the capture ends; 0: no limit

	Target Target // Pasta: which namespaces
	VM     VM     // Passt: how the hypervisor connects
	// FD is an inherited descriptor: the connected socket or the open tap. -1: none.
	FD int

	Interface string           // template of both families; empty: by the default route
	TapName   string           // Pasta: of the guest's interface; empty: as the template's
	MAC       net.HardwareAddr // ours on the tap
	GuestMAC  net.HardwareAddr // Pasta: of the guest's interface; nil: the kernel's choice
	MTU       int              // bytes, announced and with ConfigNet set; 0: neither
	ConfigNet bool             // Pasta: configure the guest's interface

	// Autoconf leaves the IPv6 addresses and routes of the guest's interface to our router
	// advertisements, even with ConfigNet.
	Autoconf bool

	IPv4, IPv6   Family
	NoMapGateway bool // the gateway is no alias of the host's loopback address, see Family

	DNS      DNS
	Hostname string // the guest's; empty: none
	FQDN     string // the guest's; empty: none

	// The protocols that are translated.
	TCP, UDP, ICMP bool
	// The services on the guest's link, all implications (of a disabled family, ConfigNet or
	// disabled ICMP) worked in. DHCP also needs an IPv4 gateway, DHCPv6 an IPv6 address.
	DHCP, DHCPv6, NDP, RA bool

	NoSplice     bool // no local traffic from socket to socket; always set in Passt
	SpliceOnly   bool // Pasta: no tap at all
	HostLoToNSLo bool // Pasta: what comes to the host's loopback goes to the namespace's
	AnyUDPPort   bool // UDP sockets do not have the guest's own source port
	FreeBind     bool // IP_FREEBIND, IPV6_FREEBIND on listening and UDP sockets

	MaxFlows int // at a time, of all kinds
	Memory   int // bytes that the data of all flows may take

	// Ports are the port specifiers in order, pasta's defaults last. See Rules.
	Ports []PortSpec
}

// Commanded reports whether the program starts a command or a shell of its own.
func (c *Config) Commanded() bool {
	return c.Mode == Pasta && c.FD < 0 && (c.Target.Kind == Shell || c.Target.Kind == Command)
}

// Level is how much is logged.
type Level uint8

// The levels, each with what the ones before it have.
const (
	LevelWarning Level = iota // warnings and errors
	LevelInfo
	LevelDebug
	LevelTrace // a line a packet
)

// Log is what is said and where.
type Log struct {
	Level   Level
	Summary bool   // print the information block at start
	File    string // path; empty: the system's log
	Size    int64  // limit of File, bytes
	// Stats is the least time between two lines of event counters; 0: none.
	Stats time.Duration
}

// RunAs is the user to become.
type RunAs struct {
	User  Account
	Group *Account // nil: UID for a number, the primary group for a name
	Text  string   // the option's value, for "Invalid --runas option: %s"
}

// Account is a user or a group.
type Account struct {
	Name string // to be looked up; empty: ID is it
	ID   uint32
}

// TargetKind is how pasta gets its namespace.
type TargetKind uint8

// The kinds of targets.
const (
	Shell   TargetKind = iota // a new one, the user's shell in it
	Command                   // a new one, a command in it
	PID                       // that of a process
	NetNS                     // that of a path
)

// UserNS is what is done about the user namespace.
type UserNS uint8

// The choices of a user namespace.
const (
	CreateUserNS UserNS = iota
	JoinUserNS          // Target.UserNSPath
	KeepUserNS          // neither create nor join one
)

// Target is the namespace pasta connects.
type Target struct {
	Kind       TargetKind
	Args       []string // Command: the command and its arguments
	PID        int      // PID: the process
	NetNSPath  string   // PID, NetNS: the network namespace
	UserNS     UserNS
	UserNSPath string // JoinUserNS: the user namespace
	NoQuit     bool   // keep running when the namespace is gone
}

// VM is how a virtual machine connects.
type VM struct {
	Socket          string // path; empty: the first free of the usual ones, or Config.FD
	OneOff          bool   // end after the first client
	Packets         bool   // of a connected socket: it is SOCK_SEQPACKET, each packet a frame
	Compat          bool   // vhost-user offers no more features than the reference
	RepairPath      string // of the socket for passt-repair; empty: Socket + ".repair"
	NoRepair        bool   // no such socket
	MigrateExit     bool   // end after a migration to elsewhere
	MigrateNoLinger bool   // close TCP sockets once they have migrated
}

// Family is what is said about one IP version. An invalid address is one that was not given.
type Family struct {
	Enabled   bool
	Address   netip.Addr // the guest's
	PrefixLen int        // of the guest's address, bits; 0: not given. IPv6 always has 64
	Gateway   netip.Addr // the guest's

	// CopyAddrs and CopyRoutes: with ConfigNet, all addresses and routes of the template are
	// copied, not just one address and a default route.
	CopyAddrs, CopyRoutes bool

	Outbound   netip.Addr // source of the host's sockets
	OutboundIf string     // interface of the host's sockets, and the template without Interface

	// HostLoopback is the guest's alias of the host's loopback address. Not given: the guest's
	// gateway is that, unless Config.NoMapGateway.
	HostLoopback netip.Addr
	// HostGuestAddr is the guest's alias of its own address on the host. Not given: none.
	HostGuestAddr netip.Addr

	// Link is a network that exists on the guest's link only: addresses in it that mean nothing
	// else lead nowhere. Not given: none.
	Link netip.Prefix
	// Echo, in Link, answers echo requests, and refuses what it means nothing for. Not given: none.
	Echo netip.Addr
	// Leased is the address that DHCP assigns. Not given: Address.
	Leased netip.Addr

	DNS        []netip.Addr // resolvers announced; empty: from resolv.conf
	DNSForward netip.Addr   // what the guest sends there on the ports of DNS goes to DNSHost
	DNSHost    netip.Addr   // not given: the first of resolv.conf
}

// Limits of the resolver lists.
const (
	maxDNS    = 3 // per family
	maxSearch = 6
)

// DNS is what the guest is told about names, besides Family.DNS.
type DNS struct {
	None         bool     // resolv.conf is not read for resolvers
	Search       []string // search list; empty: from resolv.conf
	NoSearch     bool     // resolv.conf is not read for the search list
	Announce     bool     // by DHCP, DHCPv6, NDP
	AnnounceList bool     // the search list, likewise
}

// Values that hold unless an option says otherwise, and what options take.
const (
	defaultMTU     = 65520 // 65535 - 14, a multiple of 4
	maxMTU         = 65535 - 14
	defaultLogSize = 1 << 20
	minLogSize     = 5 * 8192 // five times stdio's buffer

	defaultFlows          = 128 << 10
	leastFlows, mostFlows = 16, 4 << 20

	defaultMemory           = 96 << 20
	leastMemory, mostMemory = 8 << 20, min(64<<30, math.MaxInt>>30<<30)
)

// defaultMAC is locally administered, so it is nobody else's.
var defaultMAC = [6]byte{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}

// Defaults returns the values that hold for mode unless something else is said, for another front
// end than the command line of pasta and passt. The caller may change it before it is used.
func Defaults(mode Mode) *Config { return defaults(mode, false) }

func defaults(mode Mode, vhostUser bool) *Config {
	mac := defaultMAC
	return &Config{
		Mode: mode, VhostUser: vhostUser,
		Log:  Log{Level: LevelInfo, Size: defaultLogSize},
		FD:   -1,
		MAC:  mac[:],
		MTU:  defaultMTU,
		IPv4: Family{Enabled: true, CopyAddrs: true, CopyRoutes: true},
		IPv6: Family{Enabled: true, CopyAddrs: true, CopyRoutes: true},
		DNS:  DNS{Announce: mode == Passt, AnnounceList: mode == Passt},
		TCP:  true, UDP: true, ICMP: true,
		DHCP: true, DHCPv6: true, NDP: true, RA: true,
		NoSplice: mode == Passt,
		MaxFlows: defaultFlows, Memory: defaultMemory,
	}
}
