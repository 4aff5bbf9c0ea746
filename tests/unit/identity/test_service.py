# SPDX-License-Identifier: Apache-2.0
"""Istio's certificate API over a real Unix socket: who gets what, and what the others are told."""

from __future__ import annotations

import asyncio
import datetime as dt
import stat
from pathlib import Path

import pytest

from mesh.model.identity import Identity
from tests.unit.identity.support import CART, LEGACY, WEB, Ca, pod, two_nodes
from ztunnel.identity.client import CaRefused, CaUnavailable
from ztunnel.identity.grpc_client import GrpcCaClient
from ztunnel.identity.x509 import CertificateRefused, accept, new_request


async def refusal(client: GrpcCaClient, identity: Identity, csr_of: Identity | None = None) -> str:
    with pytest.raises(CaRefused) as caught:
        await client.sign(identity, new_request(csr_of or identity).csr_pem, 0)
    await client.close()
    return str(caught.value)


async def test_node_gets_a_certificate_for_a_workload_it_runs(ca: Ca) -> None:
    client, request = ca.client("n1"), new_request(WEB)

    chain = await client.sign(WEB, request.csr_pem, 3600)

    issued = accept(chain, request, WEB, dt.datetime.now(dt.UTC))
    assert issued.roots_pem.decode() == ca.root_file.read_text()
    assert [info.subject for info in issued.chain] == ["", "CN=Qanat issuer for cluster.local,O=qanat"]
    await client.close()


async def test_identity_of_another_node_is_denied_by_name(ca: Ca) -> None:
    assert await refusal(ca.client("n1"), CART) == (
        "PERMISSION_DENIED: node n1 runs no captured workload of spiffe://cluster.local/ns/shop/sa/cart"
    )


async def test_workload_outside_the_mesh_is_denied(ca: Ca) -> None:
    assert "PERMISSION_DENIED: node n1 runs no captured workload" in await refusal(ca.client("n1"), LEGACY)


async def test_identity_nobody_has_is_denied(ca: Ca) -> None:
    assert "PERMISSION_DENIED" in await refusal(ca.client("n1"), Identity("cluster.local", "shop", "ghost"))


async def test_wrong_token_is_not_a_node(ca: Ca) -> None:
    (ca.run_dir / "nodes" / "n1" / "stolen").write_text("some-other-token-00000")

    told = await refusal(GrpcCaClient(ca.target, ca.run_dir / "nodes" / "n1" / "stolen"), WEB)

    assert told == "UNAUTHENTICATED: the token is of no node of this mesh"


async def test_empty_and_short_tokens_are_not_nodes(ca: Ca) -> None:
    for token in ("", "short"):
        (ca.run_dir / "nodes" / "n2" / "token").write_text(token)

        assert "UNAUTHENTICATED" in await refusal(ca.client("n2"), CART)


async def test_rotated_token_counts_at_once(ca: Ca) -> None:
    (ca.run_dir / "nodes" / "n1" / "token").write_text("a-new-token-of-node-one")
    client = ca.client("n1")

    assert len(await client.sign(WEB, new_request(WEB).csr_pem, 0)) == 3
    await client.close()


async def test_request_with_another_name_inside_is_invalid(ca: Ca) -> None:
    assert "INVALID_ARGUMENT: the certificate request names" in await refusal(ca.client("n1"), WEB, csr_of=CART)


async def test_missing_token_file_says_which(ca: Ca) -> None:
    client = GrpcCaClient(ca.target, ca.run_dir / "nodes" / "n9" / "token")

    with pytest.raises(CaUnavailable, match="nodes/n9/token"):
        await client.sign(WEB, new_request(WEB).csr_pem, 0)


async def test_pod_that_the_authority_learns_of_a_moment_later_is_served(run_dir: Path) -> None:
    ca = Ca(run_dir, grace_s=20)
    await ca.start()
    client, new = ca.client("n1"), Identity("cluster.local", "shop", "new")
    asked = asyncio.ensure_future(client.sign(new, new_request(new).csr_pem, 0))
    await asyncio.sleep(0)

    await ca.permissions.replace(two_nodes(pod("new-1", "new", "n1", 9)))

    assert len(await asked) == 3
    await client.close()
    await ca.stop()


async def test_client_finds_a_restarted_authority_and_its_root_is_the_same(ca: Ca) -> None:
    client = ca.client("n1")
    before = await client.sign(WEB, new_request(WEB).csr_pem, 0)
    await ca.stop()
    with pytest.raises(CaUnavailable, match="no answer from the authority at unix:"):
        await client.sign(WEB, new_request(WEB).csr_pem, 0)

    await ca.start()

    async with asyncio.timeout(10):
        while True:
            try:
                after = await client.sign(WEB, new_request(WEB).csr_pem, 0)
                break
            except CaUnavailable:
                await asyncio.sleep(0.05)
    assert before[1:] == after[1:]
    await client.close()


async def test_socket_is_not_for_everybody(ca: Ca) -> None:
    assert stat.S_IMODE((ca.run_dir / "ca.sock").stat().st_mode) == 0o660


async def test_answer_for_another_key_is_refused_by_ztunnel(ca: Ca) -> None:
    client, mine, other = ca.client("n1"), new_request(WEB), new_request(WEB)
    chain = await client.sign(WEB, other.csr_pem, 0)
    await client.close()

    with pytest.raises(CertificateRefused, match="another key"):
        accept(chain, mine, WEB, dt.datetime.now(dt.UTC))


async def test_answer_for_another_identity_is_refused_by_ztunnel(ca: Ca) -> None:
    client, request = ca.client("n1"), new_request(WEB)
    chain = await client.sign(WEB, request.csr_pem, 0)
    await client.close()

    with pytest.raises(CertificateRefused, match="is for .*/sa/web, asked for was .*/sa/cart"):
        accept(chain, request, CART, dt.datetime.now(dt.UTC))


async def test_dates_that_do_not_fit_our_clock_are_named(ca: Ca) -> None:
    client, request = ca.client("n1"), new_request(WEB)
    chain = await client.sign(WEB, request.csr_pem, 3600)
    await client.close()

    for days, word in ((-1, "begins at"), (+1, "ended at")):
        with pytest.raises(CertificateRefused, match=f"{word}.*compare the clocks"):
            accept(chain, request, WEB, dt.datetime.now(dt.UTC) + dt.timedelta(days=days))


async def test_chain_to_a_root_that_was_not_sent_is_refused(ca: Ca, tmp_path: Path) -> None:
    other = Ca(tmp_path)
    await other.start()
    client, request = ca.client("n1"), new_request(WEB)
    chain = await client.sign(WEB, request.csr_pem, 0)
    await client.close()
    await other.stop()

    with pytest.raises(CertificateRefused, match="leads to no root"):
        accept((*chain[:-1], other.root_file.read_text()), request, WEB, dt.datetime.now(dt.UTC))
