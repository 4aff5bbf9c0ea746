# SPDX-License-Identifier: Apache-2.0
"""`qanat certs revoke` on a running mesh: what is open is cut, everybody else goes on, and bad lists change nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from nodeagent.cli.main import main
from tests.support.objects import namespace, pod
from tests.support.playground import Playground, until
from tests.support.sockets import Conn, echo, serving


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        pod("town/client", "n1"),
        pod("town/bystander", "n1"),
        pod("town/server", "n2"),
    )
    yield made
    made.close()


def qanat(mesh: Playground, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--mesh", mesh.paths.name])


def serial_of(mesh: Playground, node: str, account: str) -> str:
    for entry in json.loads(mesh.ztunnel(node))["certificates"]:
        if entry["identity"].endswith(f"/sa/{account}"):
            return str(entry["certChain"][0]["serialNumber"])
    raise KeyError(account)


async def wait_cut(conn: Conn) -> float:
    """When it was reset, seconds since 1970."""
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        async with asyncio.timeout(10):
            while True:
                await conn.echo(b"?")
                await asyncio.sleep(0.01)
    return time.time()


@pytest.mark.parametrize(("account", "judge"), [("client", "n2"), ("server", "n1")])
async def test_revoked_certificate_is_cut_within_a_second_and_replaced(
    mesh: Playground, account: str, judge: str
) -> None:
    client, bystander, server = (mesh.pod(f"town/{name}") for name in ("client", "bystander", "server"))
    holder = "n1" if account == "client" else "n2"
    async with serving(server.listen(7007), echo):
        conn, other = await client.dial(server.ip4, 7007), await bystander.dial(server.ip4, 7007)
        assert await conn.echo(b"open") == await other.echo(b"open") == b"open"
        serial = serial_of(mesh, holder, account)

        done = asyncio.create_task(asyncio.to_thread(qanat, mesh, "certs", "revoke", f"town/{account}"))
        with conn:
            cut = await wait_cut(conn)
        assert cut - mesh.paths.crl.stat().st_mtime < 1
        result = await done
        assert result.exit_code == 0, result.output
        assert f"revoked serial {serial} of spiffe://cluster.local/ns/town/sa/{account}" in result.output
        if account == "client":
            assert await other.echo(b"undisturbed") == b"undisturbed"
        other.close()

        def logged() -> list[str]:
            return [line for line in mesh.log(f"ztunnel/{judge}").splitlines() if f"serial {serial} of" in line]

        lines = await until("the judging node says why", logged)
        assert any("reason=cert_revoked" in line and f"sa/{account}" in line for line in lines)
        await until("a new certificate", lambda: serial_of(mesh, holder, account) != serial)
        with await client.dial(server.ip4, 7007) as fresh:
            assert await fresh.echo(b"with the new one") == b"with the new one"
    listed = await asyncio.to_thread(qanat, mesh, "certs", "revoked", "-o", "json")
    assert serial in listed.output


async def test_bad_list_changes_nothing_and_is_named(mesh: Playground) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    done = await asyncio.to_thread(qanat, mesh, "certs", "revoke", "abc123")
    assert done.exit_code == 0, done.output
    good = mesh.paths.crl.read_bytes()
    async with serving(server.listen(7008), echo):
        conn = await client.dial(server.ip4, 7008)

        mesh.paths.crl.write_bytes(b"garbage")

        def problem() -> str:
            result = qanat(mesh, "status")
            return result.output if result.exit_code == 1 and "crl.pem is not used" in result.output else ""

        told = await until("the problem is shown", problem)
        assert "the last good list stays in force" in told
        assert await conn.echo(b"still") == b"still"
        conn.close()
        old = mesh.pid("ztunnel/n2")
        assert old is not None
        mesh.kill("ztunnel/n2")
        await asyncio.to_thread(mesh.wait_restarted, "ztunnel/n2", old)
        await asyncio.to_thread(mesh.wait_settled)
        status = json.loads(mesh.ztunnel("n2", "/status"))["revocations"]
        assert status["serials"] >= 1, "the copy of the last good list counts after a restart"
        with await client.dial(server.ip4, 7008) as fresh:
            assert await fresh.echo(b"new") == b"new"
    mesh.paths.crl.write_bytes(good)
    await until("all is well", lambda: qanat(mesh, "status").exit_code == 0)


def test_unknown_name_is_refused_with_those_there_are(mesh: Playground) -> None:
    result = qanat(mesh, "certs", "revoke", "town/nobody")

    assert result.exit_code == 1
    assert "no node holds a certificate of 'town/nobody'" in result.output
    assert "town/client" in result.output
