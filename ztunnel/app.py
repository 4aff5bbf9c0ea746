"""ztunnel put together: agent and mesh source in, engine in the middle, telemetry and admin out."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

from mesh.lifecycle import Shutdown, supervise
from mesh.model.identity import Identity, InvalidIdentity
from mesh.model.snapshot import MeshSnapshot
from mesh.policy.evaluate import PolicySet
from mesh.policy.page import PolicyPage
from mesh.telemetry.names import Names
from ztunnel import __version__
from ztunnel.admin import dump, http, policies
from ztunnel.config import Config, address
from ztunnel.dataplane.door import Engine
from ztunnel.dataplane.egress import compile_egress_set
from ztunnel.dataplane.events import EventPump
from ztunnel.dataplane.feed import TableFeed
from ztunnel.dataplane.policy import compile_set
from ztunnel.dataplane.policy_rows import PolicyVerdict
from ztunnel.dataplane.values import Event, Kind
from ztunnel.identity.client import CertificateSource
from ztunnel.identity.entry import State
from ztunnel.identity.expiry import ExpiryWatch
from ztunnel.identity.kept import Kept, NothingKept
from ztunnel.identity.manager import CertificateManager
from ztunnel.identity.revocation import RevocationFeed
from ztunnel.identity.slots import Urgency
from ztunnel.identity.x509 import IssuedCertificate
from ztunnel.inpod import LocalPods, ZdsClient
from ztunnel.journal import Journal
from ztunnel.lifecycle import Drainer
from ztunnel.telemetry.accesslog import AccessLog
from ztunnel.telemetry.certificates import CertificateReading
from ztunnel.telemetry.decisions import Decisions
from ztunnel.telemetry.exposition import Exposition, Reading
from ztunnel.telemetry.latency import Latencies
from ztunnel.telemetry.series import TrafficSeries

log = logging.getLogger(__name__)


class Ztunnel:
    """All tasks of the process. The engine is started and stopped by the caller, who owns it and `ca`. `kept`:
    certificates from before a restart, and for the next."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        ca: CertificateSource,
        shutdown: Shutdown,
        log_fd: int,
        kept: Kept | None = None,
    ) -> None:
        self._config = config
        self._engine = engine
        self._shutdown = shutdown
        self._started = time.monotonic()
        self._kept = kept or NothingKept()
        names = Names(MeshSnapshot.build(0))
        self.certificates_manager = CertificateManager(ca, self._on_certificate, ttl_s=config.ttl_s)
        self.revocations = (
            None
            if config.crl is None
            else RevocationFeed(engine, config.crl, config.crl_copy, on_applied=self._renew_revoked)
        )
        self.pods = LocalPods(engine, cluster=config.cluster, trust_domain=config.trust_domain, on_change=self._on_pods)
        self.drainer = Drainer(engine, shutdown, deadline_s=config.drain_s)
        source = config.source.open(config.checkpoint)
        self.feed = TableFeed(source, engine, config.node, self._on_snapshot)
        self.client = ZdsClient(
            config.zds_socket,
            self.pods,
            engine,
            on_drain=self.drainer.hand_over,
            before_add=lambda info: self.feed.wait_for(info.addresses),
        )
        self._series = TrafficSeries(names, maximum=config.max_series, idle_s=config.series_idle_s)
        self._latencies = Latencies()
        self._decisions = Decisions()
        self._policy_page = PolicyPage(config.trust_domain)
        self._access_log = AccessLog(names, log_fd, form=config.access_log_format, pod_name=self._pod_name)
        self.journal: Journal | None = None
        if config.journal:
            self.journal = Journal(config.journal, config.journal_limits, names, engine.connections)
        self.pump = EventPump(
            engine,
            (
                self._access_log.on_events,
                self._series.on_events,
                self._latencies.on_events,
                self._decisions.on_events,
                self._on_events,
                *((self.journal.on_events,) if self.journal else ()),
            ),
        )
        self._exposition = Exposition(self._series, self._latencies, __version__, self._decisions)

    async def run(self) -> None:
        """Until drained. Every part outlives the failures of the others."""
        serving: dict[str, Callable[[], Awaitable[None]]] = {
            "mesh source": self.feed.watch,
            "tables": self.feed.feed,
            "host names": self.feed.resolver.run,
            "certificates": self.certificates_manager.run,
            "events": self.pump.run,
            **({"revocations": self.revocations.watch} if self.revocations else {}),
            "node agent": self._follow_agent,
            "kept certificates": self._forget_the_gone,
            "ends of certificates": ExpiryWatch(self.certificates_manager.dump).run,
            "admin socket": functools.partial(http.serve_unix, http.admin, self, self._config.admin_socket),
        }
        if self.journal:
            serving["journal"] = self.journal.run
        for name, build, where in (
            ("admin", http.admin, self._config.admin_address),
            ("metrics", http.metrics, self._config.metrics_address),
            ("readiness", http.readiness, self._config.ready_address),
        ):
            if place := address(where):
                serving[name] = functools.partial(http.serve_tcp, build, self, name, *place)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(supervise(name, part), name=name) for name, part in serving.items()]
            await self.drainer.run()
            self.pump.drain()
            for task in running:
                task.cancel()
        if self.journal:
            await asyncio.to_thread(self.journal.finish)
        self.pods.close()

    async def _forget_the_gone(self) -> None:
        """What was kept for pods that left while nobody was here."""
        await self.client.has_snapshot.wait()
        self._kept.keep_only(self.pods.identities())

    async def _follow_agent(self) -> None:
        """To the very end: a successor is announced, and deletions concern us, while we drain.

        Not before there are tables: an engine without them takes every destination for one outside the mesh."""
        await self.feed.is_fed.wait()
        await self.client.run()

    # --- what happens

    def _on_snapshot(self, snapshot: MeshSnapshot) -> None:
        names = Names(snapshot)
        self._series.set_names(names)
        self._access_log.set_names(names)
        if self.journal:
            self.journal.set_names(names)
        self.pods.retire(one.pod_uid for one in snapshot.on_node(self._config.node) if one.terminating)

    def _on_pods(self) -> None:
        wanted = self.pods.identities()
        known = {status.identity for status in self.certificates_manager.dump()}
        for identity in wanted:
            if identity not in known:
                self._restore(identity)
            self.certificates_manager.ensure(identity)
        for status in self.certificates_manager.dump():
            if status.identity not in wanted:
                self.certificates_manager.forget(status.identity)
                if not self.drainer.is_draining:  # then it is the successor's
                    self._kept.forget(status.identity)
                if self.revocations is not None:
                    self.revocations.forget(status.identity)
                if status.certificate is not None:
                    self._engine.del_identity(str(status.identity))

    def _on_certificate(self, identity: Identity, issued: IssuedCertificate) -> None:
        if self.revocations is not None:
            self.revocations.trust(identity, issued)
        self._engine.put_identity(str(identity), issued.chain_pem, issued.key_pem, issued.roots_pem)
        self._kept.keep(identity, issued)

    def _restore(self, identity: Identity) -> None:
        found = self._kept.recall(identity, dt.datetime.now(dt.UTC))
        if found is None:
            return
        try:
            self.certificates_manager.restore(found.issued, found.since)
        except Exception as error:  # the engine's refusal: then a new one is asked for, as without it
            log.warning("kept certificate not used", extra={"identity": str(identity), "cause": error})
            self._kept.forget(identity)

    def _renew_revoked(self) -> None:
        """Peers refuse what is on the list: whoever of ours is on it gets a new key and certificate at once."""
        for status in self.certificates_manager.dump():
            if status.certificate is None or not (what := self._engine.find_revoked(status.certificate.chain_pem)):
                continue
            log.warning("own certificate is revoked", extra={"identity": str(status.identity), "certificate": what})
            self.certificates_manager.renew(status.identity)

    def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind is Kind.NEED_CERT:
                try:
                    identity = Identity.parse(event.src_identity)
                except InvalidIdentity as error:
                    log.error("engine asks for a certificate", extra={"error": error})
                    continue
                self.certificates_manager.ensure(identity, Urgency.CONNECTION)

    def _pod_name(self, id_: int) -> str:
        return next((str(pod.info) for pod in self.pods.all() if pod.id == id_), "")

    # --- what is shown (http.Views)

    def _read_metrics(self) -> Reading:
        live = self._engine.connections()
        return Reading(
            cells=self._series.scrape(live, self.pump.drain()),
            counters=self._engine.counters(),
            certificates=CertificateReading(
                self.certificates_manager.dump(), self.revocations.status() if self.revocations else None
            ),
            pods=len(self.pods),
            pods_started=self.pods.started,
            pods_stopped=self.pods.stopped,
            agent_connected=self.client.is_connected,
            journal_lost=self.journal.recorder.lost if self.journal else 0,
        )

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return await asyncio.to_thread(self._exposition.page, self._read_metrics(), accept)

    def config_dump(self) -> dict[str, object]:
        snapshot = self.feed.snapshot
        return {
            "workloads": dump.workloads(snapshot),
            "services": dump.services(snapshot),
            "policies": dump.policies(snapshot),
            "stagedServices": {},
            "problems": self.feed.problems(),
            "certificates": dump.certificates(self.certificates_manager.dump()),
            "workloadState": dump.workload_state(self.pods.all(), self._engine.connections()),
            "version": {"version": __version__, "buildStatus": "qanat", "gitRevision": ""},
            "config": {
                "clusterId": self._config.cluster,
                "localNode": self._config.node,
                "trustDomain": self._config.trust_domain,
                "proxyMode": "Shared",
                "meshName": self._config.mesh,
                "labels": self._config.source.translate.labels.value,
                "waypoints": self._config.source.translate.waypoints.value,
            },
        }

    def connections(self) -> list[dict[str, object]]:
        uids = {pod.id: str(pod.info) for pod in self.pods.all()}
        names = Names(self.feed.snapshot)
        found = []
        for event in self._engine.connections():
            shown = dump.connection(event, uids.get(event.pod_id, ""))
            for side, addr in (("src", event.src), ("dst", event.dst), ("peer", event.peer)):
                workload = names.at(addr.ip) if addr else None
                shown[f"{side}Workload"] = f"{workload.namespace}/{workload.pod}" if workload else ""
            found.append(shown)
        return found

    async def policies(self) -> list[dict[str, object]]:
        hits = policies.with_live(self._decisions.rules(), self._engine.connections())
        return await self._policy_page.show(self.feed.snapshot, hits)

    def certificates(self) -> list[dict[str, object]]:
        return dump.certificate_states(self.certificates_manager.dump())

    def status(self) -> dict[str, object]:
        counters = self._engine.counters()
        return {
            "mesh": self._config.mesh,
            "node": self._config.node,
            "pid": os.getpid(),
            "version": __version__,
            "uptimeS": round(time.monotonic() - self._started, 3),
            "ready": not self.not_ready(),
            "pending": self.not_ready(),
            "draining": self.drainer.is_draining,
            "agentConnected": self.client.is_connected,
            "authorityClockAheadS": round(self.certificates_manager.authority_ahead_s, 1),
            "epoch": counters.epoch,
            "live": counters.conns_live,
            "tunnels": {"inbound": counters.tunnels_in_live, "outbound": counters.tunnels_out_live},
            "accessLogLost": self._access_log.lost,
            "journal": self.journal.status() if self.journal else None,
            "errors": list(self.feed.errors),
            "revocations": dump.revocations(self.revocations.status() if self.revocations else None),
            "problems": self.feed.problems(),
            "pods": [{"uid": pod.uid, "pod": str(pod.info), "identity": str(pod.identity)} for pod in self.pods.all()],
        }

    def hosts(self) -> dict[str, list[str]]:
        return {name: sorted(map(str, found)) for name, found in self.feed.names.items()}

    async def verdict(self, question: http.Question) -> dict[str, object]:
        """The engine's own words, from the rules of the one pod that is asked about."""
        snapshot, names = self.feed.snapshot, self.feed.names
        workload = snapshot.workload_at(question.source_ip if question.leaving else question.ip)
        if workload is None or workload.node != self._config.node or not 0 < question.port < 65536:
            return {"known": False}

        def ask() -> PolicyVerdict:
            if question.leaving:
                tables = compile_egress_set(snapshot.egress_policies, [workload], names, 1)
            else:
                tables = compile_set(PolicySet.of(snapshot), [workload], 1)
            return self._engine.judge(tables, question.source, question.source_ip, question.ip, question.port)

        return {"known": True, "epoch": snapshot.epoch, **asdict(await asyncio.to_thread(ask))}

    def not_ready(self) -> list[str]:
        missing = []
        if not self.client.has_snapshot.is_set():
            missing.append("pods from the node agent")
        if not self.feed.is_fed.is_set():
            missing.append("mesh configuration")
        if time.monotonic() - self._started < self._config.ready_without_certs_s:
            usable = (State.VALID, State.EXPIRING)
            missing += [
                f"certificate of {one.identity}" for one in self.certificates_manager.dump() if one.state not in usable
            ]
        if self.drainer.is_draining:
            missing.append("draining")
        return missing

    def quit(self) -> None:
        self._shutdown.request()
