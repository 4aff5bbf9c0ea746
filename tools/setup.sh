#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a machine able to build and test Qanat, or says what is missing.
#   tools/setup.sh check   can Qanat run here? every problem with its fix; exit 1 if one is fatal
#   tools/setup.sh deps    install missing system packages (Debian, Ubuntu and relatives)
#   tools/setup.sh venv    .venv with the versions of pyproject.toml
# All are quick when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."

# `a|b`: the first that this distribution has.
REQUIRED=(
	gcc make pkg-config libc6-dev linux-libc-dev
	clang llvm libbpf-dev libelf-dev zlib1g-dev libssl-dev libnghttp2-dev libjansson-dev
	python3-dev python3-venv
	iproute2 nftables tcpdump procps util-linux ca-certificates
	curl openssl nginx-light\|nginx redis-server redis-tools socat
)
# Without these a part of the tooling is left out, and says so.
OPTIONAL=(libipsec-mb-dev clang-format valgrind bpftool\|linux-tools-common python3-bpfcc nghttp2-client strace iputils-ping)

problems=0
say() { printf '%s\n' "$*"; }
fatal() { # <what is missing> <fix>
	say "  MISSING  $1"
	say "           fix: $2"
	problems=$((problems + 1))
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Prints those of the given packages (with alternatives) that are not installed, one a line.
missing() {
	local status
	status=" $(dpkg-query -W -f='${Package} ${db:Status-Status}\n' 2>/dev/null | awk '$2 == "installed" {print $1}' | tr '\n' ' ') "
	local item alternative
	for item in "$@"; do
		for alternative in ${item//|/ }; do
			[[ $status == *" $alternative "* ]] && continue 2
		done
		say "$item"
	done
}

find_python() {
	local candidate
	for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
	return 1
}

kernel_at_least() { # <major> <minor>
	local major minor
	IFS=.- read -r major minor _ < <(uname -r)
	[ "$major" -gt "$1" ] || { [ "$major" -eq "$1" ] && [ "$minor" -ge "$2" ]; }
}

check() {
	[ "$(uname -s)" = Linux ] || fatal "Linux (this is $(uname -s))" "run on a Linux machine or in a virtual machine"
	[ "$(id -u)" = 0 ] || fatal "root (network namespaces and BPF need it)" "run as root: sudo make ${GOAL:-demo}"
	kernel_at_least 5 15 || fatal "kernel 5.15 or newer (this is $(uname -r))" "boot a newer kernel; Debian 12 and Ubuntu 22.04 have one"
	[ -r /sys/kernel/btf/vmlinux ] || fatal "kernel type information at /sys/kernel/btf/vmlinux" \
		"boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (distribution kernels are), and mount sysfs"
	find_python >/dev/null || fatal "Python 3.11 or newer" "apt-get install python3.11, or set PYTHON=/path/to/python"
	if ! command -v apt-get >/dev/null; then
		local absent="" tool
		for tool in gcc make clang nft tcpdump ip curl openssl nginx redis-server redis-cli; do
			command -v "$tool" >/dev/null || absent+=" $tool"
		done
		[ -z "$absent" ] || fatal "programs:$absent (no apt here to install them by name)" \
			"install what your distribution calls: ${REQUIRED[*]} (wanted too: ${OPTIONAL[*]})"
	fi
	if [ "$problems" -gt 0 ]; then
		say "Qanat cannot work on this machine yet: $problems problem(s) above."
		return 1
	fi
}

# First alternative that apt knows; nothing if none.
available() {
	local alternative
	for alternative in ${1//|/ }; do
		if apt-cache show "$alternative" >/dev/null 2>&1; then
			say "$alternative"
			return
		fi
	done
}

# Major version of the installed clang; nothing when there is none.
clang_major() {
	{ dpkg-query -W -f='${Depends}' clang 2>/dev/null || true; } | sed -n 's/.*clang-\([0-9]\+\).*/\1/p'
}

deps() {
	command -v apt-get >/dev/null || return 0 # check() has listed what is needed
	local wanted optional
	mapfile -t wanted < <(missing "${REQUIRED[@]}")
	mapfile -t optional < <(missing "${OPTIONAL[@]}")
	# Sanitizer runtimes: a package of their own, named after clang's version (older clang: part of clang).
	local clang_version
	clang_version=$(clang_major)
	if [ -z "$clang_version" ] || [ -z "$(find "/usr/lib/llvm-$clang_version/lib/clang" -name 'libclang_rt.fuzzer-*.a' -print -quit 2>/dev/null)" ]; then
		optional+=(libclang-rt)
	fi
	[ ${#wanted[@]} -eq 0 ] && { [ ${#optional[@]} -eq 0 ] || [ -e build/stamps/optional-tried ]; } && return 0
	if [ "$(id -u)" != 0 ]; then
		say "packages missing: ${wanted[*]} ${optional[*]}; as root: apt-get install them"
		[ ${#wanted[@]} -eq 0 ]
		return
	fi

	say "system packages: installing ${wanted[*]} ${optional[*]}"
	export DEBIAN_FRONTEND=noninteractive
	local apt=(apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
	"${apt[@]}" update >/dev/null || say "  apt-get update failed; trying with the lists that are here"
	# The test programs nginx and redis must not start as services of this machine.
	local policy=/usr/sbin/policy-rc.d made_policy=0
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		made_policy=1
	fi
	local fresh_services=() service
	for service in nginx redis-server; do
		command -v "$service" >/dev/null || fresh_services+=("$service")
	done
	local names=() item name
	for item in "${wanted[@]}"; do
		name=$(available "$item")
		names+=("${name:-${item%%|*}}")
	done
	local ok=0
	if [ ${#names[@]} -gt 0 ]; then
		"${apt[@]}" install --no-install-recommends "${names[@]}" >build/apt.log 2>&1 || ok=$?
	fi
	clang_version=$(clang_major)
	for item in "${optional[@]}"; do
		[ "$item" = libclang-rt ] && item="libclang-rt-$clang_version-dev"
		name=$(available "$item")
		if [ -z "$name" ] || ! "${apt[@]}" install --no-install-recommends "$name" >>build/apt.log 2>&1; then
			say "  not available here: $item (left out)"
		fi
	done
	[ $made_policy = 0 ] || rm -f $policy
	if [ -d /run/systemd/system ]; then
		for service in "${fresh_services[@]}"; do systemctl disable "$service" >/dev/null 2>&1 || true; done
	fi
	mkdir -p build/stamps
	touch build/stamps/optional-tried
	if [ "$ok" != 0 ]; then
		tail -15 build/apt.log
		say "MISSING  packages: ${names[*]}"
		say "         fix: see build/apt.log; check /etc/apt/sources.list.d and the network, then run again"
		return 1
	fi
}

venv() {
	local python hash stamp=.venv/.qanat-stamp
	python=$(find_python)
	hash=$(sed -n '/^\[project\]/,/^\[tool\./p' pyproject.toml | sha256sum | cut -c1-32)
	if [ -x .venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$hash" ]; then
		return 0
	fi
	if ! [ -x .venv/bin/pip ]; then
		say "virtual environment: .venv with $("$python" --version)"
		"$python" -m venv .venv
	fi
	say "virtual environment: installing the versions of pyproject.toml"
	mkdir -p build
	local pip=(.venv/bin/pip --disable-pip-version-check --quiet)
	local setuptools
	setuptools=$(sed -n 's/.*"\(setuptools==[^"]*\)".*/\1/p' pyproject.toml)
	"${pip[@]}" install "$setuptools" &&
		"${pip[@]}" install --no-build-isolation --config-settings editable_mode=compat -e '.[dev]' || {
		say "MISSING  Python packages"
		say "         fix: check the network and pip's index (pip config list), then run again"
		return 1
	}
	printf '%s' "$hash" >$stamp
}

mkdir -p build
case "${1:-}" in
check) check ;;
deps) deps ;;
venv) venv ;;
*)
	say "usage: $0 check|deps|venv"
	exit 2
	;;
esac
