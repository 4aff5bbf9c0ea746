#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the Kubernetes programs of go.mod once into a cache outside the tree.
#   build.sh [program...]   default: all. Prints the folder of the programs; with --where does no more than that.
# About 14 minutes of two cores the first time, a second afterwards. QANAT_CACHE names another cache.
set -euo pipefail
cd "$(dirname "$0")"
version=$(sed -n 's/^require k8s.io\/kubernetes //p; s/^\tk8s.io\/kubernetes \(v[^ ]*\).*/\1/p' go.mod | head -1)
out=${QANAT_CACHE:-/var/cache/qanat}/k8s-$version/bin
if [ "${1:-}" = --where ]; then
	printf '%s\n' "$out"
	exit
fi
programs=("$@")
[ $# -gt 0 ] || programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
mkdir -p "$out"
IFS=. read -r major minor _ <<<"${version#v}"
package=k8s.io/component-base/version
flags="-s -w -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
for program in "${programs[@]}"; do
	[ -x "$out/$program" ] && continue
	printf 'compiling %s %s\n' "$program" "$version" >&2
	GOFLAGS=-mod=readonly CGO_ENABLED=0 nice -n 19 go build -p "${QANAT_GO_JOBS:-2}" -trimpath -buildvcs=false \
		-ldflags "$flags" -o "$out/$program.tmp" "k8s.io/kubernetes/cmd/$program"
	mv "$out/$program.tmp" "$out/$program"
done
printf '%s\n' "$out"
