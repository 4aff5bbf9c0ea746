# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster of real programs on this machine: a control plane in a network namespace, nodes in namespaces
and control groups of their own, joined by a bridge. Addresses are of 198.18.0.0/15 and exist only in there.

`up()` takes about 15 seconds; `down()` ends exactly what was started, also of a run that crashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.k8s import apiserver
from tests.k8s.cluster import control, machine, node
from tests.k8s.cluster.control import GATEWAY, Credentials
from tests.k8s.cluster.machine import NAME, Unfit

HOME = Path("/var/tmp", NAME)
CONTROL = f"{NAME}-control"
READY_S = 120.0
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
TOOLS = ("etcd", "containerd", "ctr", "runc", "conntrack", "iptables", "nft", "ip", "nsenter", "unshare")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    address: str

    @property
    def cgroup(self) -> str:
        return f"{NAME}-{self.name}"

    @property
    def directory(self) -> Path:
        return HOME / self.name


NODES = (Node("n1", "198.18.0.11"), Node("n2", "198.18.0.12"))


def programs() -> Path:
    """Raises Unfit with what is missing and how to get it."""
    try:
        found = apiserver.programs()
    except apiserver.Missing as error:
        raise Unfit(str(error)) from None
    absent = [name for name in PROGRAMS if not (found / name).exists()]
    absent += [name for name in TOOLS if not shutil.which(name)]
    if not (found / "kubectl").exists() and not shutil.which("kubectl"):
        absent.append("kubectl")
    if not Path("/usr/lib/cni/bridge").exists():
        absent.append("CNI plugins (/usr/lib/cni)")
    if absent:
        raise Unfit(f"missing: {', '.join(absent)} (tools/k8s.sh installs and compiles them)")
    machine.hierarchies()
    return found


class Cluster:
    """What runs under our names. Made by running(), or of one that runs already."""

    def __init__(self, nodes: tuple[Node, ...] = NODES) -> None:
        self.nodes = nodes
        self._programs = programs()
        self._kubectl = next(p for p in (self._programs / "kubectl", Path(shutil.which("kubectl") or "")) if p.exists())

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
        target = next(one for one in self.nodes if one.name == name)
        enter = [
            "nsenter",
            "-t",
            str(_pid(target)),
            "-m",
            "-n",
            "-u",
            "-i",
            "-C",
            "-p",
            "--wd=/",
            "setpriv",
            "--pdeathsig",
            "KILL",
        ]
        return subprocess.Popen(
            [*enter, *argv],
            stdin=options.pop("stdin", subprocess.DEVNULL),
            preexec_fn=lambda: machine.enter_cgroup(target.cgroup),
            **options,
        )

    def up(self, images: tuple[Path, ...], proxy_mode: str = "nftables") -> None:
        """Raises AssertionError with what is not ready."""
        credentials = Credentials(HOME / "pki")
        self._start_control(credentials)
        for one in self.nodes:
            self._start_node(one, credentials, images, proxy_mode)
        cidrs = {one: self._pod_cidr(one) for one in self.nodes}
        self._route(cidrs)
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={READY_S:.0f}s")

    def _start_control(self, credentials: Credentials) -> None:
        machine.make_cgroup(CONTROL)
        machine.ip("netns", "add", CONTROL)
        machine.ip("link", "set", "lo", "up", netns=CONTROL)
        machine.ip("link", "add", "br0", "type", "bridge", netns=CONTROL)
        machine.ip("addr", "add", f"{GATEWAY}/24", "dev", "br0", netns=CONTROL)
        machine.ip("link", "set", "br0", "up", netns=CONTROL)
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
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
        credentials.add_node(one.name, one.address)
        node.write(one.directory, one.name, credentials, images, proxy_mode)
        self._boot(one)

    def _boot(self, one: Node) -> None:
        machine.make_cgroup(one.cgroup)
        script = Path(__file__).with_name("node.sh")
        namespaces = ["unshare", "-m", "-n", "-u", "-i", "-C", "-p", "-f", "--propagation", "private"]
        with (one.directory / "node.log").open("wb") as log:
            subprocess.Popen(
                [*namespaces, str(script), one.name, one.address, GATEWAY, str(one.directory), str(self._programs)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: machine.enter_cgroup(one.cgroup),
            )
        self.until((one.directory / "namespaces-ready").exists, f"{one.name} has its namespaces")
        link = f"to-{one.name}"
        with contextlib.suppress(subprocess.CalledProcessError):  # of the namespace before a reboot, not quite gone yet
            machine.ip("link", "delete", link, netns=CONTROL)
        machine.ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(_pid(one)), netns=CONTROL)
        machine.ip("link", "set", link, "master", "br0", "up", netns=CONTROL)

    def reboot(self, name: str) -> None:
        """All of a node's processes die at once; what is on its disk stays, /run, bpffs and control groups are new.
        Returns when its programs have been started."""
        one = next(one for one in self.nodes if one.name == name)
        cidrs = {other: self._pod_cidr(other) for other in self.nodes if other is not one}
        machine.end_cgroup(one.cgroup)
        (one.directory / "namespaces-ready").unlink()
        before = machine.sysctls()
        try:
            self._boot(one)
            self.until(lambda: self.on(name, "ip", "route", check=False).stdout.count("default"), f"{name} has a route")
            for other, cidr in cidrs.items():
                self.on(name, "ip", "route", "add", cidr, "via", other.address)
            self.until(self._renews(name, self._lease(name)), f"kubelet of {name} is back")
        finally:
            machine.restore_sysctls(before)

    def proxy(self, mode: str) -> None:
        """kube-proxy of every node in this mode from now on. Returns when its rules are in force, and those alone.
        It ends by itself when its file changes, and node.sh starts it again."""
        for one in self.nodes:
            node.write_proxy(one.directory, one.name, HOME / "pki" / "proxy.kubeconfig", mode)
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

    def _pod_cidr(self, one: Node) -> str:
        def ask() -> str:
            return self.kubectl("get", "node", one.name, "-o", "jsonpath={.spec.podCIDR}", check=False)

        return self.until(ask, f"{one.name} is registered")

    def _route(self, cidrs: dict[Node, str]) -> None:
        for one, cidr in cidrs.items():
            machine.ip("route", "add", cidr, "via", one.address, netns=CONTROL)
            for other in self.nodes:
                if other is not one:
                    self.on(other.name, "ip", "route", "add", cidr, "via", one.address)
            node.write_network(one.directory, cidr)

    def until(self, ask: Callable[[], T], what: str, seconds: float = READY_S) -> T:
        """What `ask` answers once it is true. Raises AssertionError with the logs' ends."""
        end = time.monotonic() + seconds
        while not (found := ask()):
            if time.monotonic() > end:
                raise AssertionError(f"not in {seconds:.0f} s: {what}; last: {found!r}\n{log_tails()}")
            time.sleep(0.1)
        return found


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


def _pid(one: Node) -> int:
    """Of the node's first process, the child of `unshare`."""
    procs = (machine.CGROUPS / "unified" / one.cgroup / "cgroup.procs").read_text().split()
    for pid in map(int, procs):
        with contextlib.suppress(OSError):
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            if status["NSpid"].split()[1:] == ["1"]:
                return pid
    raise AssertionError(f"{one.name} does not run:\n{log_tails()}")


def log_tails(lines: int = 6) -> str:
    found = []
    for path in sorted([*HOME.glob("*.log"), *HOME.glob("*/*.log")]):
        tail = path.read_text(errors="replace").splitlines()[-lines:]
        found.append("\n".join([f"--- {path}", *(line[:300] for line in tail)]))
    return "\n".join(found)


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
