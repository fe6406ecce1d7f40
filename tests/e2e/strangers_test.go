package e2e

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"fusilli/tests/bed"
)

// strangers returns datagrams from as many ports of the far peer's to a port of the host's.
func strangers(t *testing.T, b *bed.Bed, to uint16, ports int) [][]byte {
	t.Helper()
	macOf := func(ns *bed.NS, name string) (mac net.HardwareAddr) {
		err := ns.Do(func() error {
			ifi, err := net.InterfaceByName(name)
			if err == nil {
				mac = ifi.HardwareAddr
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return mac
	}
	eth := &layers.Ethernet{SrcMAC: macOf(b.Far, "f0"), DstMAC: macOf(b.Host, "h0"), EthernetType: layers.EthernetTypeIPv4}
	frames := make([][]byte, ports)
	for i := range frames {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.ParseIP(bed.FarAddr4).To4(), DstIP: net.ParseIP(bed.HostAddr4).To4()}
		udp := &layers.UDP{SrcPort: layers.UDPPort(1024 + i), DstPort: layers.UDPPort(to)}
		udp.SetNetworkLayerForChecksum(ip)
		frames[i] = serialize(t, eth, ip, udp, gopacket.Payload("?"))
	}
	return frames
}

// A stranger on the network sends to a forwarded port from more source ports than can be
// remembered: connections to another port are accepted as before, and a transfer of the guest's
// keeps its share. What the frames themselves cost this machine is seen by sending them to a port
// that is not forwarded.
func TestStrangersLeaveForwardedPorts(t *testing.T) {
	const tries, length = 8, time.Second / 2
	perSecond, ports, kept, late := 20000, 20000, 2./3, 5*time.Millisecond
	if raceEnabled {
		perSecond, ports, kept, late = 2000, 2000, 0.4, 50*time.Millisecond
	}
	// A CPU's place for the flood: it is not to keep the ends waiting, which are in this process as
	// well.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
	c := connect(t, newBed(t, defaultBed), "-t", "7000", "-u", "7002", "-T", "none", "-U", "none")
	serving(t)(c.target.ServeTCP(":7000", func(conn net.Conn) {
		conn.Write([]byte("x"))
		conn.Close()
	}))
	// Nobody reads this; the kernel drops what does not fit.
	silent, err := c.target.ListenPacket("udp", ":7002")
	serving(t)(silent, err)
	floods := map[string][][]byte{"forwarded": strangers(t, c.Bed, 7002, ports), "not forwarded": strangers(t, c.Bed, 7003, ports)}

	// beside does f while strangers send.
	beside := func(which string, f func()) string {
		before := c.usage(t).CPU
		end, begin := floodFrom(t, c.Far, "f0", floods[which], perSecond), time.Now()
		f()
		n, took := end(), time.Since(begin)
		return fmt.Sprintf("%.0f datagrams a second, %v of CPU time a second", float64(n)/took.Seconds(),
			time.Duration(float64(c.usage(t).CPU-before)/took.Seconds()).Round(time.Millisecond))
	}
	t.Run("connections", func(t *testing.T) {
		slowest := func() time.Duration { // but for one in a hundred
			var all []time.Duration
			for begin := time.Now(); time.Since(begin) < length || len(all) < 100; {
				at := time.Now()
				conn, err := c.Far.Dial(patience(t, limit), "tcp", net.JoinHostPort(bed.HostAddr4, "7000"))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				all = append(all, time.Since(at))
				conn.Close()
			}
			slices.Sort(all)
			return all[len(all)*99/100]
		}
		// The machine has other things to do as well: what connections take without the flood, or
		// beside frames that lead nowhere, may be more than the limit by itself.
		fast := false
		for try := 0; try < tries && !fast; try++ {
			var flooded, base time.Duration
			what := beside("forwarded", func() { flooded = slowest() })
			beside("not forwarded", func() { base = slowest() })
			alone := slowest()
			t.Logf("99 of 100 within %v beside %s; within %v if they lead nowhere, %v alone", flooded, what, base, alone)
			fast = flooded <= max(late, 2*base, 2*alone)
		}
		if !fast {
			t.Errorf("one of 100 connections takes more than %v, and more than twice as long as without the flood", late)
		}
	})
	t.Run("transfer", func(t *testing.T) {
		target, peer := c.pair(t, bed.FarAddr4)
		for _, conn := range []net.Conn{target, peer} {
			conn.SetDeadline(time.Time{})
		}
		var got atomic.Int64
		var ends sync.WaitGroup
		ends.Go(func() {
			for b := make([]byte, 256<<10); ; {
				if _, err := target.Write(b); err != nil {
					return
				}
			}
		})
		ends.Go(func() {
			for b := make([]byte, 256<<10); ; {
				n, err := peer.Read(b)
				if got.Add(int64(n)); err != nil {
					return
				}
			}
		})
		defer ends.Wait()
		defer target.Close()
		defer peer.Close()
		waitFor(t, "the transfer", func() bool { return got.Load() > 8<<20 })
		var best float64
		for try := 0; try < tries && best < kept; try++ {
			var base, flooded float64
			beside("not forwarded", func() { base = rate(t, &got, length) })
			what := beside("forwarded", func() { flooded = rate(t, &got, length) })
			t.Logf("%.0f Mbit/s beside %s; %.0f if they lead nowhere", flooded*8/1e6, what, base*8/1e6)
			best = max(best, flooded/base)
		}
		if best < kept {
			t.Errorf("a transfer keeps %.0f%% of its speed, want %.0f", 100*best, 100*kept)
		}
	})
}
