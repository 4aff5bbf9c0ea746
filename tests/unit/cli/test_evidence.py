# SPDX-License-Identifier: Apache-2.0
"""A claim must fail when its evidence is missing or wrong: each test spoils one thing of a good run."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.cli import access
from nodeagent.cli.demo import EXAMPLE
from nodeagent.cli.demo_run import set_label
from nodeagent.cli.evidence import Download, Evidence, LogLine, Outcome, Proof, claims
from nodeagent.cli.pcap import Flow, Stream

SHOPPER, MEDIA, VISITOR = IPv4Address("10.0.1.1"), IPv4Address("10.0.2.1"), IPv4Address("10.0.1.9")
TLS_UP = b"\x16\x03\x01 hello"
_VERSIONS = bytes([0, 43, 0, 2, 3, 4])
_BODY = b"\x03\x03" + bytes(32) + b"\x00" + b"\x13\x01" + b"\x00" + len(_VERSIONS).to_bytes(2, "big") + _VERSIONS
TLS_DOWN = b"\x16\x03\x03\x00\x00\x02" + len(_BODY).to_bytes(3, "big") + _BODY


def flow(client: IPv4Address, server: IPv4Address, port: int, opened: float, up: bytes, down: bytes = b"") -> Flow:
    return Flow(client, 40000, server, port, opened, True, Stream(bytearray(up)), Stream(bytearray(down)))


def outcome(name: str, phase: str, **changes: Any) -> Outcome:
    seen = {"seen_client": str(SHOPPER), "seen_server": "10.96.0.5"} if phase != "outside" else {}
    return replace(Outcome(name, phase, f"secret-{phase}", "", 0.01, **seen), **changes)


def proof(node: str, direction: str) -> Proof:
    return Proof(node, direction, "HBONE", "shopper", "media")


def line(node: str, direction: str, *, mtls: bool = True) -> LogLine:
    return LogLine(node, direction, "web.shop.svc", "web", "shopper" if mtls else "", "web" if mtls else "", mtls, "")


GOOD = Evidence(
    outcomes=(outcome("web", "before"), outcome("web", "after"), outcome("visitor", "outside")),
    download=Download("secret-carried", 1000, "", began=10.0, labelled=11.0, captured=12.0, ended=14.0),
    proofs=(proof("n1", "outbound"), proof("n2", "inbound")),
    expected=("shopper", "media"),
    certificates={"shopper": "shopper", "media": "media"},
    client_address=str(SHOPPER),
    service_addresses={"web": ("10.96.0.5",)},
    mesh_addresses=frozenset({SHOPPER, MEDIA}),
    restarted=(),
    flows=(
        flow(SHOPPER, MEDIA, 8080, 9.0, b"GET secret-before"),
        flow(SHOPPER, MEDIA, 8082, 10.0, b"GET secret-carried"),
        flow(SHOPPER, MEDIA, 15008, 12.5, TLS_UP, TLS_DOWN),
        flow(VISITOR, MEDIA, 8080, 13.0, b"GET secret-outside"),
    ),
    capture=b"all packets",
    dropped=0,
    log=(line("n1", "outbound"), line("n2", "inbound"), line("n2", "inbound", mtls=False)),
)


def failing(evidence: Evidence) -> list[str]:
    return [claim.claim for claim in claims(evidence) if not claim.ok]


def test_all_claims_hold_for_a_good_run() -> None:
    assert failing(GOOD) == []


BEFORE, CARRIED, TUNNEL, OUTSIDE = GOOD.flows
EXTRA_PLAIN = flow(SHOPPER, MEDIA, 8080, 13.0, b"x")
EXTRA_SECRET = flow(VISITOR, MEDIA, 9, 13.0, b"secret-after")
NOT_TLS = flow(SHOPPER, MEDIA, 15008, 12.5, b"PRI * HTTP/2.0", b"answer")


@pytest.mark.parametrize(
    ("spoiled", "claim"),
    [
        pytest.param(
            {"outcomes": (outcome("web", "before", problem="refused"), *GOOD.outcomes[1:])},
            "every request works before the label",
            id="a request failed before the label",
        ),
        pytest.param(
            {"outcomes": (GOOD.outcomes[0], outcome("web", "after", problem="refused"), GOOD.outcomes[2])},
            "the same requests work after the label",
            id="a request failed after it",
        ),
        pytest.param(
            {"flows": (CARRIED, TUNNEL, OUTSIDE)},
            "before the label every secret is readable on the wire",
            id="the wire was not watched before",
        ),
        pytest.param(
            {"flows": (*GOOD.flows, EXTRA_SECRET)},
            "after the label no secret is anywhere on the wire",
            id="a secret leaked, on whatever connection",
        ),
        pytest.param(
            {"capture": b"udp secret-after"},
            "after the label no secret is anywhere on the wire",
            id="a secret leaked in something that is not TCP",
        ),
        pytest.param(
            {"flows": (*GOOD.flows, EXTRA_PLAIN)},
            "between labelled pods there is only TLS 1.3 to port 15008",
            id="a connection beside the tunnel",
        ),
        pytest.param(
            {"flows": (BEFORE, CARRIED, TUNNEL, NOT_TLS, OUTSIDE)},
            "between labelled pods there is only TLS 1.3 to port 15008",
            id="a tunnel without TLS",
        ),
        pytest.param(
            {"flows": (BEFORE, CARRIED, TUNNEL)},
            "their traffic is plain, as before (so the wire was watched)",
            id="the wire was not watched after",
        ),
        pytest.param(
            {"proofs": (proof("n1", "outbound"),)},
            "both ends have proved who they are to each other",
            id="one end knows nobody",
        ),
        pytest.param(
            {"proofs": (proof("n1", "outbound"), replace(proof("n2", "inbound"), src_identity="mallory"))},
            "both ends have proved who they are to each other",
            id="somebody else at the other end",
        ),
        pytest.param(
            {"certificates": {"shopper": "shopper", "media": "mallory"}},
            "the certificates carry those identities, one each",
            id="another name in the certificate",
        ),
        pytest.param(
            {"certificates": {}}, "the certificates carry those identities, one each", id="no certificates seen"
        ),
        pytest.param(
            {"log": (GOOD.log[0], GOOD.log[2])},
            "access logs of both nodes have each connection, with both identities",
            id="one node logged nothing",
        ),
        pytest.param(
            {"log": GOOD.log[:2]}, "a plain connection into the mesh is logged as plain", id="plain is not logged"
        ),
        pytest.param({"restarted": ("shop/web",)}, "no pod was restarted or touched", id="a pod restarted"),
        pytest.param({"dropped": 3}, "the capture of the wire is complete", id="tcpdump missed packets"),
        pytest.param({"dropped": -1}, "the capture of the wire is complete", id="tcpdump did not say"),
        pytest.param(
            {"download": replace(GOOD.download, problem="sha256 differs")},
            "a download open across the label goes on, and stays as it was (plain)",
            id="the download was damaged",
        ),
        pytest.param(
            {"download": replace(GOOD.download, ended=11.5)},
            "a download open across the label goes on, and stays as it was (plain)",
            id="the download was over before capture",
        ),
        pytest.param(
            {"outcomes": (GOOD.outcomes[0], outcome("web", "after", seen_client="127.0.0.1"), GOOD.outcomes[2])},
            "programs see the same addresses as without the mesh",
            id="the server saw the proxy",
        ),
        pytest.param(
            {"outcomes": (GOOD.outcomes[0], outcome("web", "after", seen_server="127.0.0.1"), GOOD.outcomes[2])},
            "programs see the same addresses as without the mesh",
            id="the client saw the proxy",
        ),
    ],
)
def test_a_claim_fails_when(spoiled: dict[str, Any], claim: str) -> None:
    assert failing(replace(GOOD, **spoiled)) == [claim]


def test_labels_are_rewritten_without_touching_other_objects(tmp_path: Path) -> None:
    file = tmp_path / "namespaces.yaml"
    file.write_text((EXAMPLE / "namespaces.yaml").read_text())

    set_label(file, "shop", None)
    without = list(yaml.safe_load_all(file.read_text()))
    set_label(file, "shop", "enabled")
    again = list(yaml.safe_load_all(file.read_text()))

    assert without[0]["metadata"] == {"name": "shop", "labels": {}}
    assert again == list(yaml.safe_load_all((EXAMPLE / "namespaces.yaml").read_text()))
    assert [path.name for path in tmp_path.iterdir()] == ["namespaces.yaml"]


def test_access_log_lines_are_read_back_and_half_written_ones_left_out(tmp_path: Path) -> None:
    whole = (
        '2026-01-01T00:00:00.000000Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:4 src.identity="spiffe://x/ns/a/sa/b"'
        ' dst.service="web.shop.svc.cluster.local" dst.workload="we\\"b" direction="inbound" mtls=true reason=ok\n'
    )
    (tmp_path / "log").write_text("starting\n" + whole + whole[:120])

    (found,) = access.read([("n1", tmp_path / "log")])

    assert (found.node, found.direction, found.workload, found.mtls) == ("n1", "inbound", 'we"b', True)
    assert found.src_identity == "spiffe://x/ns/a/sa/b"
