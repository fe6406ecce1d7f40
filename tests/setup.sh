#!/bin/sh
# setup.sh: install what the tests, the benchmark and the demonstration need, if it is
# missing and we are root. With arguments: only the packages that provide these commands.
set -eu

# package:command
all='passt:pasta slirp4netns:slirp4netns iperf3:iperf3 socat:socat tcpdump:tcpdump
tshark:tshark nftables:nft iproute2:ip procps:ps util-linux:nsenter iputils-ping:ping
ethtool:ethtool curl:curl gcc:gcc apparmor:apparmor_parser checkpolicy:checkmodule man-db:man groff-base:groff isc-dhcp-client:dhclient dhcpcd-base:dhcpcd udhcpc:udhcpc
ndisc6:rdisc6 iputils-arping:arping qemu-system-x86:qemu-system-x86_64
busybox-static:busybox traceroute:traceroute qemu-user-static:qemu-s390x-static'

PATH=$PATH:/usr/sbin:/sbin
missing=
for pair in $all; do
	command=${pair#*:}
	if [ $# -gt 0 ]; then
		case " $* " in *" $command "*) ;; *) continue ;; esac
	fi
	command -v "$command" >/dev/null || missing="$missing ${pair%%:*}"
done

# The race detector is linked with a C library.
[ $# -gt 0 ] || [ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"

if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "setup.sh: not installed, and we are not root:$missing" >&2
		exit 1
	fi
	echo "setup.sh: installing$missing" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update >&2
	# shellcheck disable=SC2086  # a list of names
	apt-get -qq install --no-install-recommends -y $missing >/dev/null
fi

# The translator runs as an unprivileged user and opens this device.
if [ "$(id -u)" = 0 ]; then
	if [ ! -e /dev/net/tun ]; then
		mkdir -p /dev/net
		mknod /dev/net/tun c 10 200
	fi
	chmod 666 /dev/net/tun
fi
