package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Requests of the front end (vhost-user.rst, "Front-end message types").
const (
	getFeatures         = 1
	setFeatures         = 2
	setOwner            = 3
	resetOwner          = 4
	setMemTable         = 5
	setLogBase          = 6
	setLogFD            = 7
	setVringNum         = 8
	setVringAddr        = 9
	setVringBase        = 10
	getVringBase        = 11
	setVringKick        = 12
	setVringCall        = 13
	setVringErr         = 14
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	getQueueNum         = 17
	setVringEnable      = 18
	sendRARP            = 19
	getMaxMemSlots      = 36
	addMemReg           = 37
	remMemReg           = 38
)

const (
	headerLen = 12
	// maxPayload is that of the longest message: a memory table with maxTable regions.
	maxPayload = 8 + maxTable*regionLen
	// maxFDs is the number of descriptors that a message may bring.
	maxFDs = 8

	flagVersion   = 1
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3

	noFD = 1 << 8 // in the payload of setVringKick and the like
)

// size says how long the payload of a request is, and how many descriptors come with it.
type size struct {
	payload   int // bytes; -1: looked at by the handler
	fds, most int // at least and at most so many descriptors
}

// sizes has all requests that are known.
var sizes = map[uint32]size{
	getFeatures: {}, setFeatures: {payload: 8}, setOwner: {}, resetOwner: {},
	setMemTable:         {payload: -1, most: maxFDs},
	setLogBase:          {payload: 16, fds: 1, most: 1},
	setLogFD:            {fds: 1, most: 1},
	setVringNum:         {payload: 8},
	setVringAddr:        {payload: 40},
	setVringBase:        {payload: 8},
	getVringBase:        {payload: 8},
	setVringKick:        {payload: 8, most: 1},
	setVringCall:        {payload: 8, most: 1},
	setVringErr:         {payload: 8, most: 1},
	getProtocolFeatures: {}, setProtocolFeatures: {payload: 8}, getQueueNum: {},
	setVringEnable: {payload: 8}, sendRARP: {payload: 8},
	getMaxMemSlots: {},
	addMemReg:      {payload: 8 + regionLen, fds: 1, most: 1},
	remMemReg:      {payload: 8 + regionLen, most: 1}, // QEMU sends the descriptor, too
}

// message is a request of the front end with its descriptors, which belong to it until they are
// taken.
type message struct {
	request uint32
	flags   uint32
	payload []byte
	fds     []int
}

// takeFD returns descriptor i, which is the caller's from here on.
func (m *message) takeFD(i int) int {
	fd := m.fds[i]
	m.fds[i] = -1
	return fd
}

// closeFDs closes what was not taken.
func (m *message) closeFDs() {
	for _, fd := range m.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	m.fds = nil
}

func (m *message) u64(off int) uint64 { return binary.NativeEndian.Uint64(m.payload[off:]) }
func (m *message) u32(off int) uint32 { return binary.NativeEndian.Uint32(m.payload[off:]) }

var errHangUp = errors.New("front end has closed the connection")

// protocolError is a message that breaks the protocol.
type protocolError string

func (e protocolError) Error() string { return "vhost-user: " + string(e) }

func protocolErrorf(format string, args ...any) error {
	return protocolError(fmt.Sprintf(format, args...))
}

// readMessage waits for the next message on conn, a non-blocking socket in Go's poller. With an
// error no descriptor is left open. errHangUp is the end between two messages.
func readMessage(conn *os.File, m *message, buf *[headerLen + maxPayload]byte) error {
	*m = message{}
	n, err := receive(conn, buf[:headerLen], m)
	if err != nil {
		m.closeFDs()
		return err
	}
	if n == 0 {
		return errHangUp
	}
	if n < headerLen {
		if err := receiveAll(conn, buf[n:headerLen], m); err != nil {
			m.closeFDs()
			return err
		}
	}
	m.request = binary.NativeEndian.Uint32(buf[0:])
	m.flags = binary.NativeEndian.Uint32(buf[4:])
	length := binary.NativeEndian.Uint32(buf[8:])
	if err := m.check(length); err != nil {
		m.closeFDs()
		return err
	}
	m.payload = buf[headerLen : headerLen+int(length)]
	if err := receiveAll(conn, m.payload, m); err != nil {
		m.closeFDs()
		return err
	}
	return nil
}

// check checks a header before the payload is read.
func (m *message) check(length uint32) error {
	s, ok := sizes[m.request]
	switch {
	case !ok:
		return protocolErrorf("unhandled request: %d", m.request)
	case m.flags&3 != flagVersion:
		return protocolErrorf("request %d has version %d", m.request, m.flags&3)
	case length > maxPayload:
		return protocolErrorf("message request too big: %d bytes in request %d", length, m.request)
	case s.payload >= 0 && int(length) != s.payload:
		return protocolErrorf("request %d has %d bytes, %d are right", m.request, length, s.payload)
	case len(m.fds) < s.fds || len(m.fds) > s.most:
		return protocolErrorf("request %d has %d descriptors", m.request, len(m.fds))
	}
	return nil
}

// receiveAll fills b.
func receiveAll(conn *os.File, b []byte, m *message) error {
	for len(b) > 0 {
		n, err := receive(conn, b, m)
		if err != nil {
			return err
		}
		if n == 0 {
			return protocolErrorf("connection closed within a message")
		}
		b = b[n:]
	}
	return nil
}

// receive receives up to len(b) bytes; 0 and nil is the end. Descriptors are added to m.
func receive(conn *os.File, b []byte, m *message) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var oob [256]byte // unix.CmsgSpace(4 * maxFDs), and more than that to see what is too much
	var n, oobn, flags int
	var failure error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, failure = unix.Recvmsg(int(fd), b, oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		return failure != unix.EAGAIN && failure != unix.EINTR
	})
	if err == nil {
		err = failure
	}
	if err != nil {
		return 0, err
	}
	if oobn > 0 {
		if err := m.addFDs(oob[:oobn]); err != nil {
			return 0, err
		}
	}
	if flags&unix.MSG_CTRUNC != 0 || len(m.fds) > maxFDs {
		return 0, protocolErrorf("too many descriptors in one message")
	}
	return n, nil
}

func (m *message) addFDs(oob []byte) error {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].Header.Level != unix.SOL_SOCKET || list[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			return err
		}
		m.fds = append(m.fds, fds...)
	}
	return nil
}

// appendReply appends the reply to request with the payload p to b.
func appendReply(b []byte, request uint32, p ...uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, request)
	b = binary.NativeEndian.AppendUint32(b, flagVersion|flagReply)
	b = binary.NativeEndian.AppendUint32(b, uint32(4*len(p)))
	for _, v := range p {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// halves are the 32-bit words of v, in host byte order.
func halves(v uint64) (uint32, uint32) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], v)
	return binary.NativeEndian.Uint32(b[:]), binary.NativeEndian.Uint32(b[4:])
}
