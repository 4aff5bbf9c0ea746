#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What tests/k8s needs: Debian's etcd, and Kubernetes' own programs compiled from Go modules into a cache outside the
# tree (QANAT_CACHE, default /var/cache/qanat). Quick when all is there. Where something cannot be had it says so in one
# line and the tests that need it are skipped by name.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '%s\n' "$*"; }

if ! command -v etcd >/dev/null; then
	say "system packages: installing etcd-server"
	export DEBIAN_FRONTEND=noninteractive
	apt-get -q -y -o DPkg::Lock::Timeout=600 update >/dev/null 2>&1 || true
	apt-get -q -y -o DPkg::Lock::Timeout=600 install --no-install-recommends etcd-server >build/apt-k8s.log 2>&1 ||
		say "NOT RUN: tests against Kubernetes: etcd-server cannot be installed (build/apt-k8s.log)"
fi
go_version=$(go env GOVERSION 2>/dev/null || true)
if [ -z "$go_version" ]; then
	say "NOT RUN: tests against Kubernetes: no Go toolchain (go 1.26 compiles kube-apiserver)"
elif ! tests/k8s/cluster/binaries/build.sh kube-apiserver; then
	say "NOT RUN: tests against Kubernetes: kube-apiserver could not be compiled (see above)"
fi
[ -z "$go_version" ] || tools/helm.sh >/dev/null ||
	say "NOT RUN: tests that render the Helm chart: helm could not be compiled (see above)"
