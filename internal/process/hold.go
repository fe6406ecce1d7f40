package process

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// preparedHolder is what hold needs.
type preparedHolder struct {
	link     uintptr // above linkFD
	hostName string
	command  preparedCommand

	// What it reports once: the report, and a descriptor of its network namespace.
	report  holderReport
	files   [holderFiles]byte // control message
	iov     unix.Iovec        // report
	message unix.Msghdr       // iov and files
}

// holderFiles is the size of a control message with one descriptor.
const holderFiles = unix.SizeofCmsghdr + 8 // as aligned

// compose makes ready what it reports. All of it is at the same place in a fork.
func (p *preparedHolder) compose() {
	head := (*unix.Cmsghdr)(unsafe.Pointer(&p.files))
	head.Level, head.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	head.SetLen(unix.CmsgLen(4))
	p.iov.Base = (*byte)(unsafe.Pointer(&p.report))
	p.iov.SetLen(int(unsafe.Sizeof(p.report)))
	p.message.Iov = &p.iov
	p.message.SetIovlen(1)
	p.message.Control = &p.files[0]
	p.message.SetControllen(unix.CmsgSpace(4))
}

// Strings as the kernel wants them, at their place in the program.
const (
	pathUIDMap    = "/proc/self/uid_map\x00"
	pathGIDMap    = "/proc/self/gid_map\x00"
	pathSetgroups = "/proc/self/setgroups\x00"
	pathNetNS     = "/proc/self/ns/net\x00"
	pathPing      = "/proc/sys/net/ipv4/ping_group_range\x00"
	pathRoot      = "/\x00"
	pathProc      = "/proc\x00"
	typeProc      = "proc\x00"
	pathShell     = shell + "\x00"
	noText        = "\x00"
)

// raw is a system call that nothing else happens in.
//
//go:nosplit
//go:norace
//go:nocheckptr
func raw(nr, a1, a2, a3, a4, a5 uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(nr, a1, a2, a3, a4, a5, 0)
	return errno
}

// bytesOf is the address of s.
//
//go:nosplit
func bytesOf(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s))) }

// rawClone is a fork with flags.
//
//go:nosplit
//go:norace
func rawClone(flags uintptr) (pid uintptr, errno syscall.Errno) {
	if runtime.GOARCH == "s390x" { // the stack comes first
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, 0, flags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0)
		return pid, errno
	}
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, flags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	return pid, errno
}

// overwrite writes text to the file at path, which ends with a NUL.
//
//go:nosplit
//go:norace
//go:nocheckptr
func overwrite(path, text string) syscall.Errno {
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, unix.AT_FDCWD&(1<<32-1), bytesOf(path),
		unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	errno = raw(unix.SYS_WRITE, fd, bytesOf(text), uintptr(len(text)), 0, 0)
	raw(unix.SYS_CLOSE, fd, 0, 0, 0, 0)
	return errno
}

// hold is the holder, a child of cloneSelf's in a new PID namespace: it creates the other
// namespaces, makes them habitable, waits until it is released, and executes the command. It tells
// of all that on its end of the link, which becomes its only descriptor beside the standard
// streams.
//
// A holder could be this program, executed again; but to start Go's runtime and all packages takes
// longer than all it has to do. What is said at cloneSelf about the child is true of this one.
//
//go:nosplit
//go:norace
//go:nocheckptr
func hold(p *preparedHolder) {
	var (
		r      holderReport
		action [4]uintptr // struct sigaction of the kernel's: the default
		word   [8]byte
		errno  syscall.Errno
		n      uintptr
		i      int
	)

	// The launcher's end kills us, as the system has it or, should it have come before, as the end
	// of the link: no copy of its other end may stay open here.
	raw(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	raw(unix.SYS_DUP3, p.link, linkFD, unix.O_CLOEXEC, 0, 0)
	if raw(unix.SYS_CLOSE_RANGE, linkFD+1, 1<<32-1, 0, 0, 0) != 0 { // before Linux 5.9
		for n = linkFD + 1; n < 1024; n++ {
			raw(unix.SYS_CLOSE, n, 0, 0, 0, 0)
		}
	}

	r.stage = stageNamespaces
	if r.errno = raw(unix.SYS_UNSHARE, commandNamespaces, 0, 0, 0, 0); r.errno != 0 {
		goto fail
	}
	n, _, r.errno = syscall.RawSyscall6(unix.SYS_OPENAT, unix.AT_FDCWD&(1<<32-1), bytesOf(pathNetNS), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if r.errno != 0 {
		r.stage = stageNetNS
		goto fail
	}
	*(*int32)(unsafe.Pointer(&p.files[unix.SizeofCmsghdr])) = int32(n)
	// Without a user namespace of our own, mounts would show up outside.
	r.missed.proc = raw(unix.SYS_MOUNT, bytesOf(noText), bytesOf(pathRoot), bytesOf(noText), unix.MS_SLAVE|unix.MS_REC, 0)
	if r.missed.proc == 0 {
		r.missed.proc = raw(unix.SYS_MOUNT, bytesOf(typeProc), bytesOf(pathProc), bytesOf(typeProc),
			unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
	}
	r.missed.ping = overwrite(pathPing, "0 0")
	r.missed.name = raw(unix.SYS_SETHOSTNAME, bytesOf(p.hostName), uintptr(len(p.hostName)), 0, 0, 0)
	p.report = r
	raw(unix.SYS_SENDMSG, linkFD, uintptr(unsafe.Pointer(&p.message)), unix.MSG_NOSIGNAL, 0, 0)
	raw(unix.SYS_CLOSE, n, 0, 0, 0, 0)

	for {
		n, _, r.errno = syscall.RawSyscall6(unix.SYS_READ, linkFD, uintptr(unsafe.Pointer(&word)), unsafe.Sizeof(word), 0, 0, 0)
		if r.errno == 0 && n > 0 {
			break
		}
		if r.errno != syscall.EINTR { // there is no launcher any more
			goto exit
		}
	}
	// the launcher ignores it
	raw(unix.SYS_RT_SIGACTION, uintptr(syscall.SIGPIPE), uintptr(unsafe.Pointer(&action)), 0, 8, 0)
	raw(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)

	r.stage = stageCommand
	r.errno = syscall.ENOENT
	for i = 0; i < len(p.command.tries); i++ {
		errno = raw(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.command.tries[i].path)),
			uintptr(unsafe.Pointer(&p.command.argv[0])), uintptr(unsafe.Pointer(&p.command.envv[0])), 0, 0)
		if errno == syscall.ENOEXEC {
			errno = raw(unix.SYS_EXECVE, bytesOf(pathShell), uintptr(unsafe.Pointer(&p.command.tries[i].script[0])),
				uintptr(unsafe.Pointer(&p.command.envv[0])), 0, 0)
		}
		if !p.command.search || errno != syscall.ENOENT && errno != syscall.ENOTDIR && errno != syscall.EACCES {
			r.errno = errno
			goto fail
		}
		if errno == syscall.EACCES {
			r.errno = errno // tell this one unless a later directory has it
		}
	}

fail:
	raw(unix.SYS_WRITE, linkFD, uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r), 0, 0)
exit:
	for {
		raw(unix.SYS_EXIT_GROUP, 1, 0, 0, 0, 0)
	}
}
