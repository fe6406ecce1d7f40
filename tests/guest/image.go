package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelPackage depends on the package of the current kernel.
const kernelPackage = "linux-image-cloud-amd64"

// bootModules are what the kernel lacks to reach the agent and the network.
var bootModules = []string{"virtio_pci", "virtio_console", "virtio_net"}

// programs are taken from this machine. Those of optional are, if they are there.
var (
	programs = []string{"/bin/busybox", "/bin/dash", "/bin/ip"}
	optional = []string{"/usr/bin/iperf3", "/sbin/dhclient", "/usr/bin/ping", "/usr/bin/rdisc6"}
)

// Image is what a guest boots.
type Image struct {
	Kernel, Initrd string // paths
	KVM            bool   // it can be booted with KVM; otherwise it is emulated
}

// How an image is passed to a process of the same program. The last may be set by the user.
const (
	kernelVar = "GUEST_KERNEL"
	initrdVar = "GUEST_INITRD"
	accelVar  = "GUEST_ACCEL" // kvm or tcg
)

// Environ passes img to PassedImage in a process with this environment.
func (img *Image) Environ() []string {
	accel := "tcg"
	if img.KVM {
		accel = "kvm"
	}
	return []string{kernelVar + "=" + img.Kernel, initrdVar + "=" + img.Initrd, accelVar + "=" + accel}
}

// PassedImage is the image that Environ has passed to this process.
func PassedImage() *Image {
	return &Image{Kernel: os.Getenv(kernelVar), Initrd: os.Getenv(initrdVar), KVM: os.Getenv(accelVar) == "kvm"}
}

// kvmBoots is how long an image may take to boot with KVM, which is ten times what it takes where
// KVM is of use.
const kvmBoots = 20 * time.Second

// bootsWithKVM tries it. There are hosts that have the device and refuse what QEMU asks of it, and
// some that emulate each instruction of a kernel that was not made for them.
func (img Image) bootsWithKVM() bool {
	if accel := os.Getenv(accelVar); accel != "" {
		return accel == "kvm"
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), kvmBoots)
	defer cancel()
	img.KVM = true
	vm, err := bootVM(ctx, Config{Image: &img})
	if err != nil {
		return false
	}
	vm.Close()
	return true
}

// Build makes the image, or returns the one that was made of the same parts before. It needs go,
// dpkg and, the first time, apt-get with its lists and network. It boots the image if there is KVM.
func Build() (*Image, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "fusilli-guest")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	kernel, err := fetchKernel(cache)
	if err != nil {
		return nil, fmt.Errorf("kernel for the guest: %w", err)
	}
	img, err := buildImage(cache, kernel)
	if err != nil {
		return nil, fmt.Errorf("image of the guest: %w", err)
	}
	img.KVM = img.bootsWithKVM()
	return img, nil
}

// fetchKernel returns the directory where the contents of the kernel's package are. One that was
// fetched before will do for ever.
func fetchKernel(cache string) (string, error) {
	dir := filepath.Join(cache, "kernel")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	out, err := output(exec.Command("apt-cache", "depends", kernelPackage))
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindStringSubmatch(out)
	if m == nil {
		return "", errors.New("apt-cache knows no " + kernelPackage + ": run apt-get update")
	}
	tmp, err := os.MkdirTemp(cache, "fetch")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	get := exec.Command("apt-get", "download", m[1])
	get.Dir = tmp
	if _, err := output(get); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("%d packages came: %v", len(debs), err)
	}
	if _, err := output(exec.Command("dpkg-deb", "-x", debs[0], filepath.Join(tmp, "x"))); err != nil {
		return "", err
	}
	return dir, os.Rename(filepath.Join(tmp, "x"), dir)
}

func output(c *exec.Cmd) (string, error) {
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s", c.Args, err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// entry is a file of the initramfs.
type entry struct {
	mode fs.FileMode
	data []byte // or where a link leads
}

// buildImage gathers the files and writes the initramfs unless there is one of the same.
func buildImage(cache, kernel string) (*Image, error) {
	kernels, err := filepath.Glob(filepath.Join(kernel, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("%d kernels in %s: %v", len(kernels), kernel, err)
	}
	files := make(map[string]entry)
	for _, gather := range []func(map[string]entry) error{
		addAgent, addPrograms, addConfig, func(f map[string]entry) error { return addModules(f, kernel) },
	} {
		if err := gather(files); err != nil {
			return nil, err
		}
	}
	archive := cpio(files)
	sum := sha256.Sum256(archive)
	img := &Image{Kernel: kernels[0], Initrd: filepath.Join(cache, "initrd-"+hex.EncodeToString(sum[:8]))}
	if _, err := os.Stat(img.Initrd); err == nil {
		return img, nil
	}
	tmp := img.Initrd + ".new"
	if err := os.WriteFile(tmp, archive, 0o644); err != nil {
		return nil, err
	}
	return img, os.Rename(tmp, img.Initrd)
}

// addAgent compiles the agent. Go remembers it.
func addAgent(files map[string]entry) error {
	tmp, err := os.MkdirTemp("", "agent")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "fusilli/tests/guest/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := output(build); err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	files["init"] = entry{0o755, b}
	for _, name := range []string{"send", "sink", "echo", "blast", "suck", "flood", "ring", "rr", "crr"} {
		files["sbin/"+name] = entry{fs.ModeSymlink | 0o777, []byte("/init")}
	}
	return nil
}

// addPrograms copies programs and the libraries they need, and makes links for busybox's parts.
func addPrograms(files map[string]entry) error {
	have := slices.Clone(programs)
	for _, p := range optional {
		if _, err := os.Stat(p); err == nil {
			have = append(have, p)
		}
	}
	for _, p := range have {
		if err := addELF(files, p, "bin/"+filepath.Base(p)); err != nil {
			return err
		}
	}
	applets, err := output(exec.Command(programs[0], "--list"))
	if err != nil {
		return err
	}
	// Busybox's own shell prefers busybox's parts to the real programs.
	files["bin/sh"] = entry{fs.ModeSymlink | 0o777, []byte("dash")}
	for name := range strings.FieldsSeq(applets) {
		if _, ok := files["bin/"+name]; !ok && files["sbin/"+name].data == nil {
			files["bin/"+name] = entry{fs.ModeSymlink | 0o777, []byte("busybox")}
		}
	}
	return nil
}

var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/lib", "/usr/lib"}

// addELF copies the program or library at path, and what it is linked with.
func addELF(files map[string]entry, path, as string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	files[as] = entry{0o755, b}
	e, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer e.Close()
	libs, err := e.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				return err
			}
			loader := strings.TrimRight(string(name), "\x00")
			if _, ok := files[loader[1:]]; !ok {
				if err := addELF(files, loader, loader[1:]); err != nil {
					return err
				}
			}
		}
	}
	for _, lib := range libs {
		as := "lib/x86_64-linux-gnu/" + lib
		if _, ok := files[as]; ok {
			continue
		}
		i := slices.IndexFunc(libraryDirs, func(d string) bool {
			_, err := os.Stat(filepath.Join(d, lib))
			return err == nil
		})
		if i < 0 {
			return fmt.Errorf("%s needs %s, which is not there", path, lib)
		}
		if err := addELF(files, filepath.Join(libraryDirs[i], lib), as); err != nil {
			return err
		}
	}
	return nil
}

// addModules adds bootModules and what they need, in an order in which they can be inserted.
func addModules(files map[string]entry, kernel string) error {
	paths := make(map[string]string)
	root := filepath.Join(kernel, "lib/modules")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			paths[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	depends := regexp.MustCompile(`\x00depends=([^\x00]*)\x00`)
	var order []string
	var visit func(name string) error
	visit = func(name string) error {
		path, ok := paths[strings.ReplaceAll(name, "-", "_")]
		if !ok {
			return nil // built in
		}
		as := "lib/modules/" + filepath.Base(path)
		if _, done := files[as]; done {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files[as] = entry{0o644, b}
		if m := depends.FindSubmatch(b); m != nil {
			for dep := range strings.SplitSeq(string(m[1]), ",") {
				if err := visit(dep); err != nil {
					return err
				}
			}
		}
		order = append(order, "/"+as)
		return nil
	}
	for _, name := range bootModules {
		if err := visit(name); err != nil {
			return err
		}
	}
	if len(order) < len(bootModules) {
		return fmt.Errorf("%s has %v only", root, order)
	}
	files["etc/boot-modules"] = entry{0o644, []byte(strings.Join(order, "\n"))}
	return nil
}

// udhcpcScript applies what a DHCP server has given, and keeps all of it in /tmp/dhcp4.
const udhcpcScript = `#!/bin/sh
case "$1" in
deconfig) ip -4 addr flush dev $interface; ip link set $interface up; exit 0 ;;
bound|renew) ;;
*) exit 0 ;;
esac
env > /tmp/dhcp4
ip -4 addr flush dev $interface
ip addr add $ip/${mask:-32} dev $interface
[ -n "$mtu" ] && ip link set $interface mtu $mtu
for r in $router; do
	ip route replace $r dev $interface
	ip route replace default via $r dev $interface
done
exit 0
`

// dhclientScript does so for DHCPv6, in /tmp/dhcp6.
const dhclientScript = `#!/bin/sh
case "$reason" in
PREINIT6) ip link set $interface up ;;
BOUND6|RENEW6|REBIND6)
	ip -6 addr replace $new_ip6_address/${new_ip6_prefixlen:-128} dev $interface nodad
	env > /tmp/dhcp6 ;;
esac
exit 0
`

func addConfig(files map[string]entry) error {
	for name, text := range map[string]string{
		"etc/passwd":          "root:x:0:0:root:/:/bin/sh\n",
		"etc/group":           "root:x:0:\n",
		"etc/hosts":           "127.0.0.1 localhost guest\n::1 localhost guest\n",
		"etc/dhclient.conf":   "also request dhcp6.name-servers, dhcp6.domain-search, dhcp6.fqdn;\n",
		"etc/udhcpc.script":   udhcpcScript,
		"etc/dhclient-script": dhclientScript,
		"usr/share/empty":     "",
		"var/lib/dhcp/empty":  "",
		"root/empty":          "",
	} {
		files[name] = entry{0o755, []byte(text)}
	}
	return nil
}

// cpio returns the files as an archive of the kind "newc" (kernel documentation,
// driver-api/early-userspace/buffer-format), with the directories they are in.
func cpio(files map[string]entry) []byte {
	var b bytes.Buffer
	inode := 0
	add := func(name string, mode uint32, data []byte) {
		inode++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	dirs := map[string]bool{".": true}
	var parents func(name string)
	parents = func(name string) {
		dir := filepath.Dir(name)
		if dirs[dir] {
			return
		}
		dirs[dir] = true
		parents(dir)
		add(dir, unix.S_IFDIR|0o755, nil)
	}
	for _, name := range []string{"dev/x", "proc/x", "sys/x", "tmp/x"} {
		parents(name)
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		f := files[name]
		kind := uint32(unix.S_IFREG)
		if f.mode&fs.ModeSymlink != 0 {
			kind = unix.S_IFLNK
		}
		parents(name)
		add(name, kind|uint32(f.mode.Perm()), f.data)
	}
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}
