package bed

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LinkConfig describes a long or thin link. Each direction is limited on its own.
type LinkConfig struct {
	Rate  float64       // bits a second, Ethernet headers included; 0 is no limit
	Delay time.Duration // one way
	Loss  float64       // probability that a frame is lost
	Queue int           // bytes that wait for the rate limit before frames are dropped; 0 is 4 MiB
}

const (
	// quantum is the least time between two rounds of a busy direction. A network card
	// that coalesces interrupts works in such steps; without them a full link would
	// take a wake-up a frame.
	quantum = 50 * time.Microsecond

	// tapQueue is the transmit queue of the link's taps in frames: more than a sender
	// hands over in a quantum, so that only LinkConfig decides what is lost.
	tapQueue = 10000

	frameCap = 65536
)

// Link carries frames between a tap in each of two namespaces, in user space: it works on
// kernels without netem. Two threads own it, one a direction.
type Link struct {
	stop int // eventfd, readable when the link is to end
	taps [2]int
	done sync.WaitGroup
}

// NewLink makes the taps nameA in a and nameB in b, both down, and joins them. Frames are
// carried until Close.
func NewLink(cfg LinkConfig, a *NS, nameA string, b *NS, nameB string) (*Link, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &Link{stop: stop, taps: [2]int{-1, -1}}
	for i, end := range []struct {
		ns   *NS
		name string
	}{{a, nameA}, {b, nameB}} {
		err := end.ns.Do(func() (err error) {
			l.taps[i], err = openTap(end.name)
			return err
		})
		if err == nil {
			err = end.ns.IP(fmt.Sprintf("link set %s txqueuelen %d", end.name, tapQueue))
		}
		if err != nil {
			l.Close()
			return nil, err
		}
	}
	if cfg.Queue == 0 {
		cfg.Queue = 4 << 20
	}
	for i := range l.taps {
		d := &direction{cfg: cfg, from: l.taps[i], to: l.taps[1-i], stop: stop}
		l.done.Go(d.run)
	}
	return l, nil
}

// Close ends both directions and removes the taps.
func (l *Link) Close() {
	one := uint64(1)
	unix.Write(l.stop, unsafe.Slice((*byte)(unsafe.Pointer(&one)), 8))
	l.done.Wait()
	for _, fd := range l.taps {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	unix.Close(l.stop)
}

// openTap makes the tap name in the thread's network namespace.
func openTap(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make tap %s: %w", name, err)
	}
	return fd, nil
}

// frame is one frame under way.
type frame struct {
	due time.Time
	b   []byte
}

// direction carries frames one way. run owns it.
//
// A lone frame leaves exactly when it is due. While there is more to do, rounds are a
// quantum apart, so a frame may leave that much late; the rate holds nevertheless.
type direction struct {
	cfg            LinkConfig
	from, to, stop int

	queue []frame // in order of due; those before head have left
	head  int
	spare [][]byte  // buffers not in use
	free  time.Time // when the wire will have sent all that was accepted
}

func (d *direction) run() {
	runtime.LockOSThread() // and never unlocked: the thread's timer slack is not for others
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	var last time.Time
	busy := false
	buf := make([]byte, frameCap)
	for {
		var timeout *unix.Timespec
		if d.head < len(d.queue) {
			ts := unix.NsecToTimespec(max(0, int64(time.Until(d.queue[d.head].due))))
			timeout = &ts
		}
		fds := []unix.PollFd{{Fd: int32(d.from), Events: unix.POLLIN}, {Fd: int32(d.stop), Events: unix.POLLIN}}
		if _, err := unix.Ppoll(fds, timeout, nil); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if rest := quantum - time.Since(last); busy && rest > 0 {
			ts := unix.NsecToTimespec(int64(rest))
			unix.Nanosleep(&ts, nil)
		}
		last = time.Now()
		accepted, ok := d.accept(buf, last)
		if !ok {
			return
		}
		busy = d.deliver(last)+accepted > 1
	}
}

// accept reads the frames that wait, and queues those that are not lost. It reports how
// many there were, and whether the tap still is.
func (d *direction) accept(buf []byte, now time.Time) (int, bool) {
	for i := 0; ; i++ {
		n, err := unix.Read(d.from, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN || err == unix.EIO: // EIO: the interface is down
			return i, true
		case err != nil:
			return i, false
		}
		if d.cfg.Loss > 0 && rand.Float64() < d.cfg.Loss {
			continue
		}
		sent := now
		if d.cfg.Rate > 0 {
			if d.free.Before(now) {
				d.free = now
			}
			if d.free.Sub(now).Seconds()*d.cfg.Rate/8 > float64(d.cfg.Queue) {
				continue
			}
			d.free = d.free.Add(time.Duration(float64(n*8) / d.cfg.Rate * 1e9))
			sent = d.free
		}
		d.queue = append(d.queue, frame{sent.Add(d.cfg.Delay), append(d.buffer(n), buf[:n]...)})
	}
}

// deliver writes the frames that are due, and reports how many.
func (d *direction) deliver(now time.Time) int {
	first := d.head
	for d.head < len(d.queue) && !d.queue[d.head].due.After(now) {
		b := d.queue[d.head].b
		unix.Write(d.to, b) // an interface that is down loses the frame
		d.spare = append(d.spare, b[:0])
		d.head++
	}
	n := d.head - first
	if d.head > len(d.queue)/2 {
		d.queue = d.queue[:copy(d.queue, d.queue[d.head:])]
		d.head = 0
	}
	return n
}

// buffer returns an empty buffer with room for n bytes.
func (d *direction) buffer(n int) []byte {
	if i := len(d.spare) - 1; i >= 0 && cap(d.spare[i]) >= n {
		b := d.spare[i]
		d.spare = d.spare[:i]
		return b
	}
	return make([]byte, 0, max(n, 2048))
}
