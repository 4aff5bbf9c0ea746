# SPDX-License-Identifier: Apache-2.0
"""Certificates and revocation lists as metrics: their ends, so that an alert can come long before, and what failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ztunnel.identity.entry import CertificateStatus
from ztunnel.identity.revocation import RevocationStatus
from ztunnel.identity.x509 import CertificateInfo


@dataclass(frozen=True, slots=True)
class CertificateReading:
    """Taken at one moment. `revocations` None = no file is followed."""

    held: Sequence[CertificateStatus] = ()
    revocations: RevocationStatus | None = None


def families(reading: CertificateReading) -> Iterable[Metric]:
    expiry = GaugeMetricFamily(
        "qanat_certificate_expiry_timestamp_seconds", "End of a certificate's life.", labels=["identity"]
    )
    failures = CounterMetricFamily(
        "qanat_certificate_renewal_failures", "Requests for a certificate that brought none.", labels=["identity"]
    )
    for one in reading.held:
        if one.certificate is not None:
            expiry.add_metric([str(one.identity)], one.certificate.not_after.timestamp())
        failures.add_metric([str(one.identity)], one.failed)
    yield expiry
    yield failures
    issued = [one.certificate for one in reading.held if one.certificate is not None]
    yield _authorities("issuer", [info for one in issued for info in one.chain[1:]])
    yield _authorities("root", [info for one in issued for info in one.roots])
    if reading.revocations is not None:
        yield from _revocations(reading.revocations)


def _authorities(kind: str, infos: Iterable[CertificateInfo]) -> Metric:
    family = GaugeMetricFamily(
        f"qanat_{kind}_expiry_timestamp_seconds", f"End of life of each {kind} in use.", labels=["subject", "serial"]
    )
    for (subject, serial), ends in {(i.subject, i.serial): i.not_after.timestamp() for i in infos}.items():
        family.add_metric([subject, serial], ends)
    return family


def _revocations(status: RevocationStatus) -> Iterable[Metric]:
    found = status.in_force
    yield GaugeMetricFamily("qanat_revocation_serials", "Revoked certificates known.", found.serials if found else 0)
    yield GaugeMetricFamily(
        "qanat_revocation_file_used", "Whether the file of lists counts as it is now.", 0 if status.error else 1
    )
    yield CounterMetricFamily("qanat_revocation_file_refused", "Contents of that file not taken.", status.refused)
    if found and found.next_update_s:
        yield GaugeMetricFamily(
            "qanat_revocation_next_update_timestamp_seconds", "When a newer list is due.", found.next_update_s
        )
