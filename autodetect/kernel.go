package autodetect

import (
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// Sysctls is the directory whose fs.FS ReadKernel expects. Below net/ it shows the
// network namespace of the thread that opens a file.
const Sysctls = "/proc/sys"

// Kernel holds the kernel's limits and timeouts that a translator should share with the
// host's own stack. Each has the kernel's default where it could not be read.
type Kernel struct {
	TCPSynRetries        int           // retransmissions of a SYN: tcp_syn_retries, ip-sysctl
	TCPSynLinearTimeouts int           // of those, without back-off (Linux 6.5)
	TCPRTOMax            time.Duration // longest retransmission timeout (Linux 6.15)
	// idle time of a flow seen in one direction only, nf_conntrack
	UDPTimeout       time.Duration
	UDPStreamTimeout time.Duration // idle time of a flow seen in both directions
	LocalPorts       PortRange     // ephemeral ports; zero where they could not be read
	UnprivilegedPort int           // first port that needs no CAP_NET_BIND_SERVICE
	PingGroups       GroupRange    // groups that may open ping sockets, icmp(7)
}

// PortRange is Low to High, both included.
type PortRange struct{ Low, High uint16 }

// GroupRange is Low to High, both included; none if Low is above High, which is the
// kernel's default.
type GroupRange struct{ Low, High uint32 }

// Contains tells whether a group is in the range.
func (r GroupRange) Contains(gid uint32) bool { return r.Low <= gid && gid <= r.High }

// ReadKernel reads the parameters from sysctls, in use os.DirFS(Sysctls). Files that are
// missing (older kernels, modules not loaded, mount namespaces without /proc) or make no
// sense leave the default.
func ReadKernel(sysctls fs.FS) Kernel {
	k := Kernel{
		TCPSynRetries:        6,
		TCPSynLinearTimeouts: 4,
		TCPRTOMax:            120 * time.Second,
		UDPTimeout:           30 * time.Second,
		UDPStreamTimeout:     120 * time.Second,
		UnprivilegedPort:     1024,
		PingGroups:           GroupRange{1, 0},
	}
	read(sysctls, "net/ipv4/tcp_syn_retries", &k.TCPSynRetries, parseInt(1, 255))
	read(sysctls, "net/ipv4/tcp_syn_linear_timeouts", &k.TCPSynLinearTimeouts, parseInt(0, 255))
	read(sysctls, "net/ipv4/tcp_rto_max_ms", &k.TCPRTOMax, parseDuration(time.Millisecond))
	read(sysctls, "net/netfilter/nf_conntrack_udp_timeout", &k.UDPTimeout, parseDuration(time.Second))
	read(sysctls, "net/netfilter/nf_conntrack_udp_timeout_stream", &k.UDPStreamTimeout, parseDuration(time.Second))
	read(sysctls, "net/ipv4/ip_local_port_range", &k.LocalPorts, parsePorts)
	read(sysctls, "net/ipv4/ip_unprivileged_port_start", &k.UnprivilegedPort, parseInt(0, 65536))
	read(sysctls, "net/ipv4/ping_group_range", &k.PingGroups, parseGroups)
	return k
}

// read sets *v from a file if parse takes what is in it.
func read[T any](sysctls fs.FS, name string, v *T, parse func([]string) (T, bool)) {
	text, err := fs.ReadFile(sysctls, name)
	if err != nil {
		return
	}
	if parsed, ok := parse(strings.Fields(string(text))); ok {
		*v = parsed
	}
}

func parseInt(low, high int) func([]string) (int, bool) {
	return func(fields []string) (int, bool) {
		if len(fields) != 1 {
			return 0, false
		}
		n, err := strconv.Atoi(fields[0])
		return n, err == nil && low <= n && n <= high
	}
}

// parseDuration reads a positive number of units.
func parseDuration(unit time.Duration) func([]string) (time.Duration, bool) {
	const most = 1<<31 - 1 // what the kernel's own int holds
	return func(fields []string) (time.Duration, bool) {
		n, ok := parseInt(1, most)(fields)
		return time.Duration(n) * unit, ok
	}
}

func parsePorts(fields []string) (PortRange, bool) {
	low, high, ok := parsePair(fields, 16)
	return PortRange{uint16(low), uint16(high)}, ok && low > 0 && low <= high
}

func parseGroups(fields []string) (GroupRange, bool) {
	low, high, ok := parsePair(fields, 32)
	return GroupRange{uint32(low), uint32(high)}, ok
}

func parsePair(fields []string, bits int) (low, high uint64, ok bool) {
	if len(fields) != 2 {
		return 0, 0, false
	}
	low, errLow := strconv.ParseUint(fields[0], 10, bits)
	high, errHigh := strconv.ParseUint(fields[1], 10, bits)
	return low, high, errLow == nil && errHigh == nil
}
