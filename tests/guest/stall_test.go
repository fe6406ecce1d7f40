package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"fusilli/tests/bed"
)

// stallVar is for how long each of the tests in this file looks for transmit queues that stand
// still, such as 10m. They are not run without. GUEST_SMP=1 takes the guest's memory barriers away,
// see doc.go.
const stallVar = "GUEST_STALL"

func stallTime(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv(stallVar)
	if s == "" {
		t.Skip(stallVar + " does not say for how long")
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("%s: %v", stallVar, err)
	}
	return d
}

// txQueue is the state of a card's transmit queue: numbers of frames, modulo 65536.
type txQueue struct {
	avail uint16 // that the guest has made available
	used  uint16 // that QEMU is done with
	event uint16 // QEMU is to be told when the guest makes the one after these available
}

func (q txQueue) idle() bool { return q.avail == q.used }

// vring is where the queue is in the guest's memory.
var vring = regexp.MustCompile(`(?is)vring:.*?num:\s+(\d+).*?avail:\s+(0x[0-9a-f]+).*?used:\s+(0x[0-9a-f]+)`)

func monitor(t *testing.T, vm *VM, format string, args ...any) string {
	t.Helper()
	said, err := vm.Monitor(fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// last parses the number that ends s.
func last(t *testing.T, s string) uint64 {
	t.Helper()
	f := strings.Fields(s)
	n, err := strconv.ParseUint(f[len(f)-1], 0, 64)
	if err != nil {
		t.Fatalf("%v: %q", err, s)
	}
	return n
}

// rings returns the guest-physical addresses of the two rings and of the event index behind the
// latter.
func rings(t *testing.T, vm *VM) (avail, used, event uint64) {
	t.Helper()
	said := monitor(t, vm, "info virtio-queue-status /machine/peripheral/card/virtio-backend 1")
	m := vring.FindStringSubmatch(said)
	if m == nil {
		t.Fatalf("no queue: %s", said)
	}
	avail, used = last(t, m[2]), last(t, m[3])
	return avail, used, used + 4 + 8*last(t, m[1])
}

func state(t *testing.T, vm *VM) txQueue {
	t.Helper()
	avail, used, event := rings(t, vm)
	word := func(addr uint64) uint16 { return uint16(last(t, monitor(t, vm, "xp /1hx %#x", addr))) }
	q := txQueue{event: word(event), used: word(used + 2)}
	q.avail = word(avail + 2) // what comes in between makes it look busy
	return q
}

// still returns the queue's state when nothing moves any more.
func still(t *testing.T, vm *VM) txQueue {
	t.Helper()
	q := state(t, vm)
	for {
		time.Sleep(time.Second)
		p := state(t, vm)
		if p == q || p.idle() {
			return p
		}
		q = p
	}
}

// revive makes QEMU look at all queues: it does when the machine goes on after a stop.
func revive(t *testing.T, vm *VM) {
	t.Helper()
	monitor(t, vm, "stop")
	monitor(t, vm, "cont")
}

func bootStall(t *testing.T, card string) (*bed.Bed, *VM) {
	t.Helper()
	b := newBed(t)
	p := start(t, b, "-t", "5002")
	vm, err := Start(patience(t), Config{Image: image, Socket: p.socket, Card: card, SMP: os.Getenv("GUEST_SMP")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Close)
	sh(t, vm, fmt.Sprintf("ip link set eth0 up; ip addr add %s/24 dev eth0; ip route add default via %s; "+
		"until ping -c1 -W1 %[2]s >&2; do :; done; ip neigh replace %[2]s lladdr $(ip neigh show %[2]s | sed 's/.*lladdr //; s/ .*//') dev eth0",
		bed.HostAddr4, bed.FarAddr4))
	return b, vm
}

// TestTransmitQueueUnderLoad sends with frames of all lengths and looks whether the queue still
// moves.
func TestTransmitQueueUnderLoad(t *testing.T) {
	length := stallTime(t)
	b, vm := bootStall(t, "")
	server := bed.FarAddr4 + ":5001"
	l, err := b.Far.ServeTCP(server, func(c net.Conn) { io.Copy(io.Discard, c) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := b.Far.ListenPacket("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		for buf := make([]byte, 1<<16); ; {
			if _, _, err := c.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	var rounds, sent, stalls int
	for end := time.Now().Add(length); time.Now().Before(end); rounds++ {
		for _, mtu := range []int{256, 1500, 65520} {
			vm.Spawn(fmt.Sprintf("ip link set eth0 mtu %d; blast %s 0.5", mtu, server)).Wait(patience(t))
			stalls += unstall(t, vm, fmt.Sprintf("round %d, TCP with MTU %d", rounds, mtu))
		}
		for _, size := range []int{228, 548, 1252, 1472, 8972, 65492} {
			out, _ := vm.Spawn(fmt.Sprintf("flood %s %d 0.5", server, size)).Wait(patience(t))
			n, _ := strconv.Atoi(out)
			sent += n
			stalls += unstall(t, vm, fmt.Sprintf("round %d, datagrams of %d bytes", rounds, size))
		}
	}
	t.Logf("%d rounds, %d datagrams", rounds, sent)
	if stalls > 0 {
		t.Errorf("the queue stood still %d times", stalls)
	}
}

// unstall revives the queue if it stands still, and returns how often it does.
func unstall(t *testing.T, vm *VM, when string) int {
	t.Helper()
	if state(t, vm).idle() {
		return 0
	}
	q := still(t, vm)
	if q.idle() {
		return 0
	}
	t.Logf("%s: %+v", when, q)
	revive(t, vm)
	return 1
}

// TestTransmitRing does what makes it stand still much more often than a driver does.
func TestTransmitRing(t *testing.T) {
	length := stallTime(t)
	_, vm := bootStall(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), length+limit)
	defer cancel()
	out, err := vm.Spawn(fmt.Sprintf("ring %g", length.Seconds())).Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var attempts, lost int
	if _, err := fmt.Sscan(out, &attempts, &lost); err != nil || attempts == 0 {
		t.Fatalf("%q: %v", out, err)
	}
	t.Logf("%d attempts", attempts)
	if lost > 0 {
		t.Errorf("%d notifications were lost", lost)
	}
}

// TestLostNotification loses a notification on purpose, and tries what man/passt.1 says about it:
// the guest sends a frame while the word by which QEMU wants to be told of it has its former value,
// as the guest sees it without a memory barrier.
func TestLostNotification(t *testing.T) {
	stallTime(t)
	for _, tt := range []struct {
		card     string
		recovers bool // with the next frame
	}{{"", false}, {",event_idx=off", true}} {
		t.Run("card"+tt.card, func(t *testing.T) {
			b, vm := bootStall(t, tt.card)
			if q := lose(t, vm, tt.recovers); q.idle() {
				t.Fatalf("no notification was lost: %+v", q)
			}
			// The guest's kernel refuses the connection if it learns of it and its answer gets out.
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if c, err := b.Far.Dial(ctx, "tcp", bed.HostAddr4+":5002"); err == nil {
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
				c.Read(make([]byte, 1))
				c.Close()
			}
			if q := still(t, vm); q.idle() != tt.recovers {
				t.Errorf("after a frame to the guest: %+v", q)
			}
			vm.Spawn("ping -c3 -W1 " + bed.FarAddr4).Wait(patience(t))
			if q := still(t, vm); q.idle() != tt.recovers {
				t.Errorf("after frames from the guest: %+v", q)
			}
			revive(t, vm)
			if q := still(t, vm); !q.idle() {
				t.Errorf("after stop and cont: %+v", q)
			}
			sh(t, vm, "until ping -c1 -W1 "+bed.FarAddr4+" >&2; do :; done")
		})
	}
}

// lose makes the guest send one frame of which QEMU is not told. flags says that QEMU asks for it
// by a flag (VIRTQ_USED_F_NO_NOTIFY), not by an index.
func lose(t *testing.T, vm *VM, flags bool) txQueue {
	t.Helper()
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", vm.PID()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for range 20 { // the guest may have something of its own to send
		q := still(t, vm)
		if !q.idle() {
			t.Fatalf("not idle before: %+v", q)
		}
		_, used, event := rings(t, vm)
		at, before, now := event, q.event-1, q.event
		if flags {
			at, before, now = used, 1, 0
		}
		host := int64(last(t, monitor(t, vm, "gpa2hva %#x", at)))
		put := func(v uint16) {
			if _, err := mem.WriteAt([]byte{byte(v), byte(v >> 8)}, host); err != nil {
				t.Fatal(err)
			}
		}
		put(before)
		vm.Spawn("ping -c1 -W1 " + bed.FarAddr4).Wait(patience(t))
		if p := state(t, vm); p.used == q.used {
			put(now)
			if p.avail != q.avail {
				return state(t, vm)
			}
		}
	}
	return state(t, vm)
}
