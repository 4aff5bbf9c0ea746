# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster of real programs on this machine: a control plane in a network namespace, nodes in namespaces
and control groups of their own, joined by a bridge, in both families (addresses.py), with a DNS (names.py).

`up()` takes about 15 seconds; `down()` ends exactly what was started, also of a run that crashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.k8s.cluster import control, machine, names, node_files, programs, waiting
from tests.k8s.cluster.addresses import GATEWAY, GATEWAY6
from tests.k8s.cluster.control import Credentials
from tests.k8s.cluster.machine import CONTROL, HOME
from tests.k8s.cluster.node import NODES, Node
from tests.k8s.cluster.waiting import READY_S

T = TypeVar("T")


class Cluster:
    """What runs under our names. Made by running(), or of one that runs already."""

    def __init__(self, nodes: tuple[Node, ...] = NODES) -> None:
        self.nodes = nodes
        found = programs.find()
        self._programs, self._kubectl = found.directory, found.kubectl

    @property
    def kubeconfig(self) -> Path:
        return HOME / "pki" / "admin.kubeconfig"

    def run(self, *argv: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """In the control plane's network, from where the API, nodes and pods can be reached."""
        return _run([*_IN_CONTROL, *argv], check=check, stdin=stdin)

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        argv = [str(self._kubectl), f"--kubeconfig={self.kubeconfig}", *arguments]
        return self.run(*argv, check=check, stdin=stdin).stdout

    def kubectl_started(self, *arguments: str, **kwargs: Any) -> subprocess.Popen[bytes]:
        """Beside us, for ``exec`` of something long; the caller ends it."""
        return subprocess.Popen(
            [*_IN_CONTROL, str(self._kubectl), f"--kubeconfig={self.kubeconfig}", *arguments], **kwargs
        )

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def on(self, name: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """In all of a node's namespaces and its control group, as its root."""
        process = self.started_on(name, *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        if check and process.returncode:
            raise AssertionError(f"{name}: {' '.join(argv)}: {out}{err}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def started_on(self, name: str, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Beside us; the caller ends it."""
        return next(one for one in self.nodes if one.name == name).started(*argv, **options)

    def up(self, images: tuple[Path, ...], proxy_mode: str = "nftables") -> None:
        """Raises AssertionError with what is not ready. Names are there a few seconds later."""
        credentials = Credentials(HOME / "pki")
        self._start_control(credentials)
        for one in self.nodes:
            self._start_node(one, credentials, images, proxy_mode)
        self._route({one: self._pod_cidrs(one) for one in self.nodes})
        self.apply(*names.objects())
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={READY_S:.0f}s")

    def _start_control(self, credentials: Credentials) -> None:
        machine.make_cgroup(CONTROL)
        machine.ip("netns", "add", CONTROL)
        machine.ip("link", "set", "lo", "up", netns=CONTROL)
        machine.ip("link", "add", "br0", "type", "bridge", netns=CONTROL)
        machine.ip("addr", "add", f"{GATEWAY}/24", "dev", "br0", netns=CONTROL)
        machine.ip("addr", "add", f"{GATEWAY6}/64", "dev", "br0", "nodad", netns=CONTROL)
        machine.ip("link", "set", "br0", "up", netns=CONTROL)
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        etcd = HOME / "etcd"
        etcd.mkdir(mode=0o700)
        _start("etcd", control.etcd(etcd))
        _start("kube-apiserver", control.api_server(self._programs, credentials.directory))
        self.until(lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok", "the API is ready")
        _start("kube-controller-manager", control.controller_manager(self._programs, credentials))
        _start("kube-scheduler", control.scheduler(self._programs, credentials))
        for name, role, user in (
            ("to-kubelet", "system:kubelet-api-admin", "kube-apiserver-kubelet-client"),
            ("proxy", "system:node-proxier", "system:kube-proxy"),
        ):
            self.kubectl("create", "clusterrolebinding", f"test-{name}", f"--clusterrole={role}", f"--user={user}")

    def stop_api(self) -> None:
        """At once, as by a crash. Nodes and pods stay."""
        for pid in (machine.CGROUPS / "unified" / CONTROL / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/kube-apiserver"):
                    os.kill(int(pid), signal.SIGKILL)

    def start_api(self) -> None:
        """After stop_api(). Returns when it answers."""
        _start("kube-apiserver", control.api_server(self._programs, HOME / "pki"))
        self.until(lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok", "the API is ready")

    def _start_node(self, one: Node, credentials: Credentials, images: tuple[Path, ...], proxy_mode: str) -> None:
        credentials.add_node(one.name, *one.addresses)
        node_files.write(one.directory, one.name, credentials, images, proxy_mode)
        one.boot(self._programs)

    def reboot(self, name: str) -> None:
        """All of a node's processes die at once; what is on its disk stays, /run, bpffs and control groups are new.
        Returns when its programs have been started."""
        one = next(one for one in self.nodes if one.name == name)
        cidrs = {other: self._pod_cidrs(other) for other in self.nodes if other is not one}
        machine.end_cgroup(one.cgroup)
        (one.directory / "namespaces-ready").unlink()
        before = machine.sysctls()
        try:
            one.boot(self._programs)
            self.until(
                lambda: self.on(name, "ip", "-6", "route", check=False).stdout.count("default"), f"{name}: routes"
            )
            for other, theirs in cidrs.items():
                self._route_to(other, theirs, one)
            self.until(self._renews(name, self._lease(name)), f"kubelet of {name} is back")
        finally:
            machine.restore_sysctls(before)

    def proxy(self, mode: str) -> None:
        """kube-proxy of every node in this mode from now on. Returns when its rules are in force, and those alone.
        It ends by itself when its file changes, and node.sh starts it again."""
        for one in self.nodes:
            node_files.write_proxy(one.directory, one.name, HOME / "pki" / "proxy.kubeconfig", mode)
        for one in self.nodes:
            self.until(lambda one=one: self._proxy_modes(one.name) == [mode], f"kube-proxy of {one.name}: {mode}")  # type: ignore[misc]

    def _proxy_modes(self, name: str) -> list[str]:
        """In which there are rules that lead to services."""
        marks = {
            "nftables": ("nft list table ip kube-proxy", "service-ips"),
            "iptables": ("iptables-save -t nat", "-A KUBE-SVC"),
        }
        return [mode for mode, (ask, mark) in marks.items() if mark in self.on(name, *ask.split(), check=False).stdout]

    def _lease(self, name: str) -> str:
        place = ("-n", "kube-node-lease", "lease", name, "-o", "jsonpath={.spec.renewTime}")
        return self.kubectl("get", *place, check=False)

    def _renews(self, name: str, old: str) -> Callable[[], bool]:
        return lambda: self._lease(name) not in ("", old)

    def _pod_cidrs(self, one: Node) -> tuple[str, ...]:
        def ask() -> tuple[str, ...]:
            asked = ("get", "node", one.name, "-o", "jsonpath={.spec.podCIDRs[*]}")
            return tuple(self.kubectl(*asked, check=False).split())

        return self.until(ask, f"{one.name} is registered")

    def _route(self, cidrs: dict[Node, tuple[str, ...]]) -> None:
        for one, theirs in cidrs.items():
            for cidr, via in zip(theirs, one.addresses, strict=True):
                machine.ip("route", "add", cidr, "via", via, netns=CONTROL)
            for other in self.nodes:
                if other is not one:
                    self._route_to(one, theirs, other)
            node_files.write_network(one.directory, theirs)

    def _route_to(self, one: Node, cidrs: tuple[str, ...], at: Node) -> None:
        for cidr, via in zip(cidrs, one.addresses, strict=True):
            self.on(at.name, "ip", "route", "add", cidr, "via", via)

    def until(self, ask: Callable[[], T], what: str, seconds: float = READY_S) -> T:
        """What `ask` answers once it is true. Raises AssertionError with the logs' ends."""
        return waiting.until(ask, what, seconds)


_IN_CONTROL = ("nsenter", f"--net=/run/netns/{CONTROL}", "--")
"""Not ``ip netns exec``: that would hide /sys."""


def _run(argv: list[str], *, check: bool, stdin: str | None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=240)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)[-500:]}:\n{done.stdout}{done.stderr}")
    return done


def _start(name: str, argv: list[str]) -> None:
    with (HOME / f"{name}.log").open("wb") as log:
        subprocess.Popen(
            [*_IN_CONTROL, *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: machine.enter_cgroup(CONTROL),
        )


def clean() -> None:
    """Ends and removes all that has our names."""
    for name in machine.our_cgroups():
        machine.end_cgroup(name)
    if Path("/run/netns", CONTROL).exists():
        machine.ip("netns", "delete", CONTROL)
    shutil.rmtree(HOME, ignore_errors=True)


@contextmanager
def running(images: tuple[Path, ...], nodes: tuple[Node, ...] = NODES, **options: str) -> Iterator[Cluster]:
    """Raises Unfit where there can be no cluster."""
    cluster = Cluster(nodes)
    with machine.lock(), machine.sysctls_kept() as values:
        clean()
        HOME.mkdir(mode=0o755)
        try:
            try:
                cluster.up(images, **options)
            finally:
                machine.restore_sysctls(values)  # kubelets write them when they start
            yield cluster
        finally:
            clean()
