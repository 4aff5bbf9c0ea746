#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the Kubernetes programs of go.mod, and CoreDNS of coredns/go.mod, once into a cache outside the tree.
#   build.sh [program...]   default: all. Prints the folder of the Kubernetes programs.
#   build.sh --where [program]   prints that folder, or where one program is or would be, and does no more than that.
# About 16 minutes of two cores the first time, a second afterwards. QANAT_CACHE names another cache.
set -euo pipefail
cd "$(dirname "$0")"
cache=${QANAT_CACHE:-/var/cache/qanat}
version=$(sed -n 's/^require k8s.io\/kubernetes //p; s/^\tk8s.io\/kubernetes \(v[^ ]*\).*/\1/p' go.mod | head -1)
out=$cache/k8s-$version/bin
place_of() {
	case $1 in
	coredns) printf '%s/coredns-%s/coredns\n' "$cache" "$(sed -n 's/^require github.com\/coredns\/coredns //p' coredns/go.mod)" ;;
	*) printf '%s/%s\n' "$out" "$1" ;;
	esac
}
if [ "${1:-}" = --where ]; then
	[ $# -gt 1 ] && place_of "$2" || printf '%s\n' "$out"
	exit
fi
programs=("$@")
[ $# -gt 0 ] || programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy coredns)
IFS=. read -r major minor _ <<<"${version#v}"
package=k8s.io/component-base/version
stamp="-X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
for program in "${programs[@]}"; do
	place=$(place_of "$program")
	[ -x "$place" ] && continue
	printf 'compiling %s\n' "$place" >&2
	mkdir -p "$(dirname "$place")"
	module=. source=k8s.io/kubernetes/cmd/$program flags="-s -w $stamp"
	[ "$program" != coredns ] || module=coredns source=. flags="-s -w"
	GOFLAGS=-mod=readonly CGO_ENABLED=0 nice -n 19 go build -C $module -p "${QANAT_GO_JOBS:-2}" -trimpath \
		-buildvcs=false -ldflags "$flags" -o "$place.tmp" "$source"
	mv "$place.tmp" "$place"
done
printf '%s\n' "$out"
