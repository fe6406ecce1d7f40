// Package unixsock opens the UNIX sockets that others connect to by a path. It does not accept: the
// socket is opened with the rights of the user who gave the path, and used by another process.
package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"fusilli/internal/process"
)

// maxProbe is the highest number in the default paths.
const maxProbe = 99

// DefaultPath returns the default path number i, from 1 on.
func DefaultPath(i int) string { return fmt.Sprintf("/tmp/passt_%d.socket", i) }

// Listen returns a socket that listens at path, whose name is name, and which is non-blocking. Beside the
// one to be accepted next, queue clients can wait. A socket that nobody listens on any more is
// replaced. The texts of errors are those other implementations print.
func Listen(name, path string, queue int) (*os.File, error) {
	if inUse(path) {
		return nil, process.Failf("Socket path %s already in use", path)
	}
	f, err := listen(name, path, queue)
	if err != nil {
		return nil, process.Failf("Failed to bind UNIX domain socket: %s", process.Reason(err))
	}
	return f, nil
}

// ListenDefault is Listen at the first default path that nobody uses. It also returns the path.
func ListenDefault(name string) (*os.File, string, error) { return listenFirst(name, DefaultPath) }

func listenFirst(name string, path func(int) string) (*os.File, string, error) {
	var err error = unix.EADDRINUSE
	for i := 1; i <= maxProbe; i++ {
		if inUse(path(i)) {
			continue
		}
		var f *os.File
		if f, err = listen(name, path(i), 0); err == nil {
			return f, path(i), nil
		}
	}
	return nil, "", process.Failf("Failed to bind UNIX domain socket: %s", process.Reason(err))
}

// inUse reports whether somebody listens at path, or may do so.
func inUse(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	switch unix.Connect(fd, &unix.SockaddrUnix{Name: path}) {
	case unix.ENOENT, unix.ECONNREFUSED, unix.EACCES:
		return false
	}
	return true
}

func listen(name, path string, queue int) (*os.File, error) {
	// What is not a socket is somebody's file, and stays.
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Listen(fd, queue)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
