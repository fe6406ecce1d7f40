package splice

import "os"

// tcpReuse is where a network namespace says whether a port that waits in TIME_WAIT may be used for
// another connection after a second (ip-sysctl.rst); by default only between loopback addresses.
const tcpReuse = "/proc/sys/net/ipv4/tcp_tw_reuse"

// ReusePorts has the calling thread's network namespace reuse ports. Connections to the guest's own
// address would else run out of them at 470 a second that the client closes first. Errors are those
// of writing to the file: everything works without, up to that rate.
func ReusePorts() error { return os.WriteFile(tcpReuse, []byte("1"), 0) }
