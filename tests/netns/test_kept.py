# SPDX-License-Identifier: Apache-2.0
"""A ztunnel that starts while the authority is away serves with what its predecessor left in the kernel's keyring; and
where the keys are not."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mesh.keyring import Keyring, node_keyring
from tests.support.objects import namespace, pod
from tests.support.playground import Playground, PodPlace, until
from tests.support.sockets import echo, serving

AT_ONCE_S = 5.0
"""From the restart to an answered connection, on a busy machine; a certificate would have to be waited for for ever."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        pod("town/client", "n1"),
        pod("town/leaver", "n1"),
        pod("town/server", "n2"),
    )
    yield made
    made.close()


@contextmanager
def authority_away(mesh: Playground) -> Iterator[None]:
    mesh.kill("controlplane", signal.SIGSTOP)
    try:
        yield
    finally:
        mesh.kill("controlplane", signal.SIGCONT)


def serials(mesh: Playground, node: str) -> dict[str, str]:
    entries = json.loads(mesh.ztunnel(node))["certificates"]
    return {entry["identity"]: entry["certChain"][0]["serialNumber"] for entry in entries if entry["certChain"]}


async def assert_tunnelled(mesh: Playground, client: PodPlace, server: PodPlace) -> None:
    lines = len(mesh.access_log("n2"))
    async with serving(server.listen(), echo) as listener:
        async with asyncio.timeout(AT_ONCE_S):
            with await client.dial(server.ip4, listener.port) as conn:
                assert await conn.echo(b"hello") == b"hello"

        def logged() -> list[str]:
            return [line for line in mesh.access_log("n2")[lines:] if f":{listener.port} " in line]

        assert all("mtls=true" in line for line in await until("a log line", logged))


@pytest.mark.parametrize("how", ["killed", "succeeded"])
async def test_next_ztunnels_serve_at_once_while_the_authority_is_away(mesh: Playground, how: str) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    before = {node: serials(mesh, node) for node in ("n1", "n2")}
    with authority_away(mesh):
        for node in ("n1", "n2"):
            old = mesh.pid(f"ztunnel/{node}")
            assert old is not None
            (mesh.kill if how == "killed" else mesh.restart)(f"ztunnel/{node}")
            await asyncio.to_thread(mesh.wait_restarted, f"ztunnel/{node}", old)
            await until("the next one serves", partial(mesh.is_handed_over, node))

        await assert_tunnelled(mesh, client, server)

        assert {node: serials(mesh, node) for node in ("n1", "n2")} == before
    assert "certificate restored" in mesh.log("ztunnel/n1")


async def test_damaged_entry_is_ignored_with_a_log_line(mesh: Playground) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    ring = Keyring(node_keyring(mesh.paths.name, "n2"))
    identity = "spiffe://cluster.local/ns/town/sa/server"
    before = serials(mesh, "n2")[identity]
    old = mesh.pid("ztunnel/n2")
    assert old is not None
    mesh.kill("ztunnel/n2", signal.SIGSTOP)  # so that it cannot mend it
    ring.put(identity, b"damaged", 600)
    mesh.kill("ztunnel/n2")
    await asyncio.to_thread(mesh.wait_restarted, "ztunnel/n2", old)
    await until("the next one serves", partial(mesh.is_handed_over, "n2"))

    await assert_tunnelled(mesh, client, server)

    assert re.search(rf"kept certificate not used.*{identity}.*damaged", mesh.log("ztunnel/n2"))
    assert serials(mesh, "n2")[identity] != before


async def test_certificate_of_a_pod_that_left_while_nobody_looked_is_forgotten(mesh: Playground) -> None:
    ring = Keyring(node_keyring(mesh.paths.name, "n1"))
    identity = "spiffe://cluster.local/ns/town/sa/leaver"
    await until("kept", lambda: identity in ring.names())
    mesh.kill("ztunnel/n1", signal.SIGSTOP)
    old = mesh.pid("ztunnel/n1")
    assert old is not None
    deleting = asyncio.create_task(asyncio.to_thread(mesh.delete, "Pod", "town/leaver"))
    await until("the pod is gone", lambda: not any(p["name"] == "leaver" for p in mesh.status()["pods"]))
    assert identity in ring.names()

    mesh.kill("ztunnel/n1")
    await asyncio.to_thread(mesh.wait_restarted, "ztunnel/n1", old)
    await deleting

    await until("forgotten", lambda: identity not in ring.names())
    assert "spiffe://cluster.local/ns/town/sa/client" in ring.names()


def kept_keys(mesh: Playground) -> list[bytes]:
    """What a thief would look for: of each kept key a part of its PEM that is all secret, and its 32 secret bytes as
    files and as OpenSSL's numbers have them."""
    found = []
    for node in ("n1", "n2"):
        ring = Keyring(node_keyring(mesh.paths.name, node))
        for name in ring.names():
            body = json.loads(zlib.decompress((ring.get(name) or b"")[4 + 32 :]))
            lines = body["key"].strip().splitlines()[1:-1]
            der = base64.b64decode("".join(lines))
            at = der.index(b"\x04\x20") + 2  # ECPrivateKey.privateKey: OCTET STRING of 32 bytes
            secret = der[at : at + 32]
            found += [lines[1][:24].encode(), secret, secret[::-1]]
    assert len(found) >= 6
    return found


def memory_of(pid: int) -> Iterator[bytes]:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            if "r" not in mode or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(begin)
                yield memory.read(end - begin)
            except (OSError, ValueError, OverflowError):
                continue


def holds(pid: int, keys: list[bytes]) -> bool:
    return any(key in part for part in memory_of(pid) for key in keys)


async def test_keys_are_in_no_file_log_dump_or_other_program(mesh: Playground) -> None:
    keys = kept_keys(mesh)
    pids = {name: mesh.pid(name) for name in ("ztunnel/n1", "nodeagent/n1", "nodeagent/n2", "controlplane")}

    files = [path for path in mesh.paths.root.rglob("*") if path.is_file()]
    leaks = [str(path) for path in files if any(key in path.read_bytes() for key in keys)]
    assert files
    assert leaks == []
    for node in ("n1", "n2"):
        for page in ("/config_dump", "/certs", "/status", "/connections"):
            shown = mesh.ztunnel(node, page).encode()
            assert not any(key in shown for key in keys), page
            assert b"PRIVATE KEY" not in shown
    owner = pids.pop("ztunnel/n1")
    assert owner is not None
    await until("the search finds keys where they are", lambda: holds(owner, kept_keys(mesh)))
    for name, pid in pids.items():
        assert pid is not None
        assert not await asyncio.to_thread(holds, pid, keys), name
        for place in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{place}").read_bytes()
            assert not any(key in text for key in keys)


async def test_no_core_dump_of_a_ztunnel_is_ever_written(mesh: Playground) -> None:
    limits = Path(f"/proc/{mesh.pid('ztunnel/n1')}/limits").read_text()

    assert re.search(r"Max core file size +0 +0 ", limits)
