# SPDX-License-Identifier: Apache-2.0
"""`qanat demo` as people and scripts run it, and the views on a mesh that it keeps."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodeagent.playground.names import BPF_ROOT, NETNS_DIR, RUN_ROOT
from tests.support.playground import wait_for

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "from nodeagent.cli import main; main(prog_name='qanat')"
DEMO_S = 120.0

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(240)]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENTRY, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def qanat(*arguments: str) -> tuple[int, str, str]:
    child = start(*arguments)
    out, err = child.communicate(timeout=DEMO_S)
    return child.returncode, out, err


def leftovers(mesh: str) -> list[str]:
    """What carries the name of a mesh: namespaces, pins, run files, the demo's own directory."""
    places = [
        (NETNS_DIR, f"qn-{mesh}-*"),
        (BPF_ROOT, f"{mesh}-*"),
        (RUN_ROOT, f"*{mesh}*"),
        (Path("/tmp"), f"qanat-{mesh}-*"),
    ]
    return [str(path) for directory, pattern in places for path in directory.glob(pattern)]


@dataclass(frozen=True)
class Kept:
    mesh: str
    report: dict[str, Any]


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    """One run with --keep; its mesh stays up for the tests of this file."""
    code, out, err = qanat("demo", "--keep", "-o", "json")
    report = json.loads(out) if out else {}
    try:
        failed = [claim for claim in report.get("claims", ()) if not claim["ok"]]
        assert (code, failed) == (0, []), err
        yield Kept(report["mesh"], report)
    finally:
        if report:
            qanat("down", "--mesh", report["mesh"])
            shutil.rmtree(Path(report["capture_file"]).parent)
            assert leftovers(report["mesh"]) == []


def test_every_claim_holds_and_the_exit_code_says_so(kept: Kept) -> None:
    assert kept.report["ok"] is True
    assert len(kept.report["claims"]) >= 15
    assert all(claim["measured"] for claim in kept.report["claims"])


def test_secrets_are_on_the_wire_before_the_label_and_nowhere_after(kept: Kept) -> None:
    seen = {(one["phase"], one["request"]): one["secret_seen_on_wire"] for one in kept.report["requests"]}

    assert {name for phase, name in seen if phase == "before"} == {"web", "catalog", "cart", "media"}
    assert all(seen["before", name] > 0 and seen["after", name] == 0 for name in ("web", "catalog", "cart", "media"))


def test_both_ends_report_the_same_two_identities(kept: Kept) -> None:
    ends = {(one["direction"], one["src_identity"], one["dst_identity"]) for one in kept.report["identities"]}

    shopper, media = "spiffe://cluster.local/ns/shop/sa/shopper", "spiffe://cluster.local/ns/shop/sa/media"
    assert ends == {("outbound", shopper, media), ("inbound", shopper, media)}


def test_status_of_the_kept_mesh_has_no_problems(kept: Kept) -> None:
    code, out, err = qanat("status", "--mesh", kept.mesh, "-o", "json")

    status = json.loads(out)
    assert (code, status["problems"]) == (0, []), err
    assert [(n["node"], n["captured"], n["pods"]) for n in status["nodes"]] == [("n1", 1, 1), ("n2", 4, 4)]


def test_views_agree_with_the_yaml(kept: Kept) -> None:
    _, workloads, _ = qanat("workloads", "--mesh", kept.mesh, "-o", "json")
    _, services, _ = qanat("services", "--mesh", kept.mesh, "-o", "json")
    _, certs, _ = qanat("certs", "--mesh", kept.mesh, "-o", "json")

    protocols = {(w["namespace"], w["name"]): w["protocol"] for w in json.loads(workloads)["workloads"]}
    assert protocols == {
        ("legacy", "archive"): "TCP",
        ("legacy", "visitor"): "TCP",
        **{("shop", name): "HBONE" for name in ("cart", "catalog", "media", "shopper", "web")},
    }
    assert all((s["healthy"], s["endpoints"]) == (1, 1) for s in json.loads(services)["services"])
    leaves = [c for c in json.loads(certs)["certificates"] if c["kind"] == "Leaf"]
    assert sorted(c["identity"].rpartition("/")[2] for c in leaves) == ["cart", "catalog", "media", "shopper", "web"]


def test_an_open_connection_is_shown_at_both_ends(kept: Kept) -> None:
    url = "http://media/download?bytes=40000000&rate=400000"
    command = ["exec", "--mesh", kept.mesh, "-n", "shop", "shopper", "--", "curl", "-s", "-o", "/dev/null", url]
    client = start(*command)

    def both_ends() -> list[dict[str, Any]]:
        _, out, _ = qanat("connections", "--mesh", kept.mesh, "-n", "shop", "-o", "json")
        found: list[dict[str, Any]] = json.loads(out)["connections"]
        return found if len(found) == 2 else []

    try:
        ends = wait_for("both ends of the download", both_ends)
    finally:
        client.kill()
        client.communicate()

    assert [(one["node"], one["workload"], one["direction"], one["protocol"]) for one in ends] == [
        ("n1", "shop/shopper", "Outbound", "HBONE"),
        ("n2", "shop/media", "Inbound", "HBONE"),
    ]


def test_a_stuck_ztunnel_is_named_while_the_other_node_is_shown(kept: Kept) -> None:
    state = json.loads((RUN_ROOT / kept.mesh / "mesh.json").read_text())
    pid = next(p["process"]["pid"] for p in state["programs"] if p["name"] == "ztunnel/n2")
    os.kill(pid, signal.SIGSTOP)
    try:
        code, out, err = qanat("workloads", "--mesh", kept.mesh)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert code == 3
    assert "node n2: ztunnel: no answer" in err
    assert "shopper" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["pods started", "before the label:"])
def test_an_interrupted_demo_leaves_nothing_behind(moment: str, number: signal.Signals) -> None:
    child = start("demo")
    assert child.stdout is not None
    mesh = re.match(r"mesh (demo\w+),", child.stdout.readline())
    assert mesh is not None

    for line in child.stdout:
        if moment in line:
            break
    child.send_signal(number)
    _, err = child.communicate(timeout=DEMO_S)

    assert "interrupted" in err
    assert child.returncode == 1
    assert leftovers(mesh[1]) == []
