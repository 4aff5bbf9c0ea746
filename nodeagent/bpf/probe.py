# SPDX-License-Identifier: Apache-2.0
"""Can this machine run Qanat? Found by trying, never by version: distribution kernels carry features back."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nodeagent.bpf import bcc_object, descriptors, features, libbpf
from nodeagent.bpf.descriptors import Link
from nodeagent.bpf.libbpf import BpfError
from nodeagent.bpf.loader import Object
from nodeagent.capture import mounts, netns, trial
from nodeagent.capture.errors import CaptureError

_ADMIN, _NET_ADMIN, _BPF = 21, 12, 39


@dataclass(frozen=True, slots=True)
class CheckResult:
    """ok None: only information, nothing depends on it. fix: what the operator can do; empty when ok."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""


def run() -> list[CheckResult]:
    """Every check, in the order in which things are needed. Attaches to a cgroup of its own and cleans up."""
    results = [_privileges(), _btf(), _bpffs(), _cgroup2()]
    if results[0].ok and results[2].ok:
        with _scratch() as maps:
            results += _programs(maps)
            results += _hooks(maps) if results[3].ok else []
    results += [_helper_set_retval(), _netns_cookie(), _ipv6(), _ktls(), _mptcp(), _bcc(), _shortcut()]
    return results


def is_ready(results: list[CheckResult]) -> bool:
    return all(result.ok is not False for result in results)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A private directory in bpffs for the probes' maps."""
    base = mounts.BPFFS / "qanat-probe"
    base.mkdir(mode=0o700, exist_ok=True)
    own = base / str(os.getpid())
    own.mkdir(exist_ok=True)
    try:
        yield own
    finally:
        for pin in own.iterdir():
            pin.unlink()
        own.rmdir()
        with contextlib.suppress(OSError):
            base.rmdir()


def _privileges() -> CheckResult:
    effective = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    names = {_ADMIN: "CAP_SYS_ADMIN", _NET_ADMIN: "CAP_NET_ADMIN", _BPF: "CAP_BPF"}
    missing = [name for bit, name in names.items() if not effective >> bit & 1]
    if missing:
        return CheckResult("privileges", False, f"missing: {', '.join(missing)}", "run as root")
    return CheckResult("privileges", True, "root" if os.geteuid() == 0 else "all capabilities present")


def _btf() -> CheckResult:
    path = Path("/sys/kernel/btf/vmlinux")
    if path.exists():
        return CheckResult("btf", True, f"{path}, {path.stat().st_size // 1024} KiB")
    return CheckResult("btf", False, f"{path} is missing", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y")


def _bpffs() -> CheckResult:
    try:
        mounts.ensure_bpffs()
    except (CaptureError, OSError) as error:
        return CheckResult("bpffs", False, str(error), f"mount -t bpf bpf {mounts.BPFFS}")
    return CheckResult("bpffs", True, str(mounts.BPFFS))


def _cgroup2() -> CheckResult:
    try:
        root = mounts.cgroup2_root()
    except CaptureError as error:
        return CheckResult("cgroup2", False, str(error), "mount -t cgroup2 none /sys/fs/cgroup/unified")
    return CheckResult("cgroup2", True, str(root))


_OBJECTS = {
    "capture": "cgroup connect4/6, socket storage, netns cookie",
    "names": "cgroup getpeername4/6 and getsockname4/6",
    "flows": "sockops with socket storage, netns cookie and a ring buffer",
    "inbound": "sk_lookup with a socket map",
}
_ITERATORS = {"listing": "iterator over socket storage"}


def _programs(maps: Path) -> list[CheckResult]:
    """The real objects through the real verifier."""
    results: list[CheckResult] = []
    for name, what in (_OBJECTS | _ITERATORS).items():
        try:
            with Object(name, maps, features.settings_of(name)):
                results.append(CheckResult(f"program {name}", True, what))
        except BpfError as error:
            fix = "run `make bpf`" if error.errno == errno.ENOENT else "use a kernel of 5.15 or later with BPF enabled"
            results.append(CheckResult(f"program {name}", False, f"{what}: {error}", fix))
    return results


def _hooks(maps: Path) -> list[CheckResult]:
    """Attach where it matters: the v2 root (another tenant's exclusive attachment shows here) and our namespace.
    The programs find no pod in their maps, so nobody notices."""
    results: list[CheckResult] = []
    root = os.open(mounts.cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for name in _OBJECTS:
            target = own if name == "inbound" else root
            where = "network namespace" if name == "inbound" else "cgroup root"
            results.append(_attach(name, maps, target, where))
    finally:
        os.close(root)
        os.close(own)
    return results


def _attach(name: str, maps: Path, target: int, where: str) -> CheckResult:
    label = f"attach {name}"
    try:
        with Object(name, maps, features.settings_of(name)) as loaded:
            for program in loaded.programs():
                kinds = {"flows": descriptors.CGROUP_SOCK_OPS, "inbound": descriptors.SK_LOOKUP}
                kind = kinds.get(name) or loaded.attach_type(program)
                Link.attach(loaded.prog_fd(program), target, kind).close()
    except BpfError as error:
        if error.errno == errno.EPERM:
            fix = "a program is attached there without BPF_F_ALLOW_MULTI: find it with `bpftool cgroup tree`"
        else:
            fix = "use a kernel of 5.15 or later with CONFIG_CGROUP_BPF=y"
        return CheckResult(label, False, f"{where}: {error}", fix)
    return CheckResult(label, True, f"{where}, beside other programs")


def _guarded(name: str, probe: Callable[[], CheckResult]) -> CheckResult:
    try:
        return probe()
    except OSError as error:
        return CheckResult(name, False, str(error), "use a kernel of 5.15 or later")


def _helper_set_retval() -> CheckResult:
    has = features.has_helper(features.PROG_CGROUP_SOCK_ADDR, features.HELPER_SET_RETVAL)
    detail = "refusals are ECONNREFUSED" if has else "not there: refusals are EPERM instead of ECONNREFUSED"
    return CheckResult("helper set_retval", True if has else None, detail)


def _netns_cookie() -> CheckResult:
    return _guarded("netns cookie", lambda: CheckResult("netns cookie", True, f"ours is {netns.own_cookie()}"))


def _ipv6() -> CheckResult:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        return CheckResult("ipv6", None, f"not on this host ({error.strerror}): IPv4 only")
    return CheckResult("ipv6", True, "usable")


def _ktls() -> CheckResult:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
        try:
            client.setsockopt(socket.IPPROTO_TCP, 31, b"tls")  # TCP_ULP
        except OSError as error:
            return CheckResult("kernel TLS", None, f"not there ({error.strerror}): TLS records are made in user space")
    return CheckResult("kernel TLS", None, "there")


def _mptcp() -> CheckResult:
    path = Path("/proc/sys/net/mptcp/enabled")
    try:
        on = path.read_text().strip() == "1"
    except OSError:
        return CheckResult("mptcp", None, "not in this kernel")
    detail = "enabled: captured, but getpeername() of an MPTCP socket shows the loopback address" if on else "off"
    return CheckResult("mptcp", None, detail)


def _bcc() -> CheckResult:
    try:
        python = bcc_object.find_python()
    except bcc_object.BccMissing:
        return CheckResult(
            "bcc", None, "not installed: no `qanat trace`, no `--loader bcc`", f"apt-get install {bcc_object.PACKAGE}"
        )
    return CheckResult("bcc", None, f"installed for {python}: `qanat trace` and `--loader bcc` work")


def _shortcut() -> CheckResult:
    found = trial.of_this_kernel()
    return CheckResult("same-node shortcut", True if found.usable else None, found.summary())


def maps_audit(base: Path) -> list[CheckResult]:
    """Pinned maps of one instance (directory of maps) against qanat.h: sizes by the kernel and by BTF."""
    wanted = {
        "sockets": ("", "qn_socket"),
        "pods": ("", "qn_pod"),
        "pod_addrs": ("qn_ip", ""),
        "flows": ("qn_flow_key", "qn_flow"),
        "settings": ("", "qn_settings"),
        "mesh_addrs": ("qn_ip", ""),
        "services": ("qn_addr", "qn_service"),
        "verdicts": ("qn_verdict_key", "qn_verdict"),
    }
    results: list[CheckResult] = []
    for name, (key, value) in wanted.items():
        try:
            with descriptors.Map.pinned(base / name) as opened:
                info = opened.info
        except BpfError as error:
            results.append(CheckResult(f"map {name}", False, str(error), "restart the node agent"))
            continue
        bad = [
            f"{what} is {size} bytes, qanat.h says {libbpf.layout(struct_name)}"
            for what, struct_name, size in (("key", key, info.key_size), ("value", value, info.value_size))
            if struct_name and size != libbpf.layout(struct_name)
        ]
        detail = f"id {info.id}, key {info.key_size}, value {info.value_size}, max {info.max_entries}"
        fix = "`qanat down --purge`, then start again"
        results.append(CheckResult(f"map {name}", not bad, "; ".join(bad) or detail, fix if bad else ""))
    return results


if __name__ == "__main__":
    for result in run():
        print({True: "ok  ", False: "FAIL", None: "info"}[result.ok], result.name, "-", result.detail, result.fix)
