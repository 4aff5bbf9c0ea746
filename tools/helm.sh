#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints where helm is, of the pinned version; compiles it once from its Go module into the cache outside the tree
# (QANAT_CACHE, default /var/cache/qanat; about 3 minutes). `helm.sh --render` writes daemonset/manifests from the chart.
set -euo pipefail
cd "$(dirname "$0")/.."
module=helm.sh/helm/v3 version=v3.19.0
bin=${QANAT_CACHE:-/var/cache/qanat}/bin
chart=daemonset/helm/qanat out=${MANIFESTS:-daemonset/manifests}

is_pinned() { [ -x "$bin/helm" ] && go version -m "$bin/helm" 2>/dev/null | grep -q "$module[[:space:]]$version"; }
if ! is_pinned; then
	command -v go >/dev/null || { echo "no Go toolchain to compile helm $version with" >&2; exit 1; }
	echo "compiling helm $version" >&2
	mkdir -p "$bin"
	GOFLAGS=-mod=mod GOBIN=$bin CGO_ENABLED=0 nice -n 19 go install "$module/cmd/helm@$version" >&2
fi
if [ "${1:-}" != --render ]; then
	printf '%s\n' "$bin/helm"
	exit
fi
mkdir -p "$out"
head='# SPDX-License-Identifier: Apache-2.0
# Rendered from daemonset/helm/qanat: make manifests'
{ # a helm compiled this way does not know a recent Kubernetes by itself
	printf '%s\n' "$head"
	"$bin/helm" template qanat "$chart" --namespace qanat-system --set createNamespace=true --kube-version 1.30.0 |
		sed '/^# SPDX-License-Identifier/d'
} >"$out/qanat.yaml"
crds() { # <group>
	printf '%s\n' "$head"
	for file in "$chart/crds/${1}"_*.yaml; do
		printf -- '---\n'
		sed '/^# SPDX-License-Identifier/d' "$file"
	done
}
crds qanat.io >"$out/crds-qanat.yaml"
crds security.istio.io >"$out/crds-istio.yaml" # apart: where Istio is installed, its own definitions must stay
