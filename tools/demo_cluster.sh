#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A cluster of kind or minikube with the mesh in it, a demo application and a proof that its connections are the mesh's.
#   tools/demo_cluster.sh kind|minikube [--dry-run]          all of it; may be repeated (`make kind`, `make minikube`)
#   tools/demo_cluster.sh kind|minikube down [--dry-run]     the cluster away, with all that is in it
#   tools/demo_cluster.sh here [--dry-run]                   application, label and proof in the cluster kubectl leads to,
#                                                            whose nodes have the image and the mesh
# --dry-run prints the commands and runs none. KUBECTL: another kubectl. QANAT_DEMO: the cluster's name (qanat-demo).
set -euo pipefail
cd "$(dirname "$0")/.."
engine='' action=up dry=''
for word in "$@"; do
	case $word in
	kind | minikube | here) engine=$word ;;
	up | down) action=$word ;;
	--dry-run) dry=yes ;;
	*) engine='' && break ;;
	esac
done
[ -n "$engine" ] || { sed -n '3,9s/^# \{0,1\}//p' "$0" >&2 && exit 2; }

name=${QANAT_DEMO:-qanat-demo}
image=build/images/qanat.tar
qanat=.venv/bin/qanat
read -ra kubectl <<<"${KUBECTL:-kubectl}"
[ "$engine" = here ] || export KUBECONFIG=$PWD/build/$engine.kubeconfig

say() { printf '\n== %s\n' "$*"; }
run() { # <command...>: shown, and run unless this is a dry run
	printf '   %s\n' "$(printf '%q ' "$@")"
	[ -n "$dry" ] || "$@"
}
need() { # <program> <where it comes from>
	command -v "$1" >/dev/null || missing+=("$1 is not installed: $2")
}
until_so() { # <seconds> <what> <command...>: until it succeeds
	local seconds=$1 what=$2 end
	shift 2
	printf '   (until %s, at most %s s)\n' "$what" "$seconds"
	[ -z "$dry" ] || return 0
	end=$((SECONDS + seconds))
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || { echo "not in $seconds s: $what" >&2 && return 1; }
		sleep 1
	done
}

check() {
	missing=()
	if [ "$engine" != here ]; then
		need "$engine" "$([ "$engine" = kind ] && echo https://kind.sigs.k8s.io/docs/user/quick-start/ ||
			echo https://minikube.sigs.k8s.io/docs/start/)"
		[ "$engine" = minikube ] || command -v docker >/dev/null || command -v podman >/dev/null ||
			missing+=("neither docker nor podman is installed: https://docs.docker.com/engine/install/")
	fi
	[ "$action" = down ] || need "${kubectl[0]}" https://kubernetes.io/docs/tasks/tools/
	[ ${#missing[@]} = 0 ] || printf '%s\n' "${missing[@]}" >&2
	[ ${#missing[@]} = 0 ] || [ -n "$dry" ] || exit 1
}

nodes() {
	[ -z "$dry" ] || { echo "<each node>" && return; }
	if [ "$engine" = kind ]; then kind get nodes --name "$name"; else minikube -p "$name" node list | cut -f1; fi
}
on_node() { # <node> <command>
	if [ "$engine" = kind ]; then
		run "$(command -v docker || command -v podman || echo docker)" exec "$1" sh -c "$2"
	else
		run minikube -p "$name" ssh -n "$1" -- sudo sh -c "'$2'"
	fi
}
is_there() {
	[ -z "$dry" ] || return 1
	if [ "$engine" = kind ]; then kind get clusters 2>/dev/null | grep -qx "$name"; else minikube -p "$name" status >/dev/null 2>&1; fi
}

make_cluster() {
	say "the image, from this machine's files"
	run make images
	say "a cluster of $engine: $name"
	if is_there && [ "$engine" = kind ]; then
		run kind export kubeconfig --name "$name" --kubeconfig "$KUBECONFIG"
	elif [ "$engine" = kind ]; then
		run kind create cluster --name "$name" --config daemonset/demo/kind.yaml --kubeconfig "$KUBECONFIG" --wait 180s
	else
		run minikube start -p "$name" --nodes 2 --container-runtime containerd --cni kindnet --wait all
	fi
	say "a BPF file system on each node, where systemd has not mounted one"
	local node
	while read -r node; do
		on_node "$node" 'mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf' </dev/null
	done < <(nodes)
	say "the image onto the nodes"
	if [ "$engine" = kind ]; then
		run kind load image-archive "$image" --name "$name"
	else
		run minikube -p "$name" image load "$image"
	fi
	say "the mesh"
	run "$qanat" install
	run "$qanat" check --cluster
}

ask() { # <who>
	run "${kubectl[@]}" -n shop exec "deploy/$1" -- python3 /programs/ask.py
}
is_refused() { ! "${kubectl[@]}" -n shop exec "deploy/$1" -- python3 /programs/ask.py; }
is_served() { "${kubectl[@]}" -n shop exec "deploy/$1" -- python3 /programs/ask.py; }
mesh_log() { "${kubectl[@]}" -n qanat-system logs -l "app.kubernetes.io/component in (ztunnel,nodeagent)" --tail=400 --prefix=false; }
is_meshed() { is_served client && mesh_log | grep 'src.identity="\{0,1\}spiffe://[^ ]*/ns/shop/sa/client' >/dev/null; } # not -q: it ends before a long log does

demo() {
	say "the application, without the mesh"
	run "${kubectl[@]}" apply -f daemonset/demo/shop.yaml
	local one
	for one in web client stranger; do
		run "${kubectl[@]}" -n shop rollout status "deploy/$one" --timeout=120s
	done
	until_so 30 "the service has its endpoint on every node" is_served client
	ask client
	say "its namespace into the mesh; no pod restarts"
	run "${kubectl[@]}" label --overwrite namespace shop qanat.io/mesh=enabled
	until_so 60 "the client's identity is in the mesh's log" is_meshed
	ask client
	[ -n "$dry" ] || mesh_log | grep '/ns/shop/sa/client' | tail -2
	say "a policy: only the client may ask"
	ask stranger
	run "${kubectl[@]}" apply -f daemonset/demo/policy.yaml
	until_so 30 "the stranger is refused" is_refused stranger
	ask client
	say "Proved: the same pods, now with identities, and a policy that goes by them."
	echo "   kubectl -n shop exec deploy/stranger -- python3 /programs/ask.py      # refused"
	[ "$engine" = here ] || echo "   export KUBECONFIG=$KUBECONFIG      # for kubectl and qanat; away with it all: make $engine-down"
}

check
if [ "$action" = down ]; then
	case $engine in
	kind) run kind delete cluster --name "$name" --kubeconfig "$KUBECONFIG" ;;
	minikube) run minikube delete -p "$name" ;;
	here) run "${kubectl[@]}" delete --ignore-not-found -f daemonset/demo/policy.yaml -f daemonset/demo/shop.yaml ;;
	esac
	[ "$engine" = here ] || run rm -f "$KUBECONFIG"
else
	[ "$engine" = here ] || make_cluster
	demo
fi
