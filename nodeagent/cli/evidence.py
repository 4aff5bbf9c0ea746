# SPDX-License-Identifier: Apache-2.0
"""What a demo run measured, and the claims that follow from it. Plain functions: a claim without evidence fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nodeagent.cli.pcap import Flow, IPAddress
from nodeagent.cli.render import size

HBONE_PORT = 15008


@dataclass(frozen=True, slots=True)
class Claim:
    """``measured``: what was seen, in numbers of this run."""

    claim: str
    ok: bool
    measured: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. ``problem``: why it failed, empty if it did not. ``seen_client``: the address the server saw;
    ``seen_server``: what getpeername() told the client; both empty where the program does not tell."""

    request: str
    phase: str
    secret: str
    problem: str
    duration_s: float
    seen_client: str = ""
    seen_server: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """A download that was open across the label. Times are Unix seconds; ``captured``: when every pod was."""

    secret: str
    size: int
    problem: str
    began: float
    labelled: float
    captured: float
    ended: float


@dataclass(frozen=True, slots=True)
class Proof:
    """A live connection as one node's ztunnel reports it."""

    node: str
    direction: str
    protocol: str
    src_identity: str
    dst_identity: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a node's access log, the fields that matter here; ``service`` is the host name."""

    node: str
    direction: str
    service: str
    workload: str
    src_identity: str
    dst_identity: str
    mtls: bool
    text: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """``expected``: the identities of client and server of the live connection. ``certificates``: identity to the name
    inside the certificate, read by openssl. ``mesh_addresses``: of the labelled pods. ``restarted``: pods that were not
    the same before and after. ``capture``: the file that ``flows`` were read from, for what is in no flow."""

    outcomes: tuple[Outcome, ...]
    download: Download
    proofs: tuple[Proof, ...]
    expected: tuple[str, str]
    certificates: Mapping[str, str]
    client_address: str
    service_addresses: Mapping[str, tuple[str, ...]]
    mesh_addresses: frozenset[IPAddress]
    restarted: tuple[str, ...]
    flows: tuple[Flow, ...]
    capture: bytes
    dropped: int
    log: tuple[LogLine, ...]


def count(flows: Sequence[Flow], secret: str) -> int:
    return sum(flow.count(secret.encode()) for flow in flows)


def claims(seen: Evidence) -> list[Claim]:
    before = [one for one in seen.outcomes if one.phase == "before"]
    after = [one for one in seen.outcomes if one.phase == "after"]
    outside = [one for one in seen.outcomes if one.phase == "outside"]
    return [
        _all_worked("every request works before the label", before),
        _readable("before the label every secret is readable on the wire", seen.flows, before),
        _survived(seen.download, seen.flows),
        Claim("no pod was restarted or touched", not seen.restarted, ", ".join(seen.restarted) or "0 of them changed"),
        _all_worked("the same requests work after the label", after),
        _hidden(seen, after),
        _only_tunnels(seen),
        _proved(seen),
        _certificates(seen),
        _logged(seen, after),
        _same_addresses(seen, [*before, *after]),
        _all_worked("pods outside the mesh still talk, also with pods inside", outside),
        _readable("their traffic is plain, as before (so the wire was watched)", seen.flows, outside),
        _logged_plain(seen),
        Claim("the capture of the wire is complete", seen.dropped == 0, f"{seen.dropped} packets missed by tcpdump"),
    ]


def _all_worked(claim: str, outcomes: Sequence[Outcome]) -> Claim:
    failed = [f"{one.request}: {one.problem}" for one in outcomes if one.problem]
    slowest = max((one.duration_s for one in outcomes), default=0.0)
    return Claim(
        claim,
        bool(outcomes) and not failed,
        "; ".join(failed) or f"{len(outcomes)} of {len(outcomes)}, the slowest took {slowest * 1000:.0f} ms",
    )


def _readable(claim: str, flows: Sequence[Flow], outcomes: Sequence[Outcome]) -> Claim:
    counts = {one.request: count(flows, one.secret) for one in outcomes}
    return Claim(claim, bool(counts) and all(counts.values()), "times seen: " + _pairs(counts))


def _pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "nothing asked"


def _survived(download: Download, flows: Sequence[Flow]) -> Claim:
    spanned = download.began < download.labelled < download.captured < download.ended
    return Claim(
        "a download open across the label goes on, and stays as it was (plain)",
        spanned and not download.problem and count(flows, download.secret) > 0,
        download.problem
        or f"{size(download.size)}, same sha256; began {download.labelled - download.began:.1f} s before the label, "
        f"ended {download.ended - download.captured:.1f} s after capture",
    )


def _hidden(seen: Evidence, after: Sequence[Outcome]) -> Claim:
    found = {one.request: max(count(seen.flows, one.secret), seen.capture.count(one.secret.encode())) for one in after}
    carried = sum(flow.size for flow in _tunnels(seen))
    return Claim(
        "after the label no secret is anywhere on the wire",
        bool(after) and not any(found.values()) and carried > 0,
        f"times seen: {_pairs(found)}; in {size(carried)} of tunnel",
    )


def _inside(seen: Evidence) -> list[Flow]:
    """Connections between labelled pods, opened after all of them were captured."""
    return [
        flow
        for flow in seen.flows
        if flow.saw_syn and flow.opened > seen.download.captured and {flow.client, flow.server} <= seen.mesh_addresses
    ]


def _tunnels(seen: Evidence) -> list[Flow]:
    return [flow for flow in _inside(seen) if flow.server_port == HBONE_PORT]


def _only_tunnels(seen: Evidence) -> Claim:
    inside, tunnels = _inside(seen), _tunnels(seen)
    others = sorted({flow.server_port for flow in inside if flow.server_port != HBONE_PORT})
    versions = sorted({flow.tls_version or "no TLS" for flow in tunnels})
    return Claim(
        "between labelled pods there is only TLS 1.3 to port 15008",
        bool(tunnels) and not others and versions == ["1.3"],
        f"{len(tunnels)} connections to {HBONE_PORT}, TLS {', '.join(versions) or '-'}; "
        f"to other ports: {', '.join(map(str, others)) or 'none'}",
    )


def _proved(seen: Evidence) -> Claim:
    good = {
        one.direction
        for one in seen.proofs
        if one.protocol == "HBONE" and (one.src_identity, one.dst_identity) == seen.expected
    }
    shown = [
        f"{one.node} {one.direction}: {_short(one.src_identity)} to {_short(one.dst_identity)}" for one in seen.proofs
    ]
    return Claim(
        "both ends have proved who they are to each other",
        good == {"outbound", "inbound"},
        ", ".join(shown) or "no live tunnel was seen",
    )


def _short(identity: str) -> str:
    return identity.rpartition("/")[2] or "nobody"


def _certificates(seen: Evidence) -> Claim:
    wrong = {who: name for who, name in seen.certificates.items() if who != name}
    have = set(seen.expected) <= seen.certificates.keys()
    return Claim(
        "the certificates carry those identities, one each",
        have and not wrong,
        ", ".join(f"{who} says {name}" for who, name in wrong.items())
        or f"{len(seen.certificates)} leaf certificates read with openssl",
    )


def _logged(seen: Evidence, after: Sequence[Outcome]) -> Claim:
    """Every tunnelled connection is two lines: one where it leaves, one where it arrives."""
    proven = [line for line in seen.log if line.mtls and line.src_identity and line.dst_identity]
    counts = {
        one.request: tuple(
            sum(line.service.partition(".")[0] == one.request and line.direction == way for line in proven)
            for way in ("outbound", "inbound")
        )
        for one in after
    }
    shown = ", ".join(f"{name} {leaving}+{arriving}" for name, (leaving, arriving) in counts.items())
    return Claim(
        "access logs of both nodes have each connection, with both identities",
        bool(counts) and all(leaving and arriving for leaving, arriving in counts.values()),
        f"lines where it left + where it arrived: {shown or 'none'}",
    )


def _logged_plain(seen: Evidence) -> Claim:
    lines = [line for line in seen.log if line.direction == "inbound" and not line.mtls and line.workload == "web"]
    return Claim(
        "a plain connection into the mesh is logged as plain",
        bool(lines) and not any(line.src_identity for line in lines),
        f"{len(lines)} inbound lines for web with mtls=false",
    )


def _same_addresses(seen: Evidence, outcomes: Sequence[Outcome]) -> Claim:
    clients = {(one.phase, one.seen_client) for one in outcomes if one.seen_client}
    servers = [one for one in outcomes if one.seen_server]
    wrong = [one for one in servers if one.seen_server not in seen.service_addresses.get(one.request, ())]
    ok = clients == {("before", seen.client_address), ("after", seen.client_address)} and bool(servers) and not wrong
    return Claim(
        "programs see the same addresses as without the mesh",
        ok,
        f"server saw {', '.join(sorted({address for _, address in clients})) or '?'} (the client pod is "
        f"{seen.client_address}); client saw {', '.join(sorted({one.seen_server for one in servers})) or '?'}",
    )
