# Two commands: `make lab` shows the whole way on this machine, `make test` passes the tests. Both do all set-up themselves.
#
#   make lab ARGS='--once --json'     end by itself, with the report as JSON
#   make test ARGS='dhcp'             only tests whose name contains dhcp

SHELL := /bin/bash
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BIN := target/x86_64-unknown-linux-gnu/release/rackline
ARGS ?=

# What the host needs, and why.
PACKAGES := \
	build-essential `: the C parts of SQLite, zstd and the crypto library` \
	qemu-system-x86 ovmf ipxe-qemu `: the virtual machines, their UEFI firmware and PXE ROMs` \
	ipxe `: boot files for TFTP and HTTP` \
	shim-signed grub-efi-amd64-signed `: boot files for machines with Secure Boot` \
	openipmi ipmitool `: a BMC that this project did not write, and a client to compare with` \
	snmpd `: a power strip that speaks SNMP, for the tests` \
	mmdebstrap uidmap `: root file systems from Debian packages, also by normal users` \
	grub-pc-bin grub-efi-amd64-bin grub-common `: boot loaders of the images` \
	fdisk dosfstools mtools e2fsprogs `: partitions and file systems inside image files` \
	qemu-utils xz-utils mount `: disk images of other makers` \
	xfsprogs `: one of those with XFS, for the tests` \
	zstd cpio kmod busybox-static `: the RAM system of the agent` \
	iproute2 `: network namespaces` \
	isc-dhcp-client dhcpcd-base systemd tftp-hpa atftp curl `: real clients for the tests` \
	isc-dhcp-relay dnsmasq-base `: real relays, and another DHCP server` \
	kea-admin `: perfdhcp, which counts what is lost` \
	stress-ng `: load on processors, for the tests` \
	nftables `: a link that loses packets, for the tests` \
	lldpd `: a neighbour by LLDP, for the tests` \
	aria2 transmission-cli `: BitTorrent clients for the tests` \
	python3-venv openssl `: a Redfish BMC that this project did not write, and its certificate; sushy-tools comes from PyPI`

# What only the benchmarks need: the peers that they measure against.
BENCH_PACKAGES := \
	kea-dhcp4-server ethtool `: DHCP` \
	nginx-light procps `: files over HTTP` \
	fio qemu-utils bmap-tools partclone `: an image to the disk` \
	freeipmi-tools `: many BMCs at once` \
	transmission-daemon udpcast python3-venv `: one image to many machines; libtorrent comes from PyPI, rqbit from crates.io`

.PHONY: lab test fuzz bench build images setup fmt

lab: images
	@$(SUDO) $(BIN) lab up $(ARGS)

# One profile for all: the binary under test is the one that is shipped.
test: images target/sushy
	$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" cargo test --release -- $(ARGS)

# Every parser of the network's bytes under libFuzzer, a minute each.
fuzz: setup
	@SECONDS_EACH=$${SECONDS_EACH:-60} tests/fuzz/run.sh $(ARGS)

bench: PACKAGES += $(BENCH_PACKAGES)
bench: images
	@for script in tests/bench/*.sh; do echo "== $$script"; $(SUDO) $$script $(BIN) || exit 1; done

target/sushy: setup
	@[ -x $@/bin/sushy-emulator ] || { /usr/bin/python3 -m venv $@ && $@/bin/pip install -q sushy-tools==2.2.0; } >&2

images: build
	@$(SUDO) $(BIN) image build --all

build: setup
	@echo "building the release binary (the first time takes some minutes)" >&2
	@cargo build --release >&2

setup:
	@missing=; for p in $(PACKAGES); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing" >&2; \
		$(SUDO) apt-get update -qq >&2 && \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >&2; fi

fmt:
	cargo fmt && cargo clippy --release --all-targets -- -D warnings
