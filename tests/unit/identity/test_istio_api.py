# SPDX-License-Identifier: Apache-2.0
"""Our authority as istiod over TLS: a client that knows nothing of ours, byte by byte, and who is let in."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from controlplane.ca.service import CertificateServer
from mesh.model.identity import Identity
from tests.unit.identity.support import CART, TRUST_DOMAIN, WEB, Ca
from ztunnel.identity.client import CaRefused, CaUnavailable
from ztunnel.identity.grpc_client import GrpcCaClient
from ztunnel.identity.x509 import IssuedCertificate, accept, new_request

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def istio_request(csr: str, seconds: int, impersonated: str = "") -> bytes:
    """IstioCertificateRequest as ztunnel's prost writes it: csr 1, validity_duration 3, metadata 4 (a Struct: map
    entries 1 of key 1 and Value 2, whose string is 3)."""
    value = field(3, impersonated.encode())
    struct = field(1, field(1, b"ImpersonatedIdentity") + field(2, value)) if impersonated else b""
    return field(1, csr.encode()) + varint(3 << 3) + varint(seconds) + (field(4, struct) if struct else b"")


def istio_response(data: bytes) -> list[str]:
    """IstioCertificateResponse: repeated string cert_chain 1, nothing else."""
    chain, at = [], 0
    while at < len(data):
        assert data[at] == 1 << 3 | 2
        at, shift, length = at + 1, 0, 0
        while True:
            byte = data[at]
            at, length, shift = at + 1, length | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        chain.append(data[at : at + length].decode())
        at += length
    return chain


async def call(
    port: int,
    roots: bytes,
    body: bytes,
    *,
    token: str = "",
    shown: IssuedCertificate | None = None,
) -> Any:
    """Raises grpc.aio.AioRpcError."""
    key, chain = (shown.key_pem, shown.chain_pem) if shown else (None, None)
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    metadata = [("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes")] if token else []
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        return await channel.unary_unary(METHOD, None, None)(body, metadata=metadata, timeout=5)


async def code_and_text(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(*args, **kwargs)
    return f"{caught.value.code().name}: {caught.value.details()}"


@pytest.fixture
def roots(ca: Ca) -> bytes:
    return ca.root_file.read_bytes()


@pytest.fixture
def token(ca: Ca) -> str:
    return ca.token("n1").read_text().strip()


@pytest.fixture
async def mine(ca: Ca) -> AsyncIterator[IssuedCertificate]:
    client, request = ca.client("n1"), new_request(WEB)
    yield accept(await client.sign(WEB, request.csr_pem, 600), request, WEB, dt.datetime.now(dt.UTC))
    await client.close()


async def test_client_that_speaks_only_istios_messages_gets_a_chain(ca: Ca, roots: bytes, token: str) -> None:
    request = new_request(WEB)

    answer = await call(ca.ports[0], roots, istio_request(request.csr_pem, 600, str(WEB)), token=token)

    chain = istio_response(answer)
    issued = accept(chain, request, WEB, dt.datetime.now(dt.UTC))
    assert issued.not_after - dt.datetime.now(dt.UTC) < dt.timedelta(seconds=601)
    assert chain[-1].encode() == roots


async def test_unknown_fields_of_a_later_istio_are_skipped(ca: Ca, roots: bytes, token: str) -> None:
    body = istio_request(new_request(WEB).csr_pem, 600, str(WEB)) + field(99, b"what is this")

    assert len(istio_response(await call(ca.ports[0], roots, body, token=token))) == 3


async def test_over_tls_too_a_node_gets_only_what_it_runs(ca: Ca, roots: bytes, token: str) -> None:
    body = istio_request(new_request(CART).csr_pem, 600, str(CART))

    told = await code_and_text(ca.ports[0], roots, body, token=token)

    assert told == f"PERMISSION_DENIED: node n1 runs no captured workload of {CART}"


@pytest.mark.parametrize("token_shown", ["", "no-such-token-000000"])
async def test_over_tls_too_a_stranger_gets_nothing(ca: Ca, roots: bytes, token_shown: str) -> None:
    body = istio_request(new_request(WEB).csr_pem, 600, str(WEB))

    assert "UNAUTHENTICATED" in await code_and_text(ca.ports[0], roots, body, token=token_shown)


async def test_node_that_names_no_workload_is_told_how(ca: Ca, roots: bytes, token: str) -> None:
    told = await code_and_text(ca.ports[0], roots, istio_request(new_request(WEB).csr_pem, 600), token=token)

    assert told == "INVALID_ARGUMENT: no identity: set metadata ImpersonatedIdentity to the SPIFFE identity"


async def test_workload_renews_its_own_identity_by_its_certificate(
    ca: Ca, roots: bytes, mine: IssuedCertificate
) -> None:
    request = new_request(WEB)

    answer = await call(ca.ports[1], roots, istio_request(request.csr_pem, 600), shown=mine)

    assert accept(istio_response(answer), request, WEB, dt.datetime.now(dt.UTC)).identity == WEB


async def test_workload_gets_no_other_identity_by_its_certificate(
    ca: Ca, roots: bytes, mine: IssuedCertificate
) -> None:
    body = istio_request(new_request(CART).csr_pem, 600, str(CART))

    told = await code_and_text(ca.ports[1], roots, body, shown=mine)

    assert told == f"PERMISSION_DENIED: {WEB} may ask for its own identity only, not for {CART}"


async def test_certificate_of_another_authority_is_not_let_in(ca: Ca, roots: bytes, tmp_path: Path) -> None:
    (tmp_path / "nodes" / "n1").mkdir(parents=True)
    (tmp_path / "nodes" / "n1" / "token").write_text(ca.token("n1").read_text())
    other = Ca(tmp_path)
    await other.start()
    client, request = other.client("n1"), new_request(WEB)
    foreign = accept(await client.sign(WEB, request.csr_pem, 600), request, WEB, dt.datetime.now(dt.UTC))
    await client.close()
    await other.stop()

    told = await code_and_text(ca.ports[1], roots, istio_request(new_request(WEB).csr_pem, 600), shown=foreign)

    assert told.startswith("UNAVAILABLE")


async def test_server_shows_its_name_and_identity_and_renews_both(run_dir: Path) -> None:
    ca = Ca(run_dir, leaf_ttl_s=2)
    await ca.start()

    seen: set[str] = set()
    async with asyncio.timeout(20):
        while len(seen) < 3:
            shown = await asyncio.to_thread(peer_certificate, ca.ports[0])
            assert "DNS:localhost, IP Address:127.0.0.1" in shown
            assert f"URI:spiffe://{TRUST_DOMAIN}/ns/qanat-system/sa/controlplane" in shown
            seen.add(shown.split("Serial Number:")[1].split("Signature")[0].strip())
    await ca.stop()


def peer_certificate(port: int) -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-alpn", "h2"]
    shown = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=10).stdout
    text = subprocess.run(["openssl", "x509", "-noout", "-text"], input=shown, capture_output=True, check=True)
    return text.stdout.decode()


async def test_client_follows_the_server_to_a_new_root_without_a_new_file(run_dir: Path) -> None:
    ca = Ca(run_dir, leaf_ttl_s=1)
    await ca.start()
    kept = run_dir / "root-as-installed.pem"
    kept.write_bytes(ca.root_file.read_bytes())
    client = GrpcCaClient(f"localhost:{ca.ports[0]}", ca.token("n1"), timeout_s=5, root_file=kept)
    other = GrpcCaClient(f"localhost:{ca.ports[0]}", ca.token("n2"), timeout_s=5, root_file=kept)
    followed = [asyncio.ensure_future(follow(one)) for one in (client, other)]

    assert ca.keeper.rotate_root("")

    async with asyncio.timeout(20):
        while ca.keeper.status()["phase"] != "idle" or kept.read_text() in ca.root_file.read_text():
            await asyncio.sleep(0.05)
    assert len(await client.sign(WEB, new_request(WEB).csr_pem, 0)) == 3
    late = GrpcCaClient(f"localhost:{ca.ports[0]}", ca.token("n1"), timeout_s=5, root_file=kept)
    with pytest.raises(CaUnavailable, match=f"not signed by a root in {kept}"):
        await late.sign(WEB, new_request(WEB).csr_pem, 0)
    for task in followed:
        task.cancel()
    await asyncio.wait(followed)
    for one in (client, other, late):
        await one.close()
    await ca.stop()


async def follow(client: GrpcCaClient) -> None:
    async for _ in client.announcements():
        pass


async def test_root_file_that_is_mended_counts_at_the_next_request(ca: Ca, tmp_path: Path) -> None:
    root_file = tmp_path / "root.pem"
    client = GrpcCaClient(f"localhost:{ca.ports[0]}", ca.token("n1"), timeout_s=5, root_file=root_file)
    for text, told in ((None, "cannot read the roots"), ("hello", "holds no PEM certificate")):
        if text:
            root_file.write_text(text)
        with pytest.raises(CaUnavailable, match=told):
            await client.sign(WEB, new_request(WEB).csr_pem, 0)

    root_file.write_bytes(ca.root_file.read_bytes())

    assert len(await client.sign(WEB, new_request(WEB).csr_pem, 0)) == 3
    await client.close()


async def test_server_of_another_name_is_named(ca: Ca) -> None:
    client = GrpcCaClient(f"127.0.0.2:{ca.ports[0]}", ca.token("n1"), timeout_s=2, root_file=ca.root_file)

    with pytest.raises(CaUnavailable, match="no answer from the authority at 127.0.0.2"):
        await client.sign(WEB, new_request(WEB).csr_pem, 0)
    await client.close()


async def test_authority_without_our_messages_is_served_by_certificates_alone(ca: Ca) -> None:
    """istiod knows only CreateCertificate."""
    assert isinstance(ca.server, CertificateServer)
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = GrpcCaClient(f"127.0.0.1:{port}", ca.token("n1"), timeout_s=5)

    assert [bundle async for bundle in client.announcements()] == []

    with pytest.raises(CaRefused, match="UNIMPLEMENTED"):
        await client.sign(Identity(TRUST_DOMAIN, "a", "b"), "", 0)
    await client.close()
    await server.stop(None)
