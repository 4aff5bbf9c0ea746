"""All of ztunnel over a fake engine: agent, mesh source, certificates, events, doors, end."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import pytest

from mesh.journal.directory import Fetched
from mesh.journal.flow import Record, Verdict
from mesh.journal.reader import Reading
from mesh.journal.writer import Head
from mesh.lifecycle import Shutdown
from mesh.model.identity import Identity
from mesh.sources.choice import SourceChoice
from nodeagent.pods.enroller import Enroller
from nodeagent.server import ZdsServer
from tests.unit.node.doubles import FakeEngine, FakeKernel, event, observed, workload
from tests.unit.node.waiting import eventually
from ztunnel.app import Ztunnel
from ztunnel.config import Config
from ztunnel.dataplane.values import Kind
from ztunnel.identity.client import CaUnavailable, Change
from ztunnel.identity.manager import CertificateManager
from ztunnel.identity.x509 import CertificateInfo, IssuedCertificate

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {qanat.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, serviceAccountName: web, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
status: {podIP: 10.0.1.2}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""
CLIENT = Identity("cluster.local", "shop", "default")


class NoCa:
    """An authority that is away."""

    async def obtain(self, identity: Identity, ttl_s: float, now: dt.datetime) -> IssuedCertificate:
        raise CaUnavailable("nobody there")

    async def changes(self) -> AsyncGenerator[Change, None]:
        nothing: tuple[Change, ...] = ()
        for change in nothing:
            yield change

    async def close(self) -> None:
        return


def issued(identity: Identity) -> IssuedCertificate:
    now = dt.datetime.now(dt.UTC)
    info = CertificateInfo("PEM", "", "7", now, now + dt.timedelta(hours=1))
    return IssuedCertificate(identity, b"CHAIN", b"KEY", b"ROOTS", now, info.not_after, "7", (info,), (info,))


@dataclass
class Running:
    engine: FakeEngine
    app: Ztunnel
    shutdown: Shutdown
    socket: Path
    log: Path
    task: asyncio.Task[None]

    async def get(self, path: str, *, post: bool = False) -> tuple[int, str]:
        connector = aiohttp.UnixConnector(str(self.socket))
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.request("POST" if post else "GET", f"http://ztunnel{path}") as response:
                return response.status, await response.text()

    async def get_bytes(self, path: str) -> bytes:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session:
            async with session.get(f"http://ztunnel{path}") as response:
                return await response.read()

    def certify(self, identity: Identity = CLIENT) -> None:
        """As if the authority had answered."""
        manager: CertificateManager = self.app.certificates_manager
        entry = manager._entries[identity]
        entry.certificate = issued(identity)
        self.app._on_certificate(identity, entry.certificate)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "mesh.yaml").write_text(MESH)
    (tmp_path / "client").touch()
    kernel = FakeKernel()
    enroller = Enroller(kernel, drain_ms=0, close_after_s=30)
    server = ZdsServer(tmp_path / "zds.sock", maps=kernel.maps, prepare=enroller.prepare, drain_ms=0)
    enroller.attach(server)
    enroller.set_workloads([workload("client")])
    enroller.set_observed([observed("client", tmp_path / "client")])
    config = Config(
        mesh="m",
        node="n1",
        source=SourceChoice(dirs=(tmp_path / "cfg",)),
        run_dir=tmp_path / "run",
        zds_socket=tmp_path / "zds.sock",
        ca="",
        ca_token=tmp_path / "token",
        admin_address="",
        metrics_address="",
        ready_address="",
        drain_s=0.3,
        ready_without_certs_s=3600,
        journal=tmp_path / "journal",
    )
    engine, shutdown = FakeEngine(), Shutdown()
    log_path = tmp_path / "access.log"
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT)
    app = Ztunnel(config, engine, NoCa(), shutdown, log_fd)
    tasks = [asyncio.create_task(work) for work in (server.run(), enroller.run(), app.run())]
    found = Running(engine, app, shutdown, config.admin_socket, log_path, tasks[2])
    await eventually(lambda: app.client.has_snapshot.is_set() and app.feed.is_fed.is_set() and found.socket.exists())
    yield found
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    enroller.close()
    engine.close()
    kernel.close()
    os.close(log_fd)


async def test_ready_only_with_pods_tables_and_certificates(running: Running) -> None:
    status, text = await running.get("/healthz/ready")
    assert status == 503
    assert f"certificate of {CLIENT}" in text

    running.certify()

    assert (await running.get("/healthz/ready"))[0] == 200
    assert running.engine.identities == {str(CLIENT): b"CHAIN"}


async def test_ready_without_certificates_once_the_authority_has_been_away_for_long(running: Running) -> None:
    running.app._config = replace(running.app._config, ready_without_certs_s=0)

    assert (await running.get("/healthz/ready"))[0] == 200


async def test_tables_reach_the_engine_and_follow_the_files(running: Running, tmp_path: Path) -> None:
    assert running.engine.tables is not None
    assert {str(row.addr.ip) for row in running.engine.tables.workloads} == {"10.0.0.1", "10.0.1.2"}

    (tmp_path / "cfg" / "mesh.yaml").write_text(MESH.replace("10.0.1.2", "10.0.1.3"))

    await eventually(
        lambda: (
            running.engine.tables
            and {str(row.addr.ip) for row in running.engine.tables.workloads} == {"10.0.0.1", "10.0.1.3"}
        )
    )


async def test_events_become_lines_and_series(running: Running) -> None:
    running.engine.emit(event(1, sent=10, received=20))
    await eventually(running.log.read_text)
    running.engine.open = [event(2, kind=Kind.LIVE, sent=1, received=2)]

    _, page = await running.get("/stats/prometheus")

    series = {line.split("{")[0]: line.rsplit(" ", 1)[1] for line in page.splitlines() if "istio_tcp" in line}
    assert series["istio_tcp_connections_opened_total"] == "2.0"
    assert series["istio_tcp_connections_closed_total"] == "1.0"
    assert series["istio_tcp_received_bytes_total"] == "11.0"
    assert series["istio_tcp_sent_bytes_total"] == "22.0"
    assert 'qanat_connect_duration_seconds_bucket{le="0.0025",path="tunnel",reporter="source"} 1.0' in page
    assert "process_open_fds" in page


async def test_ended_connections_are_in_the_journal_and_open_ones_beside_it(running: Running, tmp_path: Path) -> None:
    running.engine.emit(event(1), event(2))
    running.engine.open = [event(3, kind=Kind.LIVE, rule="shop/web rules[0]")]
    await eventually(running.log.read_text)

    index = json.loads((await running.get("/journal"))[1])
    live = Reading(Fetched(((0, await running.get_bytes("/journal/live")),)))
    segment = Reading(Fetched(((1, await running.get_bytes("/journal/1")),)), Head(**index["head"]))

    (open_one,) = live.entries()
    (ended,) = segment.entries()
    assert isinstance(ended, Record)
    assert isinstance(open_one, Record)
    assert (ended.count, ended.flow.source.workload, ended.flow.verdict) == (2, "shop/client", Verdict.ALLOWED)
    assert open_one.flow.rule == "shop/web rules[0]"
    assert [one["number"] for one in index["segments"]] == [1]
    assert segment.findings == []
    assert (await running.get("/journal/2"))[0] == 404
    assert json.loads((await running.get("/status"))[1])["journal"]["lost"] == 0


async def test_verdict_is_the_engines_for_a_pod_of_this_node_and_no_other(running: Running) -> None:
    async def ask(**more: str) -> tuple[int, str]:
        return await running.get("/verdict?" + urlencode({"source_ip": "10.0.0.9", "port": "80", **more}))

    local = json.loads((await ask(ip="10.0.0.1", source=str(CLIENT)))[1])
    leaving = json.loads((await ask(ip="192.0.2.1", source_ip="10.0.0.1", leaving="1"))[1])
    remote = json.loads((await ask(ip="10.0.1.2"))[1])

    assert (local["known"], local["allowed"], local["rule"]) == (True, True, "1 guard, port 80")
    assert leaving["known"] is True
    assert remote == {"known": False}
    for bad in ({"ip": "nowhere"}, {"ip": "10.0.0.1", "port": "x"}, {"ip": "10.0.0.1", "source": "me"}, {}):
        assert (await ask(**bad))[0] == 400


async def test_ends_and_failures_of_certificates_are_metrics(running: Running) -> None:
    running.certify()
    await eventually(lambda: any(one.failed for one in running.app.certificates_manager.dump()))
    (held,) = running.app.certificates_manager.dump()
    assert held.certificate is not None

    _, page = await running.get("/stats/prometheus")

    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line[0] != "#"}
    ends = held.certificate.not_after.timestamp()
    assert values[f'qanat_certificate_expiry_timestamp_seconds{{identity="{CLIENT}"}}'] == ends
    assert values[f'qanat_certificate_renewal_failures_total{{identity="{CLIENT}"}}'] >= 1
    assert values['qanat_root_expiry_timestamp_seconds{serial="7",subject=""}'] == ends


async def test_certificate_the_engine_asks_for_is_ordered(running: Running) -> None:
    asked = Identity("cluster.local", "shop", "urgent")

    running.engine.emit(event(kind=Kind.NEED_CERT, src_identity=str(asked)))

    await eventually(lambda: asked in {one.identity for one in running.app.certificates_manager.dump()})


async def test_dump_has_the_shape_istioctl_reads(running: Running) -> None:
    running.certify()
    running.engine.open = [event(2, kind=Kind.LIVE)]

    dump = json.loads((await running.get("/config_dump"))[1])

    web = next(one for one in dump["workloads"] if one["name"] == "web")
    assert web["workloadIps"] == ["10.0.1.2"]
    assert (web["protocol"], web["status"], web["node"]) == ("HBONE", "Healthy", "n2")
    service = dump["services"][0]
    assert service["vips"] == ["/10.96.0.10"]
    assert service["ports"] == {"80": 8080}
    assert service["endpoints"][web["uid"]]["port"] == {"80": 8080}
    certificate = dump["certificates"][0]
    assert (certificate["identity"], certificate["state"]) == (str(CLIENT), "Available")
    assert certificate["certChain"][0]["serialNumber"] == "7"
    state = dump["workloadState"]["uid-client"]
    assert state["info"]["name"] == "client"
    assert state["connections"]["outbound"] == [
        {"src": "10.0.0.1:40000", "originalDst": "10.96.0.10:80", "actualDst": "10.0.1.2:15008", "protocol": "HBONE"}
    ]
    assert "KEY" not in json.dumps(dump)


async def test_connections_are_listed_with_names_and_identities(running: Running) -> None:
    running.engine.open = [event(2, kind=Kind.LIVE)]

    found = json.loads((await running.get("/connections"))[1])

    assert found[0]["srcWorkload"] == "shop/client"
    assert found[0]["peerWorkload"] == "shop/web"
    assert found[0]["pod"] == "shop/client"


async def test_log_level_is_changed_while_running(running: Running) -> None:
    before = logging.getLogger().level

    status, text = await running.get("/logging?level=debug", post=True)

    assert (status, text) == (200, "current log level is debug\n")
    assert (await running.get("/logging?level=loud", post=True))[0] == 400
    logging.getLogger().setLevel(before)


async def test_goes_on_accepting_until_the_last_connection_has_ended(running: Running) -> None:
    running.app.drainer._deadline_s = 60
    running.engine.open = [event(2, kind=Kind.LIVE)]

    assert (await running.get("/quitquitquit", post=True))[0] == 200
    await eventually(lambda: running.app.drainer.is_draining)
    assert not running.engine.drained
    assert not running.task.done()
    running.engine.open = []

    async with asyncio.timeout(5):
        await running.task
    assert len(running.engine.drained) == 1
    assert not running.socket.exists()


async def test_ends_at_the_deadline_with_connections_left(running: Running) -> None:
    running.engine.open = [event(2, kind=Kind.LIVE)]

    running.shutdown.request()

    async with asyncio.timeout(5):
        await running.task
    assert running.engine.drained


async def test_successor_ends_accepting_at_once_and_connections_finish(running: Running) -> None:
    running.engine.open = [event(2, kind=Kind.LIVE)]

    running.app.drainer.hand_over(60_000)

    await eventually(lambda: running.engine.drained)
    assert 59_000 < running.engine.drained[0] <= 60_000
    assert not running.task.done()
    running.engine.open = []
    async with asyncio.timeout(5):
        await running.task


async def test_quick_end_waits_for_nobody(running: Running) -> None:
    running.app.drainer._deadline_s = 60
    running.engine.open = [event(2, kind=Kind.LIVE)]

    running.shutdown.request_quick()

    async with asyncio.timeout(2):
        await running.task
