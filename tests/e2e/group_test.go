package e2e

import (
	"net"
	"strconv"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// What the target sends to a group reaches its members on the host's link: service discovery from
// containers worked in all versions but some.
func TestGroupHearsTheTarget(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	for i, group := range []string{"239.77.1.2", "ff0e::77:1"} {
		t.Run(families[i].name, func(t *testing.T) {
			var member *net.UDPConn
			err := c.Far.Do(func() error {
				ifi, err := net.InterfaceByName("f0")
				if err != nil {
					return err
				}
				member, err = net.ListenMulticastUDP("udp", ifi, &net.UDPAddr{IP: net.ParseIP(group)})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer member.Close()
			port := member.LocalAddr().(*net.UDPAddr).Port
			conn, err := c.target.Dial(t.Context(), "udp", net.JoinHostPort(group, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			waitFor(t, "the group to hear it", func() bool {
				conn.Write([]byte("hello"))
				member.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				b := make([]byte, 16)
				n, from, err := member.ReadFromUDPAddrPort(b)
				return err == nil && string(b[:n]) == "hello" && int(from.Port()) == conn.LocalAddr().(*net.UDPAddr).Port
			})
		})
	}
}

// A broadcast is dropped (SO_BROADCAST is nobody's to set), and does the target's other traffic no
// harm.
func TestBroadcastGoesNowhere(t *testing.T) {
	t.Parallel()
	c := connect(t, newBed(t, defaultBed))
	far, err := c.Far.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	port := strconv.Itoa(far.LocalAddr().(*net.UDPAddr).Port)
	out, err := c.target.ListenPacket("udp4", ":0") // Go sets SO_BROADCAST
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, to := range []string{"255.255.255.255", "10.77.0.255", bed.FarAddr4} {
		a, err := net.ResolveUDPAddr("udp4", net.JoinHostPort(to, port))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := out.WriteTo([]byte(to), a); err != nil {
				t.Fatal(err)
			}
		}
	}
	far.SetReadDeadline(time.Now().Add(limit))
	b := make([]byte, 64)
	n, _, err := far.ReadFrom(b)
	if err != nil || string(b[:n]) != bed.FarAddr4 {
		t.Errorf("the far peer gets %q, %v", b[:n], err)
	}
}
