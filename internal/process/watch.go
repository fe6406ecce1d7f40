package process

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lookInterval is how often a path is looked at where nothing reports its end.
const lookInterval = time.Second

// openWatch opens what tells that the namespace at path is gone, for the translator to
// wait for. It is done by the launcher, because the translator may not be allowed to.
// Namespaces are opened after it, so that none can vanish unnoticed in between.
func openWatch(path string) ([]*os.File, error) {
	var files []*os.File
	if pid := processOf(path); pid != 0 {
		// Also where the path only leads through the process's root: its mounts
		// go with it, and nothing is deleted then.
		if fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK); err == nil {
			files = append(files, os.NewFile(uintptr(fd), fdProcess))
		}
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		closeAll(files)
		return nil, Failf("netns dir open: %s, exiting", Reason(err))
	}
	if isVirtual(dir) {
		if len(files) > 0 {
			unix.Close(dir)
			return files, nil
		}
		return []*os.File{os.NewFile(uintptr(dir), fdDir)}, nil
	}
	if fd, err := inotify(filepath.Dir(path)); err == nil {
		// Unlike an open directory, it does not keep a file system from being unmounted.
		unix.Close(dir)
		return append(files, os.NewFile(uintptr(fd), fdInotify)), nil
	}
	return append(files, os.NewFile(uintptr(dir), fdDir)), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// processOf is the PID of a path below /proc/PID, 0 for other paths.
func processOf(path string) int {
	rest, ok := strings.CutPrefix(filepath.Clean(path), "/proc/")
	if !ok {
		return 0
	}
	number, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(number)
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

// isVirtual reports whether a directory is on a file system that reports no deletions.
func isVirtual(dir int) bool {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return true
	}
	switch int64(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	}
	return false
}

// inotify returns an inotify descriptor for deletions in dir.
func inotify(dir string) (int, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE|unix.IN_DELETE_SELF|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// awaitGone waits until fd, made by openWatch for path, tells that the namespace is gone, and
// calls gone then. It owns the descriptor, which it closes last: to close one of inotify takes
// the kernel some 15 ms.
func awaitGone(ctx context.Context, kind string, fd int, path string, gone func()) {
	if kind == fdDir {
		defer unix.Close(fd)
		if awaitMissing(ctx, fd, filepath.Base(path)) {
			gone()
		}
		return
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return
	}
	f := os.NewFile(uintptr(fd), kind)
	defer f.Close()
	if kind == fdProcess && awaitReadable(ctx, f) == nil || kind == fdInotify && awaitDeleted(ctx, f, path) {
		gone()
	}
}

// awaitMissing looks for name in dir until it is not there any more. A name that may not
// be looked at is there.
func awaitMissing(ctx context.Context, dir int, name string) bool {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EACCES) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// awaitDeleted reads inotify events until path is deleted, or its directory is.
func awaitDeleted(ctx context.Context, f *os.File, path string) bool {
	events := make([]byte, 64<<10)
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		n, err := f.Read(events)
		if err != nil {
			return false
		}
		if deleted(events[:n], path) {
			return true
		}
	}
}

// deleted reports whether inotify(7) events tell of the end of path. Some can be lost only
// behind 16384 others that nobody has read yet; a path that cannot be looked at any more is
// then taken to be there.
func deleted(events []byte, path string) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		size := int(binary.NativeEndian.Uint32(events[12:]))
		if size > len(events)-unix.SizeofInotifyEvent {
			return false
		}
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:][:size]), "\x00")
		switch {
		case mask&(unix.IN_IGNORED|unix.IN_UNMOUNT|unix.IN_DELETE_SELF) != 0:
			return true
		case mask&unix.IN_DELETE != 0 && name == filepath.Base(path):
			return true
		}
		events = events[unix.SizeofInotifyEvent+size:]
	}
	return false
}

// awaitReadable waits in Go's poller until f, a non-blocking descriptor, is readable or
// at its end.
func awaitReadable(ctx context.Context, f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 && err == nil
	})
}
