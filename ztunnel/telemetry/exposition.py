"""The door to prometheus_client: turns what we count into a /metrics page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from mesh.policy.tally import by_verdict
from mesh.telemetry.labels import LABELS, SERIES
from ztunnel.dataplane.values import Counters, Reason
from ztunnel.telemetry.certificates import CertificateReading
from ztunnel.telemetry.certificates import families as certificate_families
from ztunnel.telemetry.decisions import LABELS as DECISION_LABELS
from ztunnel.telemetry.decisions import Decisions
from ztunnel.telemetry.latency import Histogram, Latencies
from ztunnel.telemetry.series import Cell, TrafficSeries


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one scrape shows, taken at one moment."""

    cells: Sequence[Cell]
    counters: Counters
    certificates: CertificateReading
    pods: int
    pods_started: int
    pods_stopped: int
    agent_connected: bool
    journal_lost: int = 0


class Exposition:
    """Makes pages. A page of 20,000 sets of labels takes seconds, so page() may run on any thread."""

    def __init__(
        self, series: TrafficSeries, latencies: Latencies, version: str, decisions: Decisions | None = None
    ) -> None:
        self._series = series
        self._decisions = decisions or Decisions()
        self._latencies = latencies
        self._version = version

    def page(self, reading: Reading, accept: str) -> tuple[bytes, str]:
        """(body, content type) for an Accept header."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Once(self._collect(reading)))
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def _collect(self, reading: Reading) -> Iterable[Metric]:
        yield from _traffic(reading.cells)
        yield from _latencies(self._latencies)
        yield from _engine(reading.counters)
        yield from _decided(self._decisions)
        yield from self._node(reading)

    def _node(self, reading: Reading) -> Iterable[Metric]:
        yield from certificate_families(reading.certificates)
        build = GaugeMetricFamily("istio_build", "Component and version.", labels=["component", "tag"])
        build.add_metric(["ztunnel", f"qanat-{self._version}"], 1)
        yield build
        yield GaugeMetricFamily("workload_manager_active_proxy_count", "Pods served.", reading.pods)
        yield CounterMetricFamily("workload_manager_proxies_started", "Pods begun.", reading.pods_started)
        yield CounterMetricFamily("workload_manager_proxies_stopped", "Pods ended.", reading.pods_stopped)
        yield GaugeMetricFamily("qanat_agent_connected", "Whether the node agent is there.", reading.agent_connected)
        yield GaugeMetricFamily("qanat_metrics_label_sets", "Sets of labels kept.", len(self._series))
        yield CounterMetricFamily(
            "qanat_metrics_overflow", "Connections counted under `other`: too many sets.", self._series.overflowed
        )
        yield CounterMetricFamily("qanat_metrics_evicted", "Idle sets of labels dropped.", self._series.evicted)
        yield CounterMetricFamily(
            "qanat_connections_lost", "Connections whose end was seen without its event.", self._series.lost
        )
        yield CounterMetricFamily("qanat_journal_lost", "Connections the journal has not kept.", reading.journal_lost)


class _Once:
    """A collector for one page."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _traffic(cells: Sequence[Cell]) -> Iterable[Metric]:
    for name, text, attribute in SERIES:
        family = CounterMetricFamily(name, text, labels=LABELS)
        for cell in cells:
            count = getattr(cell, attribute)
            if count or attribute != "failed":
                family.add_metric(cell.labels, count)
        yield family


def _decided(decisions: Decisions) -> Iterable[Metric]:
    for name, text, counts in (
        ("qanat_policy_denials", "Connections policy refused or cut.", decisions.denials()),
        ("qanat_policy_notes", "Connections that matched an audit or dry-run rule.", decisions.notes()),
    ):
        family = CounterMetricFamily(name, text, labels=DECISION_LABELS)
        for labels, count in counts.items():
            family.add_metric(labels, count)
        yield family
    hits = CounterMetricFamily("qanat_policy_hits", "Connections by what decided.", labels=["rule", "verdict"])
    for decided, count in by_verdict(decisions.rules()):
        hits.add_metric(decided, count)
    yield hits


def _latencies(latencies: Latencies) -> Iterable[Metric]:
    for name, text, table in (
        ("qanat_connect_duration_seconds", "Accepted until both ends were joined.", latencies.connect),
        ("qanat_handshake_duration_seconds", "TLS handshake a connection waited for.", latencies.handshake),
        ("qanat_connection_duration_seconds", "Life of connections.", latencies.duration),
    ):
        family = HistogramMetricFamily(name, text, labels=["reporter", "path"])
        for key, histogram in table.items():
            _add(family, key, histogram)
        yield family


def _add(family: HistogramMetricFamily, key: tuple[str, str], histogram: Histogram) -> None:
    family.add_metric(list(key), buckets=histogram.buckets(), sum_value=histogram.total_s)


_GAUGES = (
    ("conns_live", "qanat_connections_live", "Application connections open."),
    ("handshakes_pending", "qanat_handshakes_pending", "TLS handshakes under way."),
    ("bytes_buffered", "qanat_buffered_bytes", "In user space, both directions."),
    ("pods", "qanat_engine_pods", "Pods the engine serves."),
    ("epoch", "qanat_tables_epoch", "Of the tables in force."),
)
_COUNTERS = (
    ("handshakes_failed", "qanat_handshakes_failed", "TLS handshakes that failed."),
    ("streams_reused", "qanat_streams_reused", "Connections that found an open tunnel."),
    ("events_dropped", "qanat_events_dropped", "Events lost because nobody read them in time."),
    ("conns_opened", "qanat_connections_opened", "Application connections accepted."),
)


def _engine(counters: Counters) -> Iterable[Metric]:
    for field, name, text in _GAUGES:
        yield GaugeMetricFamily(name, text, getattr(counters, field))
    for field, name, text in _COUNTERS:
        yield CounterMetricFamily(name, text, getattr(counters, field))
    live = GaugeMetricFamily("qanat_tunnels_live", "HBONE tunnels open.", labels=["direction"])
    live.add_metric(["inbound"], counters.tunnels_in_live)
    live.add_metric(["outbound"], counters.tunnels_out_live)
    total = CounterMetricFamily("qanat_tunnels_opened", "HBONE tunnels made.", labels=["direction"])
    total.add_metric(["inbound"], counters.tunnels_in_total)
    total.add_metric(["outbound"], counters.tunnels_out_total)
    reasons = CounterMetricFamily("qanat_ended", "Connections and tunnels ended, by reason.", labels=["reason"])
    for reason in Reason:
        if reason < len(counters.reasons) and counters.reasons[reason]:
            reasons.add_metric([reason.name.lower()], counters.reasons[reason])
    yield from (live, total, reasons)
