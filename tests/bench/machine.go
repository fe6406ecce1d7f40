package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"fusilli/tests/bed"
	"fusilli/tests/guest"
)

// bootLimit is for a guest that is emulated, on a machine with other things to do.
const bootLimit = 60 * time.Second

// guestImage builds the image if a chosen case boots a guest, and returns it as environment.
func guestImage(chosen []benchCase) ([]string, error) {
	for _, c := range chosen {
		if c.machine {
			img, err := guest.Build()
			if err != nil {
				return nil, err
			}
			return img.Environ(), nil
		}
	}
	return nil, nil
}

// passt is the program beside im's that is called passt.
func (im impl) passt() string { return filepath.Join(filepath.Dir(im.path), "passt") }

// startPasst starts im's passt on the bed's host and waits for its socket. stop ends it.
func (im impl) startPasst(ctx context.Context, b *bed.Bed, mtu int) (proc *bed.Process, socket string, stop func(), err error) {
	dir, err := os.MkdirTemp("/run", "passt")
	if err != nil {
		return nil, "", nil, err
	}
	stop = func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			stop()
		}
	}()
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, "", nil, err
	}
	socket = filepath.Join(dir, "socket")
	proc, err = b.Host.Spawn(bed.Nobody, exec.Command(im.passt(), "-f", "-q", "--no-map-gw", "-m", strconv.Itoa(mtu), "-s", socket))
	if err != nil {
		return nil, "", nil, err
	}
	stop = func() {
		proc.Stop(5 * time.Second)
		os.RemoveAll(dir)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = bed.Wait(ctx, "socket", func() (bool, error) {
		_, err := os.Stat(socket)
		return err == nil, nil
	})
	if err != nil {
		err = fmt.Errorf("%w: %s", err, proc.Stderr())
	}
	return proc, socket, stop, err
}

// machine returns the case of a guest in QEMU with the given MTU: it boots once, and does all.
// Under emulation the guest is the slow one, and the figure that counts is the translator's CPU
// time.
func machine(mtu int, d time.Duration) func(context.Context, impl, *bed.Bed, string) ([]figure, error) {
	return func(ctx context.Context, im impl, b *bed.Bed, self string) ([]figure, error) {
		proc, socket, stop, err := im.startPasst(ctx, b, mtu)
		if err != nil {
			return nil, err
		}
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, bootLimit+8*d)
		defer cancel()
		vm, err := guest.Start(ctx, guest.Config{
			Image:  guest.PassedImage(),
			Socket: socket,
		})
		if err != nil {
			return nil, err
		}
		defer vm.Close()
		if _, err := vm.Run(fmt.Sprintf("ip link set eth0 mtu %d up; ip addr add %s/24 dev eth0; ip route add default via %s; "+
			"sysctl -qw net.ipv4.tcp_rmem='131072 524288 33554432' net.ipv4.tcp_wmem='131072 524288 33554432'", mtu, bed.HostAddr4, bed.FarAddr4)); err != nil {
			return nil, err
		}
		far, err := generate(b.Far, self, "tcp-server", ":"+port)
		if err != nil {
			return nil, err
		}
		defer far.stop()

		var figures []figure
		server := bed.FarAddr4 + ":" + port
		// run has the guest do something and print a quantity and a second number.
		run := func(line string) (n int64, x float64, cpu time.Duration, err error) {
			u0, err := bed.Tree(proc.PID())
			if err != nil {
				return 0, 0, 0, err
			}
			out, err := vm.Spawn(line).Wait(ctx)
			if err != nil {
				return 0, 0, 0, fmt.Errorf("%w: %s", err, proc.Stderr())
			}
			u1, err := bed.Tree(proc.PID())
			if err != nil {
				return 0, 0, 0, err
			}
			_, err = fmt.Sscan(out, &n, &x)
			return n, x, u1.CPU - u0.CPU, err
		}
		for _, way := range []struct{ metric, command string }{{"out", "blast"}, {"in", "suck"}} {
			// The first traffic after a boot is slow: emulated code is translated.
			if _, _, _, err := run(fmt.Sprintf("%s %s 0.5", way.command, server)); err != nil {
				return nil, err
			}
			n, took, cpu, err := run(fmt.Sprintf("%s %s %g", way.command, server, d.Seconds()))
			if err != nil {
				return nil, err
			}
			figures = append(figures, figure{metric: way.metric, value: float64(n) * 8 / took / 1e9, unit: "Gbps", cpu: cpu, bytes: n})
		}
		for _, kind := range []struct{ metric, command string }{{"rr p50", "rr tcp"}, {"crr p50", "crr"}} {
			_, p50, cpu, err := run(fmt.Sprintf("%s %s %g", kind.command, server, d.Seconds()))
			if err != nil {
				return nil, err
			}
			figures = append(figures, figure{metric: kind.metric, value: p50 / 1000, unit: "us", less: true, cpu: cpu})
		}
		// What somebody else waits who has nothing to do with the bulk transfer.
		bulk := vm.Spawn(fmt.Sprintf("blast %s %g", server, d.Seconds()+1))
		_, p50, cpu, err := run(fmt.Sprintf("rr tcp %s %g", server, d.Seconds()))
		if err == nil {
			_, err = bulk.Wait(ctx)
		}
		if err != nil {
			return nil, err
		}
		return append(figures, figure{metric: "rr beside out p50", value: p50 / 1000, unit: "us", less: true, cpu: cpu}), nil
	}
}
