#!/bin/sh
# cross.sh: build the program for each architecture that it is packaged for, vet it for one of 32 bits and
# for one of the other byte order, and run the tests that need no network with qemu's user emulation.
#
# A build finds what an architecture lacks. Vet finds constants that do not fit; it compiles the tests, too,
# which costs ten times as much (some 90 s of CPU time, once), so that two architectures stand for all.
#
#	ARCHES    what to build for, as Go names it
#	GO        the go command
set -eu

cd "$(dirname "$0")/.."
: "${ARCHES:=386 amd64 arm arm64 ppc64le riscv64 s390x}" "${GO:=go}"
export CGO_ENABLED=0

# What reads and writes the bytes of packets and messages.
packets='./config ./tapio/frame ./actors/dhcp ./actors/dhcpv6 ./actors/flow ./actors/frag ./actors/neigh
	./actors/rules ./autodetect/rtnl ./internal/pesto'

for arch in $ARCHES; do
	GOARCH=$arch "$GO" build ./...
done
for arch in 386 s390x; do
	GOARCH=$arch "$GO" vet ./...
done

# run ARCH ARGUMENTS...: go test for an architecture.
run() {
	arch=$1
	shift
	case $arch in
	386 | amd64) emulator= ;; # a kernel for 64 bits runs both
	arm64) emulator=qemu-aarch64-static ;;
	*) emulator=qemu-$arch-static ;;
	esac
	if [ -n "$emulator" ] && ! command -v "$emulator" >/dev/null; then
		echo "cross.sh: not tested on $arch: there is no $emulator (tests/setup.sh installs it)" >&2
		return
	fi
	GOARCH=$arch "$GO" test ${emulator:+-exec="$emulator"} "$@"
}

for arch in $ARCHES; do
	run "$arch" -run='Filter|Table' ./internal/sandbox
done
for arch in 386 arm s390x; do
	run "$arch" $packets
done
# What hands structures to the kernel, on one for words of both sizes.
run 386 ./actors/sock ./actors/forward ./actors/icmp ./actors/udp
