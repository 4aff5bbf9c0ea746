# SPDX-License-Identifier: Apache-2.0
"""The node agent's door to prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import choose_encoder

from mesh.policy.tally import Hits, by_verdict
from mesh.telemetry.labels import LABELS, SERIES, LabelValues
from nodeagent.telemetry.series import PATH_LABELS, Cell

REFUSED_LABELS = ("rule", "source", "destination")


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one page shows. `kernel`: outcomes by reason, of every program."""

    cells: Sequence[Cell]
    refused: Mapping[LabelValues, int]
    kernel: Mapping[str, int]
    live: Mapping[str, int]
    overflowed: int
    lines_lost: int
    refusals_lost: int
    journal_lost: int
    hits: Mapping[str, Hits]
    version: str


def page(reading: Reading, accept: str) -> tuple[bytes, str]:
    """(body, content type) for an Accept header. Any thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(_collect(reading)))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Once:
    """A collector for one page."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _collect(reading: Reading) -> Iterable[Metric]:
    yield from _istio([cell for cell in reading.cells if len(cell.labels) == len(LABELS)])
    yield from _paths([cell for cell in reading.cells if len(cell.labels) == len(PATH_LABELS)])
    refused = CounterMetricFamily("qanat_refused", "connect() refused in the kernel.", labels=REFUSED_LABELS)
    for labels, count in reading.refused.items():
        refused.add_metric(labels, count)
    yield refused
    yield CounterMetricFamily(
        "qanat_refusals_lost", "Those of a flood that are in no log, journal or qanat_refused.", reading.refusals_lost
    )
    kernel = CounterMetricFamily("qanat_kernel_outcomes", "Outcomes of the kernel's programs.", labels=["reason"])
    for reason, count in reading.kernel.items():
        kernel.add_metric([reason], count)
    yield kernel
    live = GaugeMetricFamily("qanat_path_connections_open", "Open connections that met no proxy.", labels=["path"])
    for path, count in reading.live.items():
        live.add_metric([path], count)
    yield live
    yield CounterMetricFamily(
        "qanat_metrics_overflow", "Sets of labels counted under `other`: too many.", reading.overflowed
    )
    hits = CounterMetricFamily("qanat_policy_hits", "Connections by what decided.", labels=["rule", "verdict"])
    for labels, count in by_verdict(reading.hits):
        hits.add_metric(labels, count)
    yield hits
    yield CounterMetricFamily("qanat_journal_lost", "Connections the journal has not kept.", reading.journal_lost)
    yield CounterMetricFamily("qanat_access_log_lost", "Lines their destination did not take.", reading.lines_lost)
    build = GaugeMetricFamily("istio_build", "Component and version.", labels=["component", "tag"])
    build.add_metric(["nodeagent", f"qanat-{reading.version}"], 1)
    yield build


def _istio(cells: Sequence[Cell]) -> Iterable[Metric]:
    for name, text, attribute in SERIES:
        yield _counter(name, text, LABELS, ((cell.labels, getattr(cell, attribute)) for cell in cells))


def _paths(cells: Sequence[Cell]) -> Iterable[Metric]:
    for name, text, attribute in (
        ("qanat_path_connections_opened", "Connections that met no proxy.", "opened"),
        ("qanat_path_connections_failed", "Those that nobody answered.", "failed"),
        ("qanat_path_resets", "Those that were cut by a reset or a timeout.", "resets"),
        ("qanat_path_retransmits", "Segments sent again by the client, of closed connections.", "retransmits"),
    ):
        yield _counter(name, text, PATH_LABELS, ((cell.labels, getattr(cell, attribute)) for cell in cells))
    rtt = SummaryMetricFamily(
        "qanat_path_rtt_seconds", "Smoothed round trip at the end of each connection.", labels=PATH_LABELS
    )
    for cell in cells:
        rtt.add_metric(cell.labels, count_value=cell.closed, sum_value=cell.rtt_us / 1e6)
    yield rtt


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[LabelValues, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family
