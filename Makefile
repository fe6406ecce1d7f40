# passt and pasta are one static program without cgo. Targets: all (the default), install,
# dist, setup, test, check, test-clients, fuzz, fuzz-corpus, soak, bench, demo, clean.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go

bindir = $(DESTDIR)$(PREFIX)/bin
mandir = $(DESTDIR)$(PREFIX)/share/man/man1
# What programs are pointed to, and nobody calls by name.
libexecdir = $(DESTDIR)$(PREFIX)/libexec/fusilli
# Profiles to be looked at before they are loaded, and the guide.
sharedir = $(DESTDIR)$(PREFIX)/share/fusilli

# Programs that call us expect these names.
LINKS = pasta qrap pesto passt.avx2 pasta.avx2

# A tag, or the date and hash of the last commit: 2026_11_23.abcdef0.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || \
	git log -1 --date=format:%Y_%m_%d --format=%cd.%h 2>/dev/null || echo unknown)

# Where the program and its links are built.
OUT ?= .

# Where archives and packages are put.
DIST ?= dist

# Tests of the program as a whole that add nothing with the race detector. Those in e2e do.
NO_RACE = -e /tests/bench -e /tests/cli -e /tests/clients -e /tests/contrib -e /tests/demo -e /tests/fuzz -e /tests/guest

# How long each fuzz target runs, or all of them together; where inputs that reach new code stay (GOCACHE/fuzz).
FUZZTIME  ?= 2s
FUZZTOTAL ?=
FUZZCACHE ?=

all: $(OUT)/passt $(LINKS:%=$(OUT)/%)

# Go knows what is out of date. The tag leaves out what writes manuals of command lines: 1.5 ms of each
# of our processes' start.
$(OUT)/passt: FORCE
	CGO_ENABLED=0 $(GO) build -tags urfave_cli_no_docs -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ .

$(LINKS:%=$(OUT)/%): $(OUT)/passt
	ln -sf passt $@

install: all
	install -d $(bindir)
	install -m 755 $(OUT)/passt $(bindir)/passt
	for l in $(LINKS); do ln -sf passt $(bindir)/$$l || exit 1; done
	install -d $(libexecdir)/program
	install -m 755 contrib/slirp4netns/slirp4netns $(libexecdir)/slirp4netns
	ln -sf ../../../bin/passt $(libexecdir)/program/slirp4netns
	for d in apparmor selinux; do \
		install -d $(sharedir)/$$d && install -m 644 contrib/$$d/* $(sharedir)/$$d/ || exit 1; \
	done
	install -m 644 contrib/README.md $(sharedir)/clients.md
	for m in man/*.1; do \
		[ -e "$$m" ] || continue; \
		install -d $(mandir) && install -m 644 "$$m" $(mandir)/ || exit 1; \
	done

# What a change has to pass before it is committed. Nothing is installed: make setup does that, and without
# it the tests say what they miss. The tests of actors compare speeds, and run alone.
test: static
	$(GO) test ./actors
	$(GO) test $$($(GO) list ./... | grep -v -e /tests/ -e /actors$$)
	$(GO) test -count=1 -timeout 20m ./tests/...

# What takes longer: the race detector, each fuzz target, and the programs that call us.
check:
	$(GO) test -count=1 -race -timeout 30m $$($(GO) list ./... | grep -v $(NO_RACE))
	$(MAKE) fuzz
	$(MAKE) test-clients

# Docker, Podman, rootlesskit and what else calls us, with us in their place.
test-clients:
	FUSILLI_CLIENTS=all $(GO) test -count=1 -timeout 15m ./tests/clients

# As root: Debian packages that the tests and the clients' tests use, and a tap device for everybody.
setup:
	sh tests/setup.sh
	sh tests/clients/setup.sh

static:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not gofmt-ed:"; echo "$$files"; exit 1; fi
	sh tests/columns.sh
	$(GO) tool misspell -error $$(git ls-files '*.go' '*.md' '*.sh' 'man/*.1')
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	GO='$(GO)' sh tests/cross.sh

# Each fuzz target; for a night: make fuzz FUZZTIME=10m, or FUZZTOTAL=6h for all of them. What they find stays in
# FUZZCACHE, and the next run begins with it.
fuzz:
	$(GO) run ./tests/fuzz -time $(FUZZTIME) $(FUZZTOTAL:%=-total %) $(FUZZCACHE:%=-cache '%')

# Of what fuzzing has found, a few small inputs that add coverage go to testdata/fuzz, to be committed.
fuzz-corpus:
	$(GO) run ./tests/fuzz -keep $(FUZZCACHE:%=-cache '%')

# All kinds of connections for twenty minutes.
SOAK ?= 20m
soak:
	FUSILLI_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 60m -run "^TestSoak\$$" ./tests/e2e

# All cases, some minutes each round. The figures and the chart in docs/ are what it wrote last.
bench: all
	$(GO) run ./tests/bench -json docs/benchmarks.json -chart docs/benchmarks.svg

demo: all
	sh tests/demo.sh

# Archives and packages for all architectures, in DIST.
dist:
	DIST='$(abspath $(DIST))' GO='$(GO)' VERSION='$(VERSION)' sh contrib/package/build.sh

clean:
	rm -rf passt $(LINKS) dist

FORCE:
.PHONY: all install test check test-clients setup static fuzz fuzz-corpus soak bench demo dist clean FORCE
