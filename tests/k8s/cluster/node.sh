#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# First process of a node, in mount, network, uts, ipc, cgroup and pid namespaces of its own (node.py starts it).
#   node.sh NAME ADDRESS ADDRESS6 GATEWAY GATEWAY6 DIRECTORY BINARIES
# DIRECTORY holds kubelet.yaml, kubelet.kubeconfig, proxy.yaml, containerd.toml, images (links to tar files) and gets the
# logs. All standard paths look like a node's; the machine's own bpffs, cgroup mounts and /run stay out of sight.
set -euo pipefail
name=$1 address=$2 address6=$3 gateway=$4 gateway6=$5 dir=$6 bin=$7

hostname "$name"
mount --make-rprivate /
mount --make-rshared /
mount -t proc proc /proc
hierarchies=$(ls /sys/fs/cgroup)
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for hierarchy in $hierarchies; do
	mkdir "/sys/fs/cgroup/$hierarchy"
	case $hierarchy in
	unified) mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
	systemd) mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd ;;
	*) mount -t cgroup -o "$hierarchy" cgroup "/sys/fs/cgroup/$hierarchy" ;;
	esac
done
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
for path in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers /etc/cni/net.d /opt/cni/bin; do
	mkdir -p "$path" "$dir$path"
	mount --bind "$dir$path" "$path"
	mount --make-private "$path"
	mount --make-shared "$path"
done
cp /usr/lib/cni/* /opt/cni/bin/

touch "$dir/namespaces-ready"
until [ -e /sys/class/net/eth0 ]; do sleep 0.02; done
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 net.ipv6.conf.all.forwarding=1 \
	net.bridge.bridge-nf-call-ip6tables=1
ip addr add "$address/24" dev eth0
ip addr add "$address6/64" dev eth0 nodad
ip link set eth0 up
ip route add default via "$gateway"
ip route add default via "$gateway6"

containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.05; done
for image in "$dir"/images/*.tar; do ctr --namespace k8s.io images import "$image" >>"$dir/images.log" 2>&1; done
"$bin/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.kubeconfig" --hostname-override="$name" \
	--node-ip="$address,$address6" >"$dir/kubelet.log" 2>&1 &
while :; do # with another configuration where that was changed meanwhile
	"$bin/kube-proxy" --config="$dir/proxy.yaml" >>"$dir/kube-proxy.log" 2>&1 || sleep 0.2
done &
while :; do wait -n || sleep 0.2; done
