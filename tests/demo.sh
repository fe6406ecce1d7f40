#!/bin/sh
# demo.sh: show the main job in a few seconds. `make demo` runs it.
#
# It makes a host and a remote peer out of network namespaces, runs our pasta on the host as an
# unprivileged user, and shows what a namespace connected by it sees. Nothing of it is left
# behind. Without root it needs user namespaces, and ip, ping and curl.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
export PATH
sh tests/setup.sh ip ping curl
exec go run ./tests/demo -pasta "${1:-./pasta}"
