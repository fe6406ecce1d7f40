package autodetect

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReadKernel(t *testing.T) {
	defaults := Kernel{
		TCPSynRetries: 6, TCPSynLinearTimeouts: 4, TCPRTOMax: 120 * time.Second,
		UDPTimeout: 30 * time.Second, UDPStreamTimeout: 120 * time.Second,
		UnprivilegedPort: 1024, PingGroups: GroupRange{1, 0},
	}
	set := Kernel{
		TCPSynRetries: 3, TCPSynLinearTimeouts: 0, TCPRTOMax: 1500 * time.Millisecond,
		UDPTimeout: 60 * time.Second, UDPStreamTimeout: 180 * time.Second,
		LocalPorts: PortRange{1025, 65535}, UnprivilegedPort: 80, PingGroups: GroupRange{0, 2147483647},
	}
	files := func(syn, linear, rto, udp, stream, ports, low, ping string) fstest.MapFS {
		fs := fstest.MapFS{}
		for name, text := range map[string]string{
			"net/ipv4/tcp_syn_retries":                      syn,
			"net/ipv4/tcp_syn_linear_timeouts":              linear,
			"net/ipv4/tcp_rto_max_ms":                       rto,
			"net/netfilter/nf_conntrack_udp_timeout":        udp,
			"net/netfilter/nf_conntrack_udp_timeout_stream": stream,
			"net/ipv4/ip_local_port_range":                  ports,
			"net/ipv4/ip_unprivileged_port_start":           low,
			"net/ipv4/ping_group_range":                     ping,
		} {
			fs[name] = &fstest.MapFile{Data: []byte(text)}
		}
		return fs
	}
	for _, tt := range []struct {
		name  string
		files fstest.MapFS
		want  Kernel
	}{
		{"no files", fstest.MapFS{}, defaults},
		{"all set", files("3\n", "0\n", "1500\n", "60\n", "180\n", "1025\t65535\n", "80\n", "0\t2147483647\n"), set},
		{"empty", files("", "", "", "", "", "", "", ""), defaults},
		{"out of range", files("0", "-1", "0", "-5", "99999999999", "60999 32768", "65537", "-1 5"), defaults},
		{"no numbers", files("x", "1 2", "1s", "0x10", "1.5", "1 2 3", "", "a b"), defaults},
		{"ports of no range", files("", "", "", "", "", "0 70000", "", "5"), defaults},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ReadKernel(tt.files)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestGroupRange(t *testing.T) {
	if (GroupRange{1, 0}).Contains(0) || (GroupRange{1, 0}).Contains(1) || !(GroupRange{0, 5}).Contains(5) {
		t.Error("wrong")
	}
}
