package e2e

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// dissected is a packet as tshark understands it.
type dissected struct {
	far       bool // it comes from the far peer
	seq, size int  // of a TCP segment: relative number of its first byte, bytes of payload
	udp       int  // length of a datagram with its header
	len       int
}

// dissect has tshark read a capture, with checksums checked, and fails for each malformed packet.
func dissect(t *testing.T, path, far string) []dissected {
	t.Helper()
	args := []string{"-r", path, "-n", "-T", "fields", "-E", "separator=;", "-E", "occurrence=f"}
	for _, proto := range []string{"ip", "tcp", "udp"} {
		args = append(args, "-o", proto+".check_checksum:TRUE")
	}
	for _, field := range []string{
		"ip.src", "ipv6.src", "tcp.seq", "tcp.len", "udp.length", "frame.len", "frame.cap_len",
		"_ws.malformed", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "_ws.short",
	} {
		args = append(args, "-e", field)
	}
	cmd := exec.CommandContext(patience(t, limit), "tshark", args...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	var all []dissected
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ";")
		number := func(i int) int {
			n, _ := strconv.Atoi(f[i])
			return n
		}
		bad := func(status string) bool { return status != "" && status != "1" } // 1 is good
		if f[10] == "3" && f[0] != "" {
			f[10] = "" // UDP over IPv4 does without one
		}
		if f[3] != "" && f[9] == "" {
			t.Fatalf("the checksum of packet %d was not checked", len(all)+1)
		}
		if f[7] != "" || f[11] != "" || bad(f[8]) || bad(f[9]) || bad(f[10]) || f[5] != f[6] {
			t.Fatalf("packet %d is malformed: %q", len(all)+1, line)
		}
		all = append(all, dissected{
			far: f[0] == far || f[1] == far,
			seq: number(2), size: number(3), udp: number(4), len: number(5),
		})
	}
	return all
}

// What a capture shows of a transfer in both directions is the transfer, to the byte: of a
// namespace's tap and of a virtual machine's socket.
func TestCaptureOfATransfer(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Fatal("no tshark")
	}
	const mib = 2 << 20
	for _, vm := range []bool{false, true} {
		for _, mtu := range []int{65520, 1500} {
			for _, f := range families {
				t.Run(fmt.Sprintf("machine %t, %s, MTU %d", vm, f.name, mtu), func(t *testing.T) {
					path := filepath.Join(scratch(t), "pcap")
					var c *connection
					if b := newBed(t, defaultBed); vm {
						c = connectVM(t, b, mtu, "-p", path)
					} else {
						c = connect(t, b, "-p", path, "-m", strconv.Itoa(mtu))
					}
					c.transfer(t, f.far, both, 1, mib)
					// A row of datagrams.
					l, err := c.Far.ListenPacket("udp", net.JoinHostPort(f.far, "0"))
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					u, err := c.target.Dial(patience(t, limit), "udp", l.LocalAddr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer u.Close()
					buf := make([]byte, 2000)
					for range 20 {
						if _, err := u.Write(buf[:1000]); err != nil {
							t.Fatal(err)
						}
						l.SetReadDeadline(time.Now().Add(limit))
						n, from, err := l.ReadFrom(buf)
						if err != nil || n != 1000 {
							t.Fatal(n, err)
						}
						for range 3 {
							l.WriteTo(buf[:500], from)
						}
						for range 3 {
							u.SetReadDeadline(time.Now().Add(limit))
							if _, err := io.ReadAtLeast(u, buf, 500); err != nil {
								t.Fatal(err)
							}
						}
					}
					if status := c.proc.Stop(limit); status != 0 {
						t.Errorf("status %d", status)
					}

					bytes := make(map[bool]int) // by direction
					datagrams := make(map[bool]int)
					for _, p := range dissect(t, path, f.far) {
						if p.len > mtu+14 {
							t.Fatalf("packet of %d bytes on a link of %d", p.len, mtu)
						}
						if p.size > 0 {
							bytes[p.far] = max(bytes[p.far], p.seq-1+p.size)
						}
						switch {
						case p.udp == 8+1000 && !p.far, p.udp == 8+500 && p.far:
							datagrams[p.far]++
						}
					}
					// one byte more is the stream's number
					if bytes[false] != mib+1 || bytes[true] != mib {
						t.Errorf("%d bytes out and %d in, want %d and %d", bytes[false], bytes[true], mib+1, mib)
					}
					if datagrams[false] != 20 || datagrams[true] != 60 {
						t.Errorf("%d datagrams out and %d in, want 20 and 60", datagrams[false], datagrams[true])
					}
				})
			}
		}
	}
}

func TestStatsOfARun(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	c := connect(t, b, "--stats", "1")
	c.transfer(t, bed.FarAddr4, both, 1, 1<<20)
	waitFor(t, "a row", func() bool { return strings.Count(c.proc.Stderr(), "\n") >= 2 })
	head, row, _ := strings.Cut(c.proc.Stderr(), "\n")
	names, values := strings.Fields(head), strings.Fields(row)
	if len(values) < len(names) || names[0] != "tap-in" || names[2] != "tcp" {
		t.Fatalf("table %q", c.proc.Stderr())
	}
	if values[0] == "0" || values[1] == "0" || values[2] != "1" {
		t.Errorf("row %q", row)
	}
}
