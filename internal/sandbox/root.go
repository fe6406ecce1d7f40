package sandbox

import (
	"errors"

	"golang.org/x/sys/unix"
)

// mountPoints are directories to mount the empty root on. Which one does not matter, but not
// every container has the first.
var mountPoints = []string{"/tmp", "/dev", "/proc"}

// emptyRoot leaves the process's mount namespace, which must be its own, with an empty and
// read-only file system and nothing else. Descriptors that are open stay usable. With fallback,
// chroot(2) does where pivot_root(2) is refused, as it is on an initial ramdisk; the old mounts
// are then below the new one, out of reach without CAP_SYS_CHROOT. It reports which it was.
func emptyRoot(fallback bool) (how string, err error) {
	if err := unix.Mount("", "/", "", unix.MS_UNBINDABLE|unix.MS_REC, ""); err != nil {
		return "", &stepError{"Failed to remount /", err}
	}
	dir := ""
	for _, dir = range mountPoints {
		err = unix.Mount("tmpfs", dir, "tmpfs",
			unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_RDONLY, "nr_inodes=2,nr_blocks=0,mode=0555")
		if !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if err == nil {
		err = unix.Chdir(dir)
	}
	if err != nil {
		return "", &stepError{"Failed to mount empty tmpfs for sandboxing", err}
	}
	// The new root is on top of the old one's, which is then the current directory.
	err = unix.PivotRoot(".", ".")
	switch {
	case err == nil:
		if err := unix.Unmount(".", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return "", &stepError{"Failed to unmount original root filesystem", err}
		}
		if err := unix.Chdir("/"); err != nil {
			return "", &stepError{"Failed to enter the empty root", err}
		}
		return "pivot_root", nil
	case !fallback:
		return "", &stepError{"Failed to pivot_root() into empty tmpfs", err}
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return "", &stepError{"Failed to move the empty tmpfs onto /", err}
	}
	if err := unix.Chroot("."); err != nil {
		return "", &stepError{"Failed to chroot() into empty tmpfs", err}
	}
	if err := unix.Chdir("/"); err != nil {
		return "", &stepError{"Failed to enter the empty root", err}
	}
	return "chroot", nil
}
