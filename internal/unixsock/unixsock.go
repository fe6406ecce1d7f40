// Package unixsock opens the UNIX sockets that others connect to by a path, with the rights of the
// user who gave the path, and keeps the clients of other users away from them, in the process that
// serves them.
//
// # Whose clients
//
// A client may be of the user that the process runs as, or root. There are two checks.
//
// The socket's file has mode 0600, whatever the umask, from the moment it exists. The kernel asks
// for the right to write to it at connect(2).
//
// The server asks the kernel for the credentials of each client (SO_PEERCRED of socket(7)), since
// modes can be changed. It often lives in a user namespace, and sees the client's user as that
// namespace has it:
//
//   - its own user is its own number, be the client inside or outside;
//   - 0 is root of the namespace, who has all rights over the server;
//   - who is not mapped into the namespace is the overflow user (user_namespaces(7)): root of the
//     host, and
//     every other user of it, who cannot be told apart. In a namespace without a map that is
//     everybody, the
//     own user too. They have passed the first check, so they are let in as long as the file's mode
//     still is
//     one that only the user and root get past.
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

// Listen returns a socket that listens at path, whose name is name, and which is non-blocking. Only
// the user can connect. Beside the one to be accepted next, queue clients can wait. A socket that
// nobody listens on any more is replaced. The texts of errors are those other implementations
// print.
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
	if err = Bind(fd, path); err == nil {
		err = unix.Listen(fd, queue)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Bind binds socket fd to path with mode 0600. It changes the process's umask meanwhile, so nothing
// else may create files at the same time.
func Bind(fd int, path string) error {
	defer unix.Umask(unix.Umask(0o177)) // a chmod(2) afterwards would be too late, and follow links
	return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
}

// File returns the file of the socket at path, for ForUser. Its name is name.
func File(name, path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
