//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ringSize  = 256
	ringFrame = 200                    // bytes
	ringBurst = 4                      // frames that QEMU is told of together
	ringStall = 300 * time.Millisecond // after which a queue stands still
)

// ring drives the transmit queue of the network card itself, without interrupts, as the kernel's
// driver does (virtio 1.2, sections 2.7 and 4.1). Each time QEMU is about to find the queue empty
// it makes one more frame available: either QEMU finds that too, or the event index says by then
// that QEMU wants to be told. It prints the number of these attempts, and how often neither was so
// and the queue stood still.
//
// The kernel does not get the card back.
func ring(seconds string) error {
	s, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	dev, err := seize("virtio_net")
	if err != nil {
		return err
	}
	c, err := openCard(dev)
	if err != nil {
		return err
	}
	q, err := c.transmit()
	if err != nil {
		return err
	}
	attempts, lost := 0, 0
	for end := time.Now().Add(time.Duration(s * float64(time.Second))); time.Now().Before(end); {
		for range 64 {
			for range ringBurst {
				q.send()
			}
			q.spin(1)
			for range rand.IntN(1 << rand.IntN(12)) { // QEMU takes some microseconds
				q.nothing++
			}
			q.send()
			if !q.spin(0) && !q.drain() {
				lost++
				q.kick()
			}
			attempts++
		}
	}
	fmt.Println(attempts, lost)
	return nil
}

// seize takes the one device of a virtio driver away from it and from the bus's, and returns the
// device's directory.
func seize(driver string) (string, error) {
	devs, err := filepath.Glob("/sys/bus/virtio/drivers/" + driver + "/virtio*")
	if err != nil || len(devs) != 1 {
		return "", fmt.Errorf("%d devices of %s: %v", len(devs), driver, err)
	}
	dev, err := filepath.EvalSymlinks(devs[0])
	if err != nil {
		return "", err
	}
	pci := filepath.Dir(dev)
	if err := os.WriteFile(filepath.Join(pci, "driver/unbind"), []byte(filepath.Base(pci)), 0); err != nil {
		return "", err
	}
	return pci, os.WriteFile(filepath.Join(pci, "enable"), []byte("1"), 0)
}

// card is a virtio device on PCI, with the parts of it that matter here.
type card struct {
	common, notify []byte // struct virtio_pci_common_cfg; where queues are kicked
	factor         uint32 // notify_off_multiplier
}

// Values and places in virtio_pci_cap and virtio_pci_common_cfg (linux/virtio_pci.h).
const (
	capVendor    = 9
	capCommon    = 1
	capNotify    = 2
	driverSelect = 8
	driverBits   = 12
	deviceStatus = 20
	queueSelect  = 22
	queueSize    = 24
	queueEnable  = 28
	queueOffset  = 30
	queueAddrs   = 32 // descriptors, driver's area, device's area
)

func openCard(dev string) (*card, error) {
	f, err := os.OpenFile(filepath.Join(dev, "config"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var cfg [256]byte
	if _, err := f.ReadAt(cfg[:], 0); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt([]byte{cfg[4] | 6}, 4); err != nil { // memory and bus mastering
		return nil, err
	}
	c := &card{}
	for at := cfg[0x34]; at != 0; at = cfg[at+1] {
		kind := cfg[at+3]
		if cfg[at] != capVendor || kind != capCommon && kind != capNotify {
			continue
		}
		m, err := os.OpenFile(filepath.Join(dev, fmt.Sprint("resource", cfg[at+4])), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		off, n := binary.LittleEndian.Uint32(cfg[at+8:]), binary.LittleEndian.Uint32(cfg[at+12:])
		b, err := unix.Mmap(int(m.Fd()), int64(off), int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		m.Close()
		if err != nil {
			return nil, fmt.Errorf("map registers: %w", err)
		}
		if kind == capCommon {
			c.common = b
		} else {
			c.notify, c.factor = b, binary.LittleEndian.Uint32(cfg[at+16:])
		}
	}
	if c.common == nil || c.notify == nil {
		return nil, errors.New("the card has no registers of virtio 1")
	}
	return c, nil
}

// word is what a device or driver may change at any time.
func word[T uint8 | uint16 | uint32](b []byte, off int) *T { return (*T)(unsafe.Pointer(&b[off])) }

// page returns a page that stays where it is, and its physical address.
func page() ([]byte, uint64, error) {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_LOCKED|unix.MAP_POPULATE)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	var e [8]byte
	_, err = f.ReadAt(e[:], int64(uintptr(unsafe.Pointer(&b[0]))/4096*8))
	return b, (binary.LittleEndian.Uint64(e[:]) & (1<<55 - 1)) * 4096, err
}

// txRing is the transmit queue. Its frames are all the same one.
type txRing struct {
	idx     uint16  // frames made available
	avail   *uint16 // idx, for QEMU
	used    *uint16 // frames done with, by QEMU
	event   *uint16 // QEMU is to be told of the frame after that number
	bell    *uint16
	told    uint16 // idx when QEMU was told
	lock    uint32
	nothing int
}

// transmit resets the card and starts its transmit queue.
func (c *card) transmit() (*txRing, error) {
	status := word[uint8](c.common, deviceStatus)
	*status = 0
	if *status != 0 {
		return nil, errors.New("the card is not reset") // QEMU is at once
	}
	*status = 1 // ACKNOWLEDGE
	*status |= 2
	for i, bits := range []uint32{1 << 29, 1 << 0} { // VIRTIO_RING_F_EVENT_IDX, VIRTIO_F_VERSION_1
		*word[uint32](c.common, driverSelect) = uint32(i)
		*word[uint32](c.common, driverBits) = bits
	}
	if *status |= 8; *status&8 == 0 {
		return nil, errors.New("the card refuses our features")
	}
	*word[uint16](c.common, queueSelect) = 1
	*word[uint16](c.common, queueSize) = ringSize
	var pages [4][]byte
	var phys [4]uint64
	for i := range pages {
		var err error
		if pages[i], phys[i], err = page(); err != nil {
			return nil, err
		}
	}
	descs, avail, used, buf := pages[0], pages[1], pages[2], pages[3]
	for i := range 3 {
		*word[uint32](c.common, queueAddrs+8*i) = uint32(phys[i])
		*word[uint32](c.common, queueAddrs+8*i+4) = uint32(phys[i] >> 32)
	}
	// virtio_net_hdr_mrg_rxbuf
	const vnet = 12
	// ethertype: local experiment
	copy(buf[vnet:], "\x9a\x55\x9a\x55\x9a\x55\x52\x54\x00\x12\x34\x56\x88\xb5not for us")
	for i := range ringSize {
		binary.LittleEndian.PutUint64(descs[16*i:], phys[3])
		binary.LittleEndian.PutUint32(descs[16*i+8:], vnet+ringFrame)
		binary.LittleEndian.PutUint16(avail[4+2*i:], uint16(i))
	}
	bell := int(uint32(*word[uint16](c.common, queueOffset)) * c.factor)
	*word[uint16](c.common, queueEnable) = 1
	*status |= 4 // DRIVER_OK
	return &txRing{
		avail: word[uint16](avail, 2), used: word[uint16](used, 2), event: word[uint16](used, 4+8*ringSize),
		bell: word[uint16](c.notify, bell),
	}, nil
}

// send makes one more frame available and tells QEMU if QEMU wants to be told.
//
//go:noinline
func (q *txRing) send() {
	old := q.idx
	q.idx++
	*q.avail = q.idx
	atomic.AddUint32(&q.lock, 0) // lock xadd, a full barrier on x86; the kernel has lock addl
	if *q.event == old {
		q.kick()
	}
}

// kick tells QEMU.
func (q *txRing) kick() {
	*q.bell = 1 // the queue's number
	q.told = q.idx
}

// spin waits a short time for QEMU to leave no more than some frames, and reports whether it has.
//
//go:noinline
func (q *txRing) spin(left uint16) bool {
	for range 10000 {
		if q.idx-*q.used <= left {
			return true
		}
	}
	return false
}

// drain reports whether QEMU sends all there is without being told. The host may be busy: QEMU may
// take its time as long as it was told.
func (q *txRing) drain() bool {
	for at, since := *q.used, time.Now(); q.idx != *q.used; {
		if u := *q.used; u != at {
			at, since = u, time.Now()
		}
		if time.Since(since) > ringStall && *q.event == at && q.told != at+1 {
			return false
		}
	}
	return true
}
