package logging

import (
	"bytes"
	"os"

	"golang.org/x/sys/unix"
)

// SyslogPath is where the system's log listens for datagrams (syslog(3)).
const SyslogPath = "/dev/log"

// DialSyslog connects to the system's log. The name of the file is SyslogName. Whoever
// starts before the log does has none.
func DialSyslog(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return os.NewFile(uintptr(fd), SyslogName), nil
}

// datagrams sends each line that is written to it as a datagram, with its newline.
type datagrams struct{ socket *os.File }

func (d datagrams) Write(lines []byte) (int, error) {
	for line := range bytes.Lines(lines) {
		// One that is too long, or comes while the log is away, is lost.
		unix.Sendto(int(d.socket.Fd()), line, unix.MSG_NOSIGNAL, nil)
	}
	return len(lines), nil
}
