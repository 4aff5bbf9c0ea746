# SPDX-License-Identifier: Apache-2.0
"""Whole meshes while what they trust changes: roots, issuers, clocks, the kind of authority, trust domains."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from controlplane.ca import revocation, x509
from controlplane.ca.authority import Authority
from mesh.model.identity import Identity
from tests.soak.certs import ENVIRONMENT, OBJECTS, Soak
from tests.support.clocks import Clocks
from tests.support.objects import namespace, pod
from tests.support.playground import Playground, until, wait_for
from tests.support.sockets import Conn, echo, serving
from tests.unit.identity.sources import material, mount
from ztunnel.identity.x509 import new_request

Start = Callable[..., Playground]
TOWN = (namespace("town", meshed=True), pod("town/client", "n1"), pod("town/server", "n2"))
HBONE = 15008


def certificates(mesh: Playground, node: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(mesh.ztunnel(node, "/certs"))
    return found


async def talk_both_ways(mesh: Playground, port: int) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    for one, other in ((client, server), (server, client)):
        async with serving(other.listen(port), echo):
            with await one.dial(other.ip4, port) as conn:
                assert await conn.echo(b"hello") == b"hello"


@pytest.mark.timeout(150)
async def test_no_request_fails_while_roots_clocks_and_the_authority_change(start: Start, tmp_path: Path) -> None:
    clocks = Clocks(tmp_path)
    mesh = start(*OBJECTS, env={**ENVIRONMENT, **clocks.env})

    outcome = await Soak(mesh, clocks).run(20)

    assert outcome.failures == []
    assert outcome.roots >= 1
    assert outcome.issuers >= 1
    assert outcome.outages >= 2
    assert outcome.requests > 200


async def test_nodes_whose_clocks_are_eight_minutes_apart_talk_both_ways(start: Start, tmp_path: Path) -> None:
    clocks = Clocks(tmp_path)
    clocks.set("ztunnel.n1", -240)
    clocks.set("ztunnel.n2", +240)
    mesh = start(*TOWN, env=clocks.env)

    await talk_both_ways(mesh, 7007)

    for node, ahead_s in (("n1", 240), ("n2", -240)):
        assert round(json.loads(mesh.ztunnel(node, "/status"))["authorityClockAheadS"]) == ahead_s


async def test_clock_that_is_an_hour_behind_is_named_and_all_is_well_when_it_is_set(
    start: Start, tmp_path: Path
) -> None:
    clocks = Clocks(tmp_path)
    clocks.set("ztunnel.n2", -3600)
    mesh = start(*TOWN, env={**clocks.env, "QANAT_ZTUNNEL_READY_WITHOUT_CERTS_S": "0"})
    (entry,) = await until("an error", lambda: [one for one in certificates(mesh, "n2") if one["error"]])
    assert "is not valid until then; the clock of this node says" in entry["error"]
    assert "compare the clocks of this node and the authority" in entry["error"]

    clocks.set("ztunnel.n2", 0)

    await until("a certificate", lambda: certificates(mesh, "n2")[0]["state"] == "valid", deadline_s=30)
    await talk_both_ways(mesh, 7007)


async def test_root_is_replaced_by_command_while_connections_stay_open(start: Start) -> None:
    mesh = start(*TOWN, env={"QANAT_LEAF_TTL": "6s"})
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    before = {node: certificates(mesh, node)[0]["rootSerials"] for node in ("n1", "n2")}
    async with serving(server.listen(7007), echo):
        with await client.dial(server.ip4, 7007) as conn:
            qanat = [sys.executable, "-c", "from nodeagent.cli import main; main()"]
            rotate = ["ca", "rotate", "root", "--wait", "40s", "--mesh", mesh.paths.name, "-o", "json"]
            running = await asyncio.create_subprocess_exec(*qanat, *rotate, stdout=asyncio.subprocess.PIPE)
            rotating = asyncio.ensure_future(running.communicate())
            while not rotating.done():
                assert await conn.echo(b"old") == b"old"
                with await client.dial(server.ip4, 7007) as fresh:
                    assert await fresh.echo(b"new") == b"new"
            answer = json.loads((await rotating)[0])
    assert running.returncode == 0
    assert (answer["phase"], answer["changed"]) == ("idle", True)
    for node in ("n1", "n2"):
        after = certificates(mesh, node)[0]["rootSerials"]
        assert after == [answer["root"]["serial"]] != before[node]


async def test_authority_that_dies_in_the_middle_of_a_rotation_finishes_it(start: Start) -> None:
    mesh = start(*TOWN, env={"QANAT_LEAF_TTL": "4s"})
    soak = Soak(mesh, clocks=None)  # type: ignore[arg-type]
    assert await soak.authority.rotate("root")

    for phase in ("issuing", "idle"):
        pid = mesh.pid("controlplane")
        assert pid is not None
        mesh.kill("controlplane")
        mesh.wait_restarted("controlplane", pid)
        await soak.authority.phase(phase)

    await talk_both_ways(mesh, 7007)
    assert all(len(one["rootSerials"]) == 1 for node in ("n1", "n2") for one in certificates(mesh, node))


async def test_revocation_list_counts_after_a_new_root_and_restarts(start: Start) -> None:
    mesh = start(*TOWN, env={"QANAT_LEAF_TTL": "4s"})
    revocation.change(mesh.paths.root / "ca", mesh.paths.crl, add=["abc123"], now=dt.datetime.now(dt.UTC))
    soak = Soak(mesh, clocks=None)  # type: ignore[arg-type]
    assert await soak.authority.rotate("root")
    await soak.authority.phase("idle")

    for node in ("n1", "n2"):
        pid = mesh.pid(f"ztunnel/{node}")
        assert pid is not None
        (mesh.paths.node(node) / "crl.last-good").unlink()
        mesh.kill(f"ztunnel/{node}")
        mesh.wait_restarted(f"ztunnel/{node}", pid)

    mesh.wait_settled()
    await talk_both_ways(mesh, 7007)
    for node in ("n1", "n2"):
        assert "revocation lists in force" in mesh.log(f"ztunnel/{node}").rpartition("ztunnel started")[2]


async def test_certificates_from_files_carry_traffic_and_are_taken_when_replaced(start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "cluster.local", 3600)

    def issue() -> None:
        for name in ("client", "server"):
            mount(tmp_path / "certs" / "town" / name, material(authority, Identity("cluster.local", "town", name)))

    issue()
    mesh = start(*TOWN, env={"CA_ADDRESS": f"file:{tmp_path}/certs"})
    await talk_both_ways(mesh, 7007)
    before = certificates(mesh, "n1")[0]["serial"]
    authority.rotate_root()
    authority.advance(everybody_trusts_both=True)

    issue()

    await until("the new certificate", lambda: certificates(mesh, "n1")[0]["serial"] != before)
    await until("both roots", lambda: len(certificates(mesh, "n2")[0]["rootSerials"]) == 2)
    await talk_both_ways(mesh, 7008)


@pytest.fixture(scope="module")
def aliased() -> Any:
    mesh = Playground.start(*TOWN, env={"QANAT_ZTUNNEL_ALIASES": "old.example older.example"})
    yield mesh
    mesh.close()


@pytest.mark.parametrize(
    ("domain", "welcome"),
    [("cluster.local", True), ("old.example", True), ("older.example", True), ("strange.example", False)],
)
async def test_client_of_an_alias_of_the_trust_domain_is_let_in_and_no_other(
    aliased: Playground, tmp_path: Path, domain: str, welcome: bool
) -> None:
    server = aliased.pod("town/server")
    context = context_of(aliased, Identity(domain, "town", "client"), tmp_path)
    async with serving(server.listen(7007), echo):
        with await aliased.host("n1").dial(server.ip4, HBONE) as conn:
            status = await asyncio.to_thread(tunnel, conn, context, f"{server.ip4}:7007")

    assert status == ("200" if welcome else "closed")
    if welcome:
        wait_for("the identity in the log", lambda: f"spiffe://{domain}/ns/town/sa/client" in aliased.log("ztunnel/n2"))


def context_of(mesh: Playground, identity: Identity, directory: Path) -> ssl.SSLContext:
    """A client of `identity`, signed by the mesh's own issuer: only the trust domain is at issue."""
    issuer = x509.Signer.from_pem((mesh.paths.root / "ca" / "issuer.pem").read_bytes())
    request = new_request(identity)
    parsed, now = x509.read_request(request.csr_pem, identity), dt.datetime.now(dt.UTC)
    leaf = x509.sign_leaf(parsed, identity, issuer, dt.timedelta(minutes=5), now)
    (directory / "leaf.pem").write_bytes(leaf.pem.encode() + issuer.certificate_pem.encode() + request.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(directory / "leaf.pem")
    return context


def tunnel(conn: Conn, context: ssl.SSLContext, authority: str) -> str:
    """Status of a CONNECT; "closed" when there was none. Blocks."""
    h2_conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    try:
        with context.wrap_socket(conn.blocking()) as sock:
            h2_conn.initiate_connection()
            h2_conn.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
            sock.sendall(h2_conn.data_to_send())
            while data := sock.recv(65536):
                for event in h2_conn.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        return next(str(value) for name, value in event.headers if str(name) == ":status")
                sock.sendall(h2_conn.data_to_send())
    except (ssl.SSLError, ConnectionError):
        pass
    return "closed"
