# SPDX-License-Identifier: Apache-2.0
"""`qanat check`: can Qanat run on this machine? One line per check; every failure comes with its fix."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click

from nodeagent.cli.client import Program, RunningMesh, ask
from nodeagent.cli.errors import Exit
from nodeagent.cli.render import Format, console, dump
from nodeagent.cli.where import Where, where_options
from nodeagent.playground.names import RUN_ROOT

MIN_FILES = 16_384
"""Each connection takes up to four descriptors in the ztunnel of each side (two sockets, a pipe), each pod a dozen."""

NODE_PORTS = (15000, 15020, 15021)
"""Used inside every node's own namespace: on this machine's they only matter to a single-node install."""

TOOLS = (
    ("ip", "iproute2", "nodes and pods are network namespaces"),
    ("nft", "nftables", "service addresses for pods outside the mesh"),
    ("tcpdump", "tcpdump", "`qanat demo` looks at the wire"),
    ("curl", "curl", "examples/shop"),
    ("nginx", "nginx-light", "examples/shop"),
    ("redis-server", "redis-server", "examples/shop"),
    ("redis-cli", "redis-tools", "examples/shop"),
)
REQUIRED_TOOLS = ("ip", "nft")
BUILT = (("ztunnel.dataplane._zt", "the tunnel engine"), ("nodeagent.bpf._libbpf", "the libbpf loader"))


@dataclass(frozen=True, slots=True)
class Check:
    """``level``: ok, info, warning (something is missing that not everybody needs) or failed."""

    group: str
    name: str
    level: str
    detail: str
    fix: str = ""


def run_all() -> list[Check]:
    return [*_machine(), *_kernel(), *_build(), *_tools(), *_limits(), *_ports()]


def _verdict(group: str, name: str, ok: bool, detail: str, fix: str, *, otherwise: str = "failed") -> Check:
    return Check(group, name, "ok" if ok else otherwise, detail, "" if ok else fix)


def _machine() -> Iterator[Check]:
    root = os.geteuid() == 0
    yield _verdict("machine", "root", root, f"user id {os.geteuid()}", "sudo qanat check: namespaces and BPF need root")
    memory = _available_memory()
    yield _verdict(
        "machine", "memory", memory >= 512 << 20, f"{memory >> 20} MiB available",
        "free some: a mesh of two nodes and a dozen pods takes a few hundred MiB", otherwise="warning",
    )  # fmt: skip


def _available_memory() -> int:
    for row in Path("/proc/meminfo").read_text().splitlines():
        if row.startswith("MemAvailable:"):
            return int(row.split()[1]) << 10
    return 0


def _kernel() -> Iterator[Check]:
    try:
        from nodeagent.bpf import probe  # after the build only

        found = probe.run()
    except (ImportError, OSError) as error:
        yield Check("kernel", "probe", "failed", f"cannot look: {error}", "make build")
        return
    for one in found:
        if one.ok is None:
            yield Check("kernel", one.name, "info", one.detail, one.fix)
        else:
            yield _verdict("kernel", one.name, one.ok, one.detail, one.fix)


def _build() -> Iterator[Check]:
    for module, what in BUILT:
        present = find_spec(module) is not None
        yield _verdict("build", what, present, module if present else "not built", "make build")


def _tools() -> Iterator[Check]:
    for tool, package, purpose in TOOLS:
        path = shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        yield _verdict(
            "tools", tool, path is not None, path or f"not found: {purpose}", f"apt-get install {package}",
            otherwise="failed" if tool in REQUIRED_TOOLS else "warning",
        )  # fmt: skip


def _limits() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 30
    yield _verdict(
        "limits", "open files", most >= MIN_FILES, f"{soft} now, at most {hard}",
        f"ulimit -Hn {MIN_FILES} (systemd: LimitNOFILE={MIN_FILES})", otherwise="warning",
    )  # fmt: skip
    for name, wanted in (("fs.inotify.max_user_instances", 64), ("net.core.somaxconn", 1024)):
        path = Path("/proc/sys", *name.split("."))
        value = int(path.read_text()) if path.exists() else 0
        yield _verdict(
            "limits", name, value >= wanted, str(value), f"sysctl -w {name}={wanted}", otherwise="warning"
        )  # fmt: skip
    try:
        RUN_ROOT.mkdir(parents=True, exist_ok=True)
        writable = os.access(RUN_ROOT, os.W_OK)
    except OSError:
        writable = False
    yield _verdict("limits", str(RUN_ROOT), writable, "writable" if writable else "not writable", "run as root")


def _ports() -> Iterator[Check]:
    taken = [port for port in NODE_PORTS if _is_taken(port)]
    detail = f"in use on this host: {', '.join(map(str, taken))}" if taken else "free"
    yield _verdict(
        "ports", "admin, metrics, readiness", not taken, detail,
        "nothing for `qanat up` (each node has a namespace of its own); find the user with: ss -ltnp",
        otherwise="warning",
    )  # fmt: skip


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


MAPS = (Program.AGENT, "/maps")


def _maps(mesh: RunningMesh) -> list[Check]:
    """One group for each node; a node that does not answer has failed."""
    (answers,) = ask(mesh, MAPS)
    found: list[Check] = []
    for answer in answers:
        group = f"node {answer.node}"
        if answer.error:
            found.append(
                Check(group, "nodeagent", "failed", answer.error, f"qanat logs nodeagent/{answer.node}{mesh.option}")
            )
            continue
        found += [_verdict(group, one["name"], one["ok"], one["detail"], one["fix"]) for one in answer.data]
    return found


def _cluster(where: Where) -> list[Check]:
    from nodeagent.cli.cluster import checks  # the client library is a second that other checks do not need
    from nodeagent.cli.cluster.connect import with_api

    return with_api(where.kubeconfig, where.context, checks.run)


MARKS = {"ok": ("✓", "green"), "info": ("-", "dim"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


def _print(checks: list[Check], echo: Callable[..., None]) -> None:
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            echo(f"[bold]{group}[/bold]")
        mark, colour = MARKS[check.level]
        echo(f"  [{colour}]{mark}[/{colour}] {check.name}: ", end="")
        echo(check.detail, markup=False)
        if check.fix:
            echo(f"      fix: {check.fix}", markup=False)


@click.command(
    epilog="""\b
Examples:
  qanat check
  qanat check -o json | jq '.checks[] | select(.level != "ok")'
  qanat check --maps --mesh shop
  qanat check --cluster --context prod
  qanat check --maps --context prod --node n1

\b
Exit codes:
  0  nothing failed (warnings are allowed)
  1  a check failed"""
)
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.option("--maps", is_flag=True, help="Instead: do the kernel's maps on every node hold what they should?")
@click.option("--cluster", is_flag=True, help="Instead: can a Kubernetes cluster have the mesh, or how does it stand?")
@click.option("--node", default=None, metavar="NAME", help="Of --maps: only this node.")
@where_options
def check(form: str, maps: bool, cluster: bool, node: str | None, where: Where) -> None:
    """Can Qanat run on this machine? Kernel features, tools, limits and ports, each failure with its fix.

    With --maps, of a running mesh: pods, addresses, services, verdicts and attached programs of each node as the kernel
    has them, against what the node agent wants there.

    With --cluster, before `qanat install`: the API, your rights, definitions, other meshes, the nodes' kernels; after
    it also every program, and every node in a line."""
    if cluster and maps:
        raise click.UsageError("--cluster and --maps ask about different meshes: give one")
    checks = _cluster(where) if cluster else _maps(where.find(node)) if maps else run_all()
    failed = sum(one.level == "failed" for one in checks)
    warnings = sum(one.level == "warning" for one in checks)
    chosen = Format(form)
    if chosen.is_data:
        click.echo(dump({"ok": not failed, "failed": failed, "warnings": warnings, "checks": checks}, chosen))
    else:
        _print(checks, console().print)
        click.echo(f"{sum(one.level == 'ok' for one in checks)} ok, {warnings} warnings, {failed} failed")
    if failed:
        raise SystemExit(Exit.FAILED)
