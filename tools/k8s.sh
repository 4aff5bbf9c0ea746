#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What tests/k8s needs: Debian's etcd, container runtime and network tools, and Kubernetes' own programs compiled from Go
# modules into a cache outside the tree (QANAT_CACHE, default /var/cache/qanat). Quick when all is there. Where something
# cannot be had it says so in one line and the tests that need it are skipped by name.
#   tools/k8s.sh [kube-apiserver]   for tests on two nodes, or for those against the API alone
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '%s\n' "$*"; }

missing=()
for pair in etcd:etcd-server containerd:containerd runc:runc conntrack:conntrack iptables:iptables nft:nftables \
	socat:socat tcpdump:tcpdump curl:curl bpftool:bpftool /usr/lib/cni/bridge:containernetworking-plugins; do
	command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
	say "system packages: installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	mkdir -p build
	# No service of them may start on this machine: the tests run their own.
	policy=/usr/sbin/policy-rc.d made_policy=0
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		made_policy=1
	fi
	apt-get -q -y -o DPkg::Lock::Timeout=600 update >/dev/null 2>&1 || true
	for package in "${missing[@]}"; do
		apt-get -q -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "$package" >>build/apt-k8s.log 2>&1 ||
			say "NOT RUN: tests against Kubernetes: $package cannot be installed (build/apt-k8s.log)"
	done
	[ $made_policy = 0 ] || rm -f $policy
fi

command -v go >/dev/null && { tools/helm.sh >/dev/null ||
	say "NOT RUN: tests that render the Helm chart: helm could not be compiled (see above)"; }

build=tests/k8s/cluster/binaries/build.sh
programs=(kube-apiserver)
# Without root or both cgroup versions there can be no nodes: the tests say so themselves.
if [ "${1:-}" != kube-apiserver ] && [ "$(id -u)" = 0 ] && [ -e /sys/fs/cgroup/unified/cgroup.procs ]; then
	programs+=(kube-controller-manager kube-scheduler kubelet kube-proxy coredns)
	command -v kubectl >/dev/null || programs+=(kubectl)
fi
absent=()
for program in "${programs[@]}"; do
	[ -x "$($build --where "$program")" ] || absent+=("$program")
done
[ ${#absent[@]} -gt 0 ] || exit 0
if ! command -v go >/dev/null; then
	say "NOT RUN: tests against Kubernetes: no Go toolchain (go 1.26 compiles ${absent[*]})"
	exit 0
fi
$build "${absent[@]}" >/dev/null ||
	say "NOT RUN: tests against Kubernetes: not all of ${absent[*]} could be compiled (see above)"
