package sandbox

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Enclose gives the calling thread a root directory in which there is nothing but dirs, which are
// absolute paths of one name, with what is or will be mounted below them. The directory of a
// process is its first thread's: that is the one to call this, locked to its goroutine. It needs
// CAP_SYS_ADMIN.
//
// Other threads, and those they create, keep the old root: this is for a process that only waits
// and opens no files any more, and confines nobody. For that, see Confine and Renounce.
func Enclose(dirs ...string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return &stepError{"Failed to create a mount namespace", err}
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return &stepError{"Failed to remount /", err}
	}
	const flags = unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID
	const top = "/tmp"
	if err := unix.Mount("tmpfs", top, "tmpfs", flags, "nr_inodes=16,nr_blocks=1,mode=0755"); err != nil {
		return &stepError{"Failed to mount a root directory", err}
	}
	for _, d := range dirs {
		err := os.Mkdir(top+d, 0o755)
		if err == nil {
			err = unix.Mount(d, top+d, "", unix.MS_BIND|unix.MS_REC, "")
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &stepError{"Failed to mount " + d, err}
		}
	}
	if err := unix.Mount("", top, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return &stepError{"Failed to make the root directory read-only", err}
	}
	err := unix.Chdir(top)
	if err == nil {
		err = unix.PivotRoot(".", ".") // the old one is on top of it afterwards, and where we are
	}
	if err == nil {
		err = unix.Unmount(".", unix.MNT_DETACH)
	}
	if err == nil {
		err = unix.Chdir("/")
	}
	if err != nil {
		return &stepError{"Failed to enter the root directory", err}
	}
	return nil
}
