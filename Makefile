# Two commands for a newcomer: `make demo` shows the main job, `make test` passes every test. Both do all their set-up
# on a Debian machine that has only Rust; `demo` needs neither root nor any network beyond the crates.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
# apt-get as root; through sudo where we are not.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# What the tests need beyond Rust: a C compiler for crates, the real registry and the tools that make a real image,
# a user to be when we are root, extended attributes, and an oracle for fs-verity digests.
TEST_PACKAGES := gcc libc6-dev make pkg-config mmdebstrap docker-registry skopeo zstd gzip xz-utils bzip2 attr libcap2-bin \
    debian-archive-keyring util-linux mount fdisk dosfstools e2fsprogs btrfs-progs fsverity strace systemd shellcheck \
    dpkg-dev binutils dbus-daemon python3-dbus python3-gi
FUZZ_PACKAGES := g++
DEB_PACKAGES := dpkg-dev binutils
BENCH_PACKAGES := python3
# A virtual machine, its firmware, and disk images made without loop devices.
VM_PACKAGES := qemu-system-x86 ovmf mtools dosfstools fdisk e2fsprogs btrfs-progs python3 docker-registry skopeo mmdebstrap \
    debian-archive-keyring zstd binutils
DENY_VERSION := 0.20.2

.PHONY: help
help:
	@echo 'make demo          switch, upgrade, rollback, status on a small image made on the spot (no root needed)'
	@echo 'make test          installs what the tests need and runs them all'
	@echo 'make lint          format, clippy, documentation, dependency checks'
	@echo 'make fuzz          each fuzz target for FUZZ_SECONDS (60)'
	@echo 'make bench         speed and memory beside skopeo, podman and cfsctl'
	@echo 'make test-vm       the program in a virtual machine (minutes; VM_SCENARIOS=store for a part)'
	@echo 'make release       the programs as they ship'
	@echo 'make install       what belongs on a machine or into an image, below DESTDIR'
	@echo 'make deb           the same as a Debian package'
	@echo 'make install-deps  what make test would install'

.PHONY: build
build:
	$(CARGO) build --locked --workspace

# Everything that belongs on a machine or into an image: `make install DESTDIR=…`. BUILT: where the built programs are.
BUILT ?= target/release
.PHONY: release install
release:
	$(CARGO) build --locked --release --package cfs-update
	$(CARGO) build --locked --release --package cfs-bootloader --no-default-features --bin cfs-update-root
install:
	install -D -m 755 $(BUILT)/cfs-update $(DESTDIR)/usr/bin/cfs-update
	install -D -m 755 $(BUILT)/cfs-update-root $(DESTDIR)/usr/lib/cfs-update/cfs-update-root
	install -D -m 644 -t $(DESTDIR)/usr/lib/systemd/system cli/systemd/*.service cli/systemd/*.timer \
	    bootloader/initramfs/*.service bootloader/initramfs/*.timer
	install -d $(DESTDIR)/usr/lib/systemd/system/emergency.target.wants $(DESTDIR)/usr/lib/systemd/system/timers.target.wants
	ln -sf ../cfs-update-boot-failed.service $(DESTDIR)/usr/lib/systemd/system/emergency.target.wants/
	ln -sf ../cfs-update-boot-hangs.timer $(DESTDIR)/usr/lib/systemd/system/timers.target.wants/
	install -D -m 644 -t $(DESTDIR)/usr/lib/systemd/system-preset cli/systemd/90-cfs-update.preset
	install -d $(DESTDIR)/usr/lib/cfs-update/health.d
	install -D -m 755 -t $(DESTDIR)/usr/lib/dracut/modules.d/90cfs-update bootloader/initramfs/dracut/90cfs-update/*
	install -D -m 644 -t $(DESTDIR)/usr/lib/dracut/dracut.conf.d bootloader/initramfs/dracut/50-cfs-update.conf
	install -D -m 755 -t $(DESTDIR)/usr/share/initramfs-tools/hooks bootloader/initramfs/initramfs-tools/hooks/cfs-update
	install -D -m 755 -t $(DESTDIR)/usr/share/initramfs-tools/scripts/local-bottom \
	    bootloader/initramfs/initramfs-tools/scripts/local-bottom/cfs-update
	install -D -m 644 -t $(DESTDIR)/usr/lib/initcpio/install bootloader/initramfs/mkinitcpio/install/cfs-update
	install -D -m 644 -t $(DESTDIR)/usr/lib/initcpio/hooks bootloader/initramfs/mkinitcpio/hooks/cfs-update

# The same as a Debian package.
.PHONY: deb
deb:
	$(call install,$(DEB_PACKAGES))
	sh cli/debian/build.sh $(BUILT) target

.PHONY: demo
demo:
	sh examples/demo.sh

# Installs only what is missing, so that a second run needs neither root nor network.
define install
	@missing=; for p in $(1); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq update; \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $$missing </dev/null; fi
endef

.PHONY: install-deps
install-deps:
	$(call install,$(TEST_PACKAGES))

.PHONY: os-image
os-image: install-deps
	sh testdata/os-image.sh target/os-image

# The last lines that this prints are the test runner's own.
.PHONY: test
test: os-image
	$(CARGO) test --locked --workspace --all-targets --no-fail-fast

.PHONY: fmt clippy doc deny lint
fmt:
	$(CARGO) fmt --all -- --check
clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --package cfs-bootloader --no-default-features --bin cfs-update-root -- -D warnings
doc:
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --workspace --no-deps

target/tools/bin/cargo-deny:
	$(CARGO) install --locked --debug cargo-deny --version $(DENY_VERSION) --root target/tools --target-dir target/tools/build

# Licences, bans and sources always; advisories where their database can be reached.
deny: target/tools/bin/cargo-deny
	target/tools/bin/cargo-deny --locked check licenses sources
	target/tools/bin/cargo-deny --locked --exclude-dev check bans
	@if timeout 60 git ls-remote --quiet https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1 </dev/null; then \
	    target/tools/bin/cargo-deny --locked check advisories; \
	else echo 'advisories: not checked, their database cannot be reached from here'; fi
lint: fmt clippy doc deny

FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz:
	$(call install,$(FUZZ_PACKAGES))
	sh testdata/fuzz.sh $(FUZZ_SECONDS)

.PHONY: bench
bench: install-deps
	$(call install,$(BENCH_PACKAGES))
	sh testdata/bench.sh

# Needs no KVM. CFS_PROGRAM names another build of the program.
VM_SCENARIOS ?=
.PHONY: test-vm test-vm-store
test-vm: build
	$(call install,$(VM_PACKAGES))
	$(if $(SUDO),$(SUDO) -E) python3 testdata/vm/run.py $(VM_SCENARIOS)
test-vm-store:
	$(MAKE) --no-print-directory test-vm VM_SCENARIOS=store
