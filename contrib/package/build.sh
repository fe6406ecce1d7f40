#!/bin/sh
# build.sh: make what is handed out, in DIST: for each architecture an archive with the static
# program, its links and manual pages, a .deb and an .rpm; and SHA256SUMS of them all.
#
#	VERSION   of the program
#	ARCHES    what to build for, as Go names it (default: all that are tested)
#	GO        the go command
#	DIST      the directory, which is emptied first (default: dist/ of the tree)
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
: "${VERSION:?}" "${ARCHES:=386 amd64 arm arm64 ppc64le riscv64 s390x}" "${GO:=go}" "${DIST:=$top/dist}"

# Neither Debian nor RPM takes "_" in a version.
PACKAGE_VERSION=$(printf %s "$VERSION" | tr _- ..)
case $PACKAGE_VERSION in
[0-9]*) ;;
*) PACKAGE_VERSION=0.$PACKAGE_VERSION ;;
esac
# Two builds of one commit are the same to the byte.
SOURCE_DATE_EPOCH=$(git -C "$top" log -1 --format=%ct 2>/dev/null || date +%s)
export PACKAGE_VERSION SOURCE_DATE_EPOCH

rm -rf "$DIST"
mkdir "$DIST"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

nfpm=$work/nfpm
(cd "$top/contrib/package" && GOARCH= GOOS= CGO_ENABLED=0 "$GO" build -o "$nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm)

for ARCH in $ARCHES; do
	name=fusilli-$VERSION-linux-$ARCH
	ROOT=$work/root-$ARCH
	PACKAGE_ARCH=$ARCH
	[ "$ARCH" != arm ] || PACKAGE_ARCH=arm7 # with hardware floating point, as Go builds it: Debian's armhf
	export PACKAGE_ARCH ROOT
	# A build of its own: that of the tree stays what it is.
	mkdir -p "$work/src-$ARCH"
	GOARCH=$ARCH GOARM=7 make -s -C "$top" install GO="$GO" VERSION="$VERSION" OUT="$work/src-$ARCH" PREFIX=/usr DESTDIR="$ROOT"
	find "$ROOT" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	tar -C "$ROOT" --sort=name --owner=0 --group=0 --numeric-owner --transform "s,^\./usr,$name,;s,^\.,$name," \
		-cf - ./usr | gzip -n >"$DIST/$name.tar.gz"
	for format in deb rpm; do
		"$nfpm" package --config "$top/contrib/package/nfpm.yaml" --packager $format --target "$DIST/" >/dev/null
	done
done
cd "$DIST"
sha256sum -- * >SHA256SUMS
