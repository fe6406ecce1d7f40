#!/bin/sh
# setup.sh: install the clients that "make test-clients" runs, if they are missing.
set -eu

sh "$(dirname "$0")/../setup.sh"

# package:command
all='docker.io:dockerd rootlesskit:rootlesskit podman:podman runc:runc uidmap:newuidmap
iptables:iptables slirp4netns:slirp4netns rpm:rpm'

PATH=$PATH:/usr/sbin:/sbin
missing=
for pair in $all; do
	command -v "${pair#*:}" >/dev/null || missing="$missing ${pair%%:*}"
done
# The daemon's package may be another's, and its starter not there.
[ -e /usr/share/docker.io/contrib/dockerd-rootless.sh ] || case "$missing" in *docker.io*) ;; *) missing="$missing docker.io" ;; esac

if [ -n "$missing" ]; then
	echo "setup.sh: installing$missing" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update >&2
	# shellcheck disable=SC2086  # a list of names
	apt-get -qq install --no-install-recommends -y $missing >/dev/null
fi
