# SPDX-License-Identifier: Apache-2.0
"""One run of the demo: the same requests before and after the label, with the wire between the nodes watched."""

from __future__ import annotations

import base64
import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nodeagent.cli import access, certificates, pcap, rows
from nodeagent.cli.client import Answer, Program, ask, find
from nodeagent.cli.evidence import Claim, Download, Evidence, LogLine, Outcome, Proof, claims, count
from nodeagent.cli.playground_client import Playground, end
from nodeagent.cli.scenario import Scenario, new_secret

LABEL = "qanat.io/mesh"
NAMESPACE = "shop"
CLIENT_NODE = "n1"
RATE = 400_000
CARRIED_BYTES = 3_200_000
"""Eight seconds at RATE: longer than a label takes to be followed on a busy machine, short enough to watch."""
LIVE_BYTES = 1_200_000
CAPTURE_S = 20.0
FLUSH_S = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """What `-o json` prints. ``requests``: each with the number of times its secret was on the wire."""

    ok: bool
    mesh: str
    claims: tuple[Claim, ...]
    requests: tuple[dict[str, object], ...]
    identities: tuple[Proof, ...]
    access_log: tuple[str, ...]
    label_to_captured_s: float
    duration_s: float
    capture_file: str


@dataclass(frozen=True, slots=True)
class Carried:
    """The download that is open while the label comes."""

    secret: str
    began: float
    child: subprocess.Popen[bytes]

    def finish(self, scenario: Scenario, labelled: float, captured: float) -> Download:
        try:
            out, err = self.child.communicate(timeout=CARRIED_BYTES / RATE + 20)
            problem = err.decode(errors="replace").strip() if self.child.returncode else ""
            problem = problem or scenario.compare(out.decode(), self.secret, CARRIED_BYTES)
        except subprocess.TimeoutExpired:
            problem = "did not end in time"
        return Download(self.secret, CARRIED_BYTES, problem, self.began, labelled, captured, time.time())


class Demo:
    """``say`` gets one line per finished step."""

    def __init__(self, playground: Playground, work: Path, say: Callable[[str], None]) -> None:
        self.playground = playground
        self.capture_file = work / "link.pcap"
        self._say = say
        self._began = time.monotonic()

    def run(self) -> Report:
        scenario = Scenario(self.playground, self.playground.directory)
        pods = self.playground.pods()
        running = self.playground.restarts()
        self.step(f"{len(pods)} pods on {len({pod.node for pod in pods.values()})} nodes are up, none in the mesh")
        with self._watched_link() as lost:
            before = [scenario.run(request, "before") for request in scenario.requests]
            self.step(f"before the label: {_tally(before)}")
            with self._download(scenario) as carried:
                labelled, captured = self._label()
                after = [scenario.run(request, "after") for request in scenario.requests]
                self.step(f"after the label: {_tally(after)}")
                proofs, certificates = self._identities(scenario)
                self.step(f"{len(proofs)} ends of a live connection asked who is at the other one")
                outside = [scenario.run(request, "outside") for request in scenario.outside]
                self.step(f"pods outside the mesh: {_tally(outside)}")
                download = carried.finish(scenario, labelled, captured)
                self.step(f"the download opened before the label has ended: {download.problem or 'complete'}")
            self._await_on_wire(outside[-1].secret)
        log = self._access_log(after)
        after_pods, after_running = self.playground.pods(), self.playground.restarts()
        flows = tuple(pcap.flows(self.capture_file))
        self.step(f"wire between the nodes: {len(flows)} connections, {sum(f.size for f in flows)} payload bytes read")
        vips = self.playground.service_addresses()
        evidence = Evidence(
            outcomes=(*before, *after, *outside),
            download=download,
            proofs=tuple(proofs),
            expected=(_identity("shopper"), _identity("media")),
            certificates=certificates,
            client_address=str(pods[NAMESPACE, "shopper"].addresses[0]),
            service_addresses={name: vips[NAMESPACE, name] for name in ("web", "catalog")},
            mesh_addresses=frozenset(a for pod in pods.values() if pod.namespace == NAMESPACE for a in pod.addresses),
            restarted=tuple(
                sorted({f"{ns}/{name}" for (ns, name), pod in pods.items() if after_pods.get((ns, name)) != pod}
                       | {name for name, was in running.items() if after_running.get(name) != was})
            ),
            flows=flows,
            capture=self.capture_file.read_bytes(),
            dropped=lost[0],
            log=log,
        )  # fmt: skip
        found = claims(evidence)
        return Report(
            ok=all(claim.ok for claim in found),
            mesh=self.playground.mesh,
            claims=tuple(found),
            requests=tuple(_shown(one, count(flows, one.secret)) for one in evidence.outcomes),
            identities=evidence.proofs,
            access_log=tuple(line.text for line in log if line.service.startswith("web.") and line.mtls),
            label_to_captured_s=round(download.captured - download.labelled, 3),
            duration_s=round(time.monotonic() - self._began, 3),
            capture_file=str(self.capture_file),
        )

    def step(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:5.1f} s  {text}")

    @contextlib.contextmanager
    def _watched_link(self) -> Iterator[list[int]]:
        """tcpdump runs during the block; afterwards the list holds the number of packets it missed."""
        lost: list[int] = []
        child = self.playground.capture_link(CLIENT_NODE, self.capture_file)
        try:
            yield lost
        finally:
            child.send_signal(signal.SIGINT)
            try:
                _, said = child.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                _, said = child.communicate()
        dropped = re.search(rb"(\d+) packets dropped by kernel", said)
        lost.append(int(dropped[1]) if dropped else -1)

    def _await_on_wire(self, secret: str) -> None:
        """Packets take a while from tcpdump's ring to its file; once the last plain request is there, so is the rest.
        In vain if it never crossed the wire in plain: then a claim fails."""
        deadline = time.monotonic() + FLUSH_S
        while secret.encode() not in self.capture_file.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.1)

    @contextlib.contextmanager
    def _download(self, scenario: Scenario) -> Iterator[Carried]:
        """One that is well on its way when the block begins."""
        secret, began = new_secret(), time.time()
        shopper = self.playground.pods()[NAMESPACE, "shopper"]
        command = scenario.download_command(secret, CARRIED_BYTES, RATE)
        child = self.playground.popen(shopper, command, subprocess.PIPE)
        try:
            time.sleep(0.5)
            yield Carried(secret, began, child)
        finally:
            end(child)

    def _label(self) -> tuple[float, float]:
        """When it was written, and when every pod was captured (Unix seconds)."""
        labelled = time.time()
        set_label(self.playground.directory / "namespaces.yaml", NAMESPACE, "enabled")
        captured = self.playground.wait_for("capture of the labelled pods", CAPTURE_S, self._not_captured)
        self.step(f"label set: every pod of {NAMESPACE} captured {captured - labelled:.2f} s later")
        return labelled, captured

    def _not_captured(self, dumps: Sequence[Answer], statuses: Sequence[Answer]) -> str:
        """Every node must know every labelled pod as captured, serve its own, and have their certificates."""
        wanted = {name for namespace, name in self.playground.pods() if namespace == NAMESPACE}
        for answer in dumps:
            hbone = {r.name for r in rows.workloads([answer], ()) if r.namespace == NAMESPACE and r.protocol == "HBONE"}
            if wanted - hbone:
                return f"{answer.node} does not know as captured: {', '.join(sorted(wanted - hbone))}"
        served = {
            r.name for r in rows.workloads(dumps, statuses) if r.namespace == NAMESPACE and r.capture == "captured"
        }
        if wanted - served:
            return f"not captured: {', '.join(sorted(wanted - served))}"
        have = {row.identity for row in certificates.rows(dumps) if row.kind == "Leaf" and row.serial}
        missing = {_identity(name) for name in wanted} - have
        return f"no certificate: {', '.join(sorted(missing))}" if missing else ""

    def _identities(self, scenario: Scenario) -> tuple[list[Proof], dict[str, str]]:
        """A slow download is opened so that there is a live connection to ask both ztunnels about."""
        shopper = self.playground.pods()[NAMESPACE, "shopper"]
        command = scenario.download_command(new_secret(), LIVE_BYTES, RATE)
        child = self.playground.popen(shopper, command, subprocess.DEVNULL)
        proofs: list[Proof] = []
        try:
            deadline = time.monotonic() + 2.5
            while len(proofs) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
                live, dumps = ask(
                    find(self.playground.mesh), (Program.ZTUNNEL, "/connections"), (Program.ZTUNNEL, "/config_dump")
                )
                proofs = [proof for answer in live for proof in _proofs(answer)]
        finally:
            end(child)
        return proofs, {identity: name for answer in dumps for identity, name in _names(answer)}

    def _access_log(self, after: Sequence[Outcome]) -> tuple[LogLine, ...]:
        """Lines are written a moment after a connection ends: wait for the last ones."""
        deadline = time.monotonic() + FLUSH_S
        while True:
            log = tuple(access.read(self.playground.ztunnel_logs()))
            seen = {(line.service.partition(".")[0], line.direction) for line in log}
            missing = [one for one in after if not {(one.request, "outbound"), (one.request, "inbound")} <= seen]
            is_plain_there = any(line.workload == "web" and not line.mtls for line in log)
            if (not missing and is_plain_there) or time.monotonic() > deadline:
                return log
            time.sleep(0.1)


def _identity(account: str) -> str:
    return f"spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}"


def _proofs(answer: Answer) -> Iterator[Proof]:
    for one in answer.data or ():
        if one.get("path") == "tunnel":
            yield Proof(answer.node, one["direction"], "HBONE", one["srcIdentity"], one["dstIdentity"])


def _names(answer: Answer) -> Iterator[tuple[str, str]]:
    """Identity a certificate is filed under, and the name openssl finds inside it."""
    for entry in (answer.data or {}).get("certificates", ()):
        for cert in entry["certChain"][:1]:
            yield entry["identity"], san(base64.b64decode(cert["pem"]))


def san(pem: bytes) -> str:
    """The URI in a certificate, read by another implementation than the one that made it."""
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=pem, capture_output=True, check=False
    )
    found = re.search(rb"URI:(\S+)", done.stdout)
    return found[1].decode() if found else f"unreadable: {done.stderr.decode(errors='replace').strip()}"


def set_label(file: Path, namespace: str, value: str | None) -> None:
    """Rewrites a Namespace object's label in place, atomically; None takes it away. Comments are lost: use a copy."""
    documents: list[Any] = list(yaml.safe_load_all(file.read_text()))
    for document in documents:
        if document["kind"] == "Namespace" and document["metadata"]["name"] == namespace:
            labels = document["metadata"].setdefault("labels", {})
            labels.pop(LABEL, None)
            if value is not None:
                labels[LABEL] = value
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    fresh.replace(file)


def _tally(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(
        f"{one.request} {'failed' if one.problem else f'{one.duration_s * 1000:.0f} ms'}" for one in outcomes
    )


def _shown(one: Outcome, seen: int) -> dict[str, object]:
    return {
        "request": one.request,
        "phase": one.phase,
        "ok": not one.problem,
        "problem": one.problem,
        "duration_ms": round(one.duration_s * 1000, 1),
        "secret_seen_on_wire": seen,
    }
