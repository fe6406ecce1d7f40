package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

// refuseVariable has the test binary execute its arguments where some system calls are refused: a
// refusal as JSON.
const refuseVariable = "FUSILLI_E2E_REFUSE"

// refusal is what a process and its descendants may not do, as in a container that forbids it.
type refusal struct {
	Calls      []uint32 // numbers of system calls: EPERM
	CloneFlags uint32   // of clone(2) and unshare(2), any of these: EPERM
	Family     uint32   // of socket(2): EAFNOSUPPORT, as where the kernel has none of it
}

// refuse executes argv with r in force. It returns only if that fails.
func refuse(r refusal, argv []string) error {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		anyOf = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	)
	prog := []unix.SockFilter{{Code: load, K: 0}} // the number of the call
	for _, nr := range r.Calls {
		prog = append(prog, unix.SockFilter{Code: equal, K: nr, Jf: 1}, unix.SockFilter{Code: ret, K: eperm})
	}
	if r.CloneFlags != 0 {
		prog = append(prog,
			unix.SockFilter{Code: equal, K: unix.SYS_CLONE, Jt: 1},
			unix.SockFilter{Code: equal, K: unix.SYS_UNSHARE, Jf: 3},
			unix.SockFilter{Code: load, K: 16}, // its first argument
			unix.SockFilter{Code: anyOf, K: r.CloneFlags, Jf: 1},
			unix.SockFilter{Code: ret, K: eperm})
	}
	if r.Family != 0 {
		prog = append(prog,
			unix.SockFilter{Code: load, K: 0},
			unix.SockFilter{Code: equal, K: unix.SYS_SOCKET, Jf: 3},
			unix.SockFilter{Code: load, K: 16}, // its first argument
			unix.SockFilter{Code: equal, K: r.Family, Jf: 1},
			unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)})
	}
	prog = append(prog, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)), 0, 0); err != nil {
		return err
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

// refused is the test binary's part as the one that executes its arguments.
func refused(text string) int {
	var r refusal
	err := json.Unmarshal([]byte(text), &r)
	if err == nil {
		os.Unsetenv(refuseVariable)
		err = refuse(r, os.Args[1:])
	}
	fmt.Fprintln(os.Stderr, "refuse:", err)
	return 125
}

// TestIsolationThatIsRefused: where the system does not let the translator be isolated, it says so
// and does not run, unless less was asked for, or what is refused is there only once more.
func TestIsolationThatIsRefused(t *testing.T) {
	t.Parallel()
	self, err := bed.Provide("/proc/self/exe", "refuse")
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t, defaultBed)
	for _, row := range []struct {
		name   string
		refuse refusal
		args   []string
		status int
		says   string
	}{
		{"nothing", refusal{}, nil, 0, ""},
		{"pivot_root", refusal{Calls: []uint32{unix.SYS_PIVOT_ROOT}}, nil, 1,
			"Failed to pivot_root() into empty tmpfs: Operation not permitted"},
		{"pivot_root, with the fallback", refusal{Calls: []uint32{unix.SYS_PIVOT_ROOT}}, []string{"--chroot-fallback", "-d"}, 0,
			"Failed to pivot_root(), fallback to chroot()..."},
		{"pivot_root and chroot", refusal{Calls: []uint32{unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT}}, []string{"--chroot-fallback"}, 1,
			"Failed to chroot() into empty tmpfs: Operation not permitted"},
		{"mounts", refusal{Calls: []uint32{unix.SYS_MOUNT}}, nil, 1, "Failed to remount /: Operation not permitted"},
		{"seccomp", refusal{Calls: []uint32{unix.SYS_SECCOMP}}, nil, 1,
			"Failed to set the system call filter: Operation not permitted"},
		{"Landlock", refusal{Calls: []uint32{unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_RESTRICT_SELF}}, nil, 0, ""},
		{"user namespaces", refusal{CloneFlags: unix.CLONE_NEWUSER}, nil, 1, "Couldn't create user namespace: Operation not permitted"},
		{"closing of files", refusal{Calls: []uint32{unix.SYS_GETDENTS64}}, nil, 1,
			"Failed to close files leaked by parent: "},
		{"IPv6", refusal{Family: unix.AF_INET6}, nil, 0, ""},
		{"IPv6, where there is to be nothing else", refusal{Family: unix.AF_INET6}, []string{"-6"}, 1,
			"IPv6 not available but --ipv6-only given"},
		{"other namespaces", refusal{CloneFlags: unix.CLONE_NEWIPC}, nil, 1, "Operation not permitted"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if raceEnabled && row.name == "seccomp" {
				t.Skip("a program with the race detector has no filter")
			}
			text, err := json.Marshal(row.refuse)
			if err != nil {
				t.Fatal(err)
			}
			args := append(append([]string{program, "--config-net"}, row.args...), "--", "true")
			cmd := exec.Command(self, args...)
			cmd.Env = append(os.Environ(), refuseVariable+"="+string(text))
			p, err := b.Host.Spawn(bed.Nobody, cmd)
			if err != nil {
				t.Fatal(err)
			}
			if status := p.Status(); status != row.status || !strings.Contains(p.Stderr(), row.says) {
				t.Errorf("status %d, says %q; want %d and %q", status, p.Stderr(), row.status, row.says)
			}
		})
	}
}

// TestListenerThatFails: passt ends when no client can be accepted any more.
func TestListenerThatFails(t *testing.T) {
	t.Parallel()
	self, err := bed.Provide("/proc/self/exe", "refuse-accept")
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t, defaultBed)
	text, err := json.Marshal(refusal{Calls: []uint32{unix.SYS_ACCEPT4}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(scratch(t), "socket")
	cmd := exec.Command(self, asPasst(t), "-f", "-s", path)
	cmd.Env = append(os.Environ(), refuseVariable+"="+string(text))
	p, err := b.Host.Spawn(bed.Nobody, cmd)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "passt to take a client", func() bool {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if status, want := p.Status(), "Error on listening Unix socket, exiting"; status != 1 || !strings.Contains(p.Stderr(), want) {
		t.Errorf("status %d, says %q; want 1 and %q", status, p.Stderr(), want)
	}
}

// TestProcThatCannotBeMounted: where /proc/sys is read-only, as in containers, the command runs
// with what there is, after a word about it.
func TestProcThatCannotBeMounted(t *testing.T) {
	t.Parallel()
	b := newBed(t, defaultBed)
	p, err := b.Host.Spawn(bed.Root, exec.Command("unshare", "-m", "sh", "-c",
		`mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" --config-net -- true`, program))
	if err != nil {
		t.Fatal(err)
	}
	status, says := p.Status(), p.Stderr()
	if status != 0 {
		t.Errorf("status %d", status)
	}
	for _, want := range []string{"Couldn't mount /proc: ", "Cannot set ping_group_range, ICMP requests might fail: "} {
		if !strings.Contains(says, want) {
			t.Errorf("does not say %q, but %q", want, says)
		}
	}
}
