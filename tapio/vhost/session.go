package vhost

import (
	"errors"
	"os"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/tapio"
)

// Features of the device (virtio 1.2, 5.1.3 and 6) and of the protocol, by bit.
const (
	fCsum      = 1 << 0
	fGuestCsum = 1 << 1
	fGuestTSO4 = 1 << 7
	fGuestTSO6 = 1 << 8
	fGuestECN  = 1 << 9
	fHostTSO4  = 1 << 11
	fHostTSO6  = 1 << 12
	fHostECN   = 1 << 13
	fMergeable = 1 << 15
	fLogAll    = 1 << 26
	fIndirect  = 1 << 28
	fEventIdx  = 1 << 29
	fProtocol  = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	fVersion1  = 1 << 32
	fGuestUSO4 = 1 << 54
	fGuestUSO6 = 1 << 55
	fHostUSO   = 1 << 56

	// compatFeatures are those that passt has. A guest that uses no others can move to it.
	compatFeatures = fGuestCsum | fMergeable | fLogAll | fProtocol | fVersion1
	allFeatures    = compatFeatures | fCsum | fGuestTSO4 | fGuestTSO6 | fGuestECN | fHostTSO4 | fHostTSO6 | fHostECN |
		fIndirect | fEventIdx | fGuestUSO4 | fGuestUSO6 | fHostUSO

	pLogShmFD       = 1 << 1
	pRARP           = 1 << 2
	pReplyAck       = 1 << 3
	pConfigureSlots = 1 << 15

	compatProtocol = pLogShmFD | pRARP | pReplyAck
	allProtocol    = compatProtocol | pConfigureSlots
)

// queues of the device: one pair.
const (
	rxQueue = iota // to the guest
	txQueue        // from the guest
	numQueues
)

// session is one front end and what it has set up. serve is the only goroutine that handles
// messages.
type session struct {
	d    *Device
	conn *os.File
	mem  memory
	q    [numQueues]*queue

	features uint64 // acknowledged ones
	protocol uint64
	greeted  bool // frames have been able to reach the guest
}

func newSession(d *Device, conn *os.File) *session {
	s := &session{d: d, conn: conn, mem: memory{logFD: -1}}
	for i := range s.q {
		s.q[i] = newQueue(i, &s.mem)
	}
	return s
}

// serve handles messages until the connection ends, and returns why: errHangUp if the front end has
// closed it.
func (s *session) serve() error {
	var buf [headerLen + maxPayload]byte
	var reply [64]byte
	var m message
	for {
		if err := readMessage(s.conn, &m, &buf); err != nil {
			return err
		}
		out, err := s.handle(&m, reply[:0])
		m.closeFDs()
		if err != nil {
			return err
		}
		if len(out) == 0 && m.flags&flagNeedReply != 0 {
			out = appendReply(reply[:0], m.request, 0, 0)
		}
		if len(out) > 0 {
			if _, err := s.conn.Write(out); err != nil {
				return err
			}
		}
	}
}

// close gives back everything. Nobody uses the session any more when it returns.
func (s *session) close() {
	for _, q := range s.q {
		q.close()
	}
	s.mem.close()
	s.conn.Close()
}

// handle does what m asks for, and appends its natural reply, if it has one, to out.
func (s *session) handle(m *message, out []byte) ([]byte, error) {
	switch m.request {
	case getFeatures:
		lo, hi := halves(s.d.features)
		return appendReply(out, m.request, lo, hi), nil
	case setFeatures:
		return nil, s.setFeatures(m.u64(0))
	case getProtocolFeatures:
		lo, hi := halves(s.d.protocol)
		return appendReply(out, m.request, lo, hi), nil
	case setProtocolFeatures:
		s.protocol = m.u64(0)
		return nil, nil
	case getQueueNum:
		lo, hi := halves(numQueues / 2)
		return appendReply(out, m.request, lo, hi), nil
	case getMaxMemSlots:
		lo, hi := halves(maxSlots)
		return appendReply(out, m.request, lo, hi), nil
	case setOwner, sendRARP:
		return nil, nil
	case resetOwner:
		return nil, s.eachQueue(func(q *queue) error { q.enabled = false; return nil })
	case setMemTable:
		return nil, s.setMemTable(m)
	case addMemReg, remMemReg:
		return nil, s.changeMemory(m)
	case setLogBase:
		size, offset := m.u64(0), m.u64(8)
		err := s.withMemory(func() error { return s.mem.setLog(m.takeFD(0), size, offset) })
		if err != nil {
			return nil, err
		}
		lo, hi := halves(size)
		return appendReply(out, m.request, lo, hi), nil
	case setLogFD:
		return nil, s.withMemory(func() error {
			closeFD(&s.mem.logFD)
			s.mem.logFD = m.takeFD(0)
			return nonblocking(s.mem.logFD)
		})
	}
	return s.handleRing(m, out)
}

// handleRing is handle for messages about one ring.
func (s *session) handleRing(m *message, out []byte) ([]byte, error) {
	index := uint64(m.u32(0))
	byDescriptor := m.request == setVringKick || m.request == setVringCall || m.request == setVringErr
	if byDescriptor {
		index = m.u64(0) &^ noFD
	}
	if index >= numQueues {
		return nil, protocolErrorf("request %d for ring %d", m.request, index)
	}
	q := s.q[index]
	q.lock()
	err := s.changeRing(q, m)
	base := uint32(q.next)
	if m.request == getVringBase && err == nil {
		s.d.set.remove(q.kick)
		q.forget()
	}
	q.mu.Unlock()
	if err != nil {
		return nil, err
	}
	switch m.request {
	case getVringBase:
		return appendReply(out, m.request, uint32(index), base), nil
	case setVringKick, setVringEnable:
		s.begun(q)
	}
	return nil, nil
}

// changeRing does what m says about q. The caller holds q's lock.
func (s *session) changeRing(q *queue, m *message) error {
	switch m.request {
	case setVringNum:
		n := m.u32(4)
		if n == 0 || n > maxRing || n&(n-1) != 0 {
			return protocolErrorf("ring of %d entries", n)
		}
		if q.desc != nil && n != q.num {
			return protocolErrorf("size of ring %d changes while it is in use", q.index)
		}
		q.num = n
	case setVringAddr:
		q.at = addresses{flags: uint64(m.u32(4)), desc: m.u64(8), used: m.u64(16), avail: m.u64(24), log: m.u64(32)}
		fresh := q.desc == nil
		if err := q.translate(); err != nil {
			return err
		}
		if fresh {
			return q.resume()
		}
	case setVringBase:
		q.next = uint16(m.u32(4))
	case setVringKick:
		s.d.set.remove(q.kick)
		if err := takeOver(m, &q.kick); err != nil {
			return err
		}
		q.started = true
		if q.kick >= 0 {
			return s.d.set.add(q.kick)
		}
	case setVringCall:
		if err := takeOver(m, &q.call); err != nil {
			return err
		}
		if q.call >= 0 {
			ringFD(q.call)
		}
	case setVringErr:
		return takeOver(m, &q.err)
	case setVringEnable:
		on := m.u32(4)
		if on > 1 {
			return protocolErrorf("ring %d enabled by %d", q.index, on)
		}
		q.enabled = on == 1
	}
	return nil
}

// resume reads from the used ring how far a ring has come that was in use before.
func (q *queue) resume() (err error) {
	defer panicOnFault()()
	defer caught(&err)
	q.done = load16(q.used[2:])
	q.pending, q.sure = 0, false
	return nil
}

// takeOver makes the descriptor of m, if it has one, *fd.
func takeOver(m *message, fd *int) error {
	none := m.u64(0)&noFD != 0
	if none != (len(m.fds) == 0) {
		return protocolErrorf("request %d with %d descriptors", m.request, len(m.fds))
	}
	closeFD(fd)
	if none {
		return nil
	}
	*fd = m.takeFD(0)
	return nonblocking(*fd)
}

// nonblocking makes sure that nothing waits to write to fd.
func nonblocking(fd int) error {
	return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
}

// setFeatures notes what the guest can do.
func (s *session) setFeatures(f uint64) error {
	if f&fVersion1 == 0 {
		return protocolErrorf("virtio legacy devices aren't supported by passt")
	}
	if extra := f &^ s.d.features; extra != 0 {
		return protocolErrorf("features %#x were not offered", extra)
	}
	s.features = f
	have := tapio.VnetHeader
	if f&fGuestCsum != 0 {
		have |= tapio.Csum
		if f&(fGuestTSO4|fGuestTSO6) == fGuestTSO4|fGuestTSO6 {
			have |= tapio.TSO
			if f&fGuestECN != 0 {
				have |= tapio.TSOECN
			}
		}
		if f&(fGuestUSO4|fGuestUSO6) == fGuestUSO4|fGuestUSO6 {
			have |= tapio.USO
		}
	}
	for _, q := range s.q {
		q.lock()
		q.events = f&fEventIdx != 0
		if f&fProtocol == 0 {
			q.enabled = true
		}
		s.mem.logging = f&fLogAll != 0
		q.mu.Unlock()
	}
	s.d.guest.Store(&guestAbility{have: have, merge: f&fMergeable != 0})
	for _, q := range s.q {
		s.begun(q)
	}
	return nil
}

// setMemTable makes the regions of m the guest's memory.
func (s *session) setMemTable(m *message) error {
	n := -1
	if len(m.payload) >= 8 {
		n = int(m.u32(0))
	}
	if n < 0 || n > maxTable || len(m.payload) < 8+n*regionLen || len(m.fds) != n {
		return protocolErrorf("memory table of %d regions in %d bytes with %d descriptors", n, len(m.payload), len(m.fds))
	}
	var regions []region
	var err error
	for i := range n {
		var r region
		if r, err = mapRegion(m, 8+i*regionLen, m.takeFD(i)); err != nil {
			break
		}
		regions = append(regions, r)
	}
	if err != nil {
		for i := range regions {
			regions[i].unmap()
		}
		return err
	}
	return s.replaceMemory(func() []region {
		for i := range s.mem.regions {
			s.mem.regions[i].unmap()
		}
		return regions
	})
}

// changeMemory adds or removes the region of m.
func (s *session) changeMemory(m *message) error {
	if m.request == addMemReg {
		if len(s.mem.regions) >= maxSlots {
			return protocolErrorf("more than %d memory regions", maxSlots)
		}
		r, err := mapRegion(m, 8, m.takeFD(0))
		if err != nil {
			return err
		}
		return s.replaceMemory(func() []region { return append(s.mem.regions, r) })
	}
	gone := parseRegion(m, 8)
	size := m.u64(16)
	for i := range s.mem.regions {
		r := &s.mem.regions[i]
		if r.guest == gone.guest && r.user == gone.user && uint64(len(r.mem)) == size {
			return s.replaceMemory(func() []region {
				rest := append([]region(nil), s.mem.regions[:i]...)
				rest = append(rest, s.mem.regions[i+1:]...)
				r.unmap()
				return rest
			})
		}
	}
	return protocolErrorf("no such memory region to remove")
}

// replaceMemory makes what change returns the guest's memory, and finds the rings there again.
func (s *session) replaceMemory(change func() []region) error {
	return s.withMemory(func() error {
		s.mem.regions = change()
		for _, q := range s.q {
			if q.desc == nil {
				continue
			}
			q.desc, q.avail, q.used = nil, nil, nil // they may be unmapped
			if err := q.translate(); err != nil {
				return err
			}
		}
		return nil
	})
}

// withMemory calls f while nobody uses the guest's memory.
func (s *session) withMemory(f func() error) error {
	for _, q := range s.q {
		q.lock()
		defer q.mu.Unlock()
	}
	return f()
}

func (s *session) eachQueue(f func(*queue) error) error {
	for _, q := range s.q {
		q.lock()
		err := f(q)
		q.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// begun looks whether q can be used now, without waiting for the guest to ring: what it rang for
// before may be lost.
func (s *session) begun(q *queue) {
	q.mu.Lock()
	usable := q.usable()
	q.mu.Unlock()
	if !usable {
		return
	}
	if q.index == rxQueue {
		s.d.rxReady(!s.greeted)
		s.greeted = true
	}
	s.d.set.wake()
}

// report says why a session has ended, if it was not that the front end has gone.
func (d *Device) report(err error) {
	var p protocolError
	var v violation
	switch {
	case errors.Is(err, errHangUp), errors.Is(err, os.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return
	case errors.As(err, &p), errors.As(err, &v), errors.Is(err, errFault):
		d.faults.Add(1)
		d.log.Warn("The connection to the front end is closed: " + err.Error())
	default:
		d.log.Warn("The connection to the front end has failed", zap.Error(err))
	}
}
