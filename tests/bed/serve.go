package bed

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

// ServeTCP has handle called, in a goroutine of its own, for each connection to addr, "IP:port", of
// the namespace, and closes the connection afterwards, until the listener is closed. Errors are
// those of Listen.
func (n *NS) ServeTCP(addr string, handle func(c net.Conn)) (io.Closer, error) {
	l, err := n.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l, nil
}

// ServeUDP answers datagrams to addr, "IP:port", of the namespace with what answer makes of each,
// nil for nothing, until the socket is closed. b is valid until answer returns; local is the
// socket's own address. Errors are those of ListenPacket.
func (n *NS) ServeUDP(addr string, answer func(local, from net.Addr, b []byte) []byte) (io.Closer, error) {
	c, err := n.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	go func() {
		for b := make([]byte, 1<<16); ; {
			m, from, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // what an earlier answer has met
			}
			if out := answer(c.LocalAddr(), from, b[:m]); out != nil {
				c.WriteTo(out, from) // nobody waits for what is lost
			}
		}
	}()
	return c, nil
}

// serveDNSLimit is for how long a connection to ServeDNS may last.
const serveDNSLimit = time.Minute

// ServeDNS answers queries at addr, "IP:port", of the namespace with what answer makes of each, nil
// for nothing, over UDP and TCP, until what it returns is closed. Errors are those of Listen and
// ListenPacket.
func (n *NS) ServeDNS(addr string, answer func(query []byte) []byte) (io.Closer, error) {
	udp, err := n.ServeUDP(addr, func(_, _ net.Addr, b []byte) []byte { return answer(b) })
	if err != nil {
		return nil, err
	}
	tcp, err := n.ServeTCP(addr, func(c net.Conn) {
		c.SetDeadline(time.Now().Add(serveDNSLimit))
		q, err := ReadDNS(c)
		if err != nil {
			return
		}
		if a := answer(q); a != nil {
			WriteDNS(c, a)
		}
	})
	if err != nil {
		udp.Close()
		return nil, err
	}
	return closers{udp, tcp}, nil
}

// closers is several things to be closed together.
type closers []io.Closer

// Close closes them all.
func (l closers) Close() error {
	var errs []error
	for _, c := range l {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// ReadDNS reads a message with its length before it, as TCP has it (RFC 1035, section 4.2.2).
// Errors are those of c.
func ReadDNS(c net.Conn) ([]byte, error) {
	var h [2]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(h[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

// WriteDNS writes b like that.
func WriteDNS(c net.Conn, b []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}
