package unixsock

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"strconv"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// defaultOverflow is the kernel's own choice of the overflow user.
const defaultOverflow = 65534

// Peer returns the credentials of the process that connected to c. The PID is 0 if that process is
// not visible from here.
func Peer(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if ctlErr != nil {
		return nil, ctlErr
	}
	return cred, err
}

// ForUser returns l without the clients of other users, which are hung up on and logged. file is
// that of the socket (File). Both are closed with the listener that is returned. log is to be a
// limited one.
func ForUser(l net.Listener, file *os.File, log *zap.Logger) net.Listener {
	overflow := uint64(defaultOverflow)
	if text, err := os.ReadFile("/proc/sys/kernel/overflowuid"); err == nil {
		if n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 32); err == nil {
			overflow = n
		}
	}
	return &forUser{Listener: l, file: file, log: log, peer: Peer, own: uint32(os.Geteuid()), overflow: uint32(overflow)}
}

type forUser struct {
	net.Listener
	file          *os.File
	log           *zap.Logger
	peer          func(net.Conn) (*unix.Ucred, error)
	own, overflow uint32
}

// Accept implements net.Listener.
func (l *forUser) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := l.peer(c)
		switch {
		case err != nil:
			l.log.Warn("Refused a client whose user is not known", zap.Error(err))
		case l.admits(peer.Uid):
			return c, nil
		default:
			l.log.Warn("Refused a client of another user", zap.Uint32("uid", peer.Uid))
		}
		c.Close()
	}
}

// admits reports whether user uid, as our user namespace has it, may be a client.
func (l *forUser) admits(uid uint32) bool {
	if uid == l.overflow { // it may be anybody, even if our own is this one
		st, err := l.file.Stat()
		return err == nil && st.Mode()&fs.ModePerm&0o077 == 0
	}
	return uid == l.own || uid == 0
}

// Close implements net.Listener.
func (l *forUser) Close() error {
	err := l.Listener.Close()
	l.file.Close() // a second time, too
	return err
}
