// Package guest boots small virtual machines in QEMU and runs commands in them, to test passt with the
// guest it is made for.
//
// An image is made once for each kernel and set of programs, in the user's cache directory: the kernel
// of Debian's cloud package, as it is, and an initramfs of the modules it needs, busybox, some
// programs of this machine with their libraries, and the agent (package main in agent), which is the
// guest's first process. Everything the guest changes is gone with it.
//
// Commands travel over a virtio-serial port, never over the network that is tested. Where KVM
// does not boot the image, or GUEST_ACCEL is tcg, the guest runs under emulation: it then boots in some three
// seconds, and is slow.
package guest
