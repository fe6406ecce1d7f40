package rtnl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often a dump is asked for again because the tables changed
// under it. A host whose routes flap for longer gets the last, possibly incomplete one.
const dumpTries = 5

// Conn is one rtnetlink socket. It belongs to the network namespace its opening thread
// was in, whatever thread uses it later. One goroutine uses it at a time.
type Conn struct {
	sock    *nl.NetlinkSocket
	sockets map[int]*nl.SocketHandle
}

// Open makes a socket in the calling thread's network namespace. The caller closes it.
// No privilege is needed.
//
// The socket asks for strict checking of dump requests (NETLINK_GET_STRICT_CHK, Linux
// 4.20), so that the kernel filters by interface, table and type. Older kernels still
// work: Dump then returns more than was asked for, and callers compare once more.
func Open() (*Conn, error) {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route netlink socket: %w", err)
	}
	_ = unix.SetsockoptInt(sock.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	// No NETLINK_EXT_ACK: the library looks for an echoed request in the answer to a
	// failed dump, where the kernel sends none, and panics.
	// Answers come from the kernel within the request; a limit only guards against a
	// socket that something else has broken.
	_ = sock.SetReceiveTimeout(&unix.Timeval{Sec: 5})
	return &Conn{
		sock:    sock,
		sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}},
	}, nil
}

// Close gives the socket back.
func (c *Conn) Close() error {
	c.sock.Close()
	return nil
}

// Do sends a request of type typ (RTM_NEWLINK, ...) with NLM_F_ACK and flags, and waits
// for the kernel's verdict: nil, or an error that wraps a unix.Errno.
func (c *Conn) Do(typ int, flags int, body []byte) error {
	_, err := c.execute(typ, flags|unix.NLM_F_ACK, 0, body)
	return err
}

// Get sends a request that is answered by one message of type resType, and returns its
// payload, which is the caller's. Errors wrap a unix.Errno.
func (c *Conn) Get(typ int, resType uint16, body []byte) ([]byte, error) {
	msgs, err := c.execute(typ, 0, resType, body)
	if err != nil {
		return nil, err
	}
	if len(msgs) == 0 {
		return nil, unix.ENODATA
	}
	return msgs[0], nil
}

// Dump returns the payloads of all messages of type resType that a dump request brings;
// they are the caller's. A dump that the kernel marked inconsistent (NLM_F_DUMP_INTR) is
// repeated a few times. Errors wrap a unix.Errno.
func (c *Conn) Dump(typ int, resType uint16, body []byte) ([][]byte, error) {
	var msgs [][]byte
	var err error
	for range dumpTries {
		msgs, err = c.execute(typ, unix.NLM_F_DUMP, resType, body)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			return msgs, err
		}
	}
	return msgs, nil
}

// Each calls f with the payload of each message of type resType that a dump request brings, as it
// comes; it is valid for the call. What the tables were changed under is not asked for again.
// Errors wrap a unix.Errno.
func (c *Conn) Each(typ int, resType uint16, body []byte, f func(msg []byte)) error {
	req := nl.NewNetlinkRequest(typ, unix.NLM_F_DUMP)
	req.Sockets = c.sockets
	req.AddRawData(body)
	err := req.ExecuteIter(unix.NETLINK_ROUTE, resType, func(msg []byte) bool {
		f(msg)
		return true
	})
	if errors.Is(err, nl.ErrDumpInterrupted) {
		return nil
	}
	return err
}

func (c *Conn) execute(typ, flags int, resType uint16, body []byte) ([][]byte, error) {
	req := nl.NewNetlinkRequest(typ, flags)
	req.Sockets = c.sockets
	req.AddRawData(body)
	return req.Execute(unix.NETLINK_ROUTE, resType)
}
