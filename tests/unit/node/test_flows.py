# SPDX-License-Identifier: Apache-2.0
"""What of the engine's events the journal remembers."""

from __future__ import annotations

import pytest

from mesh.journal import flow as journal
from mesh.journal.flow import Flow, Party, Record, Verdict
from mesh.journal.recorder import Recorder
from mesh.telemetry.names import Names
from tests.unit.node.doubles import event, snapshot
from ztunnel.dataplane.values import Direction, Event, Kind, Path, Reason
from ztunnel.telemetry.flows import Flows, flow_of

NAMES = Names(snapshot())
RULE = "shop/web-allow rules[0]"


def inbound(**more: object) -> Event:
    base = {"direction": Direction.INBOUND, "dst": "10.0.1.2:8080", "peer": "10.0.0.1:50000", "rule": RULE}
    return event(**(base | more))  # type: ignore[arg-type]


def recorded(*events: Event) -> list[Record]:
    recorder = Recorder()
    Flows(NAMES, recorder).on_events(events)
    return [entry for entry in recorder.take(0) if isinstance(entry, Record)]


def test_allowed_connection_names_both_ends_port_path_and_rule() -> None:
    found = flow_of(inbound(noted=("AUDIT shop/watch rules[0]",)), NAMES)

    assert found == Flow(
        direction=journal.Direction.INBOUND,
        path=journal.Path.TUNNEL,
        verdict=Verdict.ALLOWED,
        source=Party("10.0.0.1", "spiffe://cluster.local/ns/shop/sa/default", "shop/client", "client"),
        destination=Party("10.0.1.2", "spiffe://cluster.local/ns/shop/sa/web", "shop/web", "web"),
        port=8080,
        service="web.shop.svc.cluster.local",
        rule=RULE,
        noted=("AUDIT shop/watch rules[0]",),
    )


def test_denied_connection_says_by_which_rule() -> None:
    found = flow_of(inbound(reason=Reason.DENIED, connect_us=-1, rule="shop/no rules[1]"), NAMES)

    assert (found.verdict, found.rule, found.error) == (Verdict.DENIED, "shop/no rules[1]", "")


def test_outbound_tunnel_names_the_endpoint_and_the_port_dialled() -> None:
    found = flow_of(event(), NAMES)

    assert (found.destination.workload, found.destination.ip, found.port) == ("shop/web", "10.0.1.2", 80)
    assert found.service == "web.shop.svc.cluster.local"


def test_plain_outbound_names_the_port_of_the_endpoint() -> None:
    found = flow_of(event(path=Path.PLAIN, peer="192.0.2.7:8443", dst_identity=""), NAMES)

    assert (found.destination, found.port) == (Party("192.0.2.7"), 8443)


def test_connection_that_policy_let_in_and_the_application_refused_is_allowed_with_its_error() -> None:
    found = flow_of(inbound(reason=Reason.REFUSED, connect_us=-1), NAMES)

    assert (found.verdict, found.error) == (Verdict.ALLOWED, "refused")


@pytest.mark.parametrize("reason", [Reason.NO_CERT, Reason.TIMEOUT, Reason.IDENTITY])
def test_connection_that_failed_before_policy_is_undecided(reason: Reason) -> None:
    found = flow_of(event(reason=reason, connect_us=-1), NAMES)

    assert (found.verdict, found.error) == (Verdict.UNDECIDED, reason.name.lower())


def test_source_port_and_bytes_make_no_new_flow_but_the_rule_does() -> None:
    found = recorded(
        inbound(src="10.0.0.1:1", sent=1), inbound(src="10.0.0.1:2", sent=2), inbound(rule="shop/other rules[0]")
    )

    assert [one.count for one in found] == [2, 1]


def test_tunnels_are_recorded_only_when_they_failed() -> None:
    tunnels = [inbound(kind=Kind.TUNNEL, reason=reason) for reason in (Reason.IDLE, Reason.CERT_UNTRUSTED)]

    (found,) = recorded(*tunnels)

    assert found.flow.error == "cert_untrusted"


def test_service_that_a_peer_made_up_makes_no_flow_of_its_own() -> None:
    (found,) = recorded(*(inbound(service=f"n{number}.evil.svc.cluster.local") for number in range(50)))

    assert (found.count, found.flow.service) == (50, "")


def test_pod_that_takes_an_address_over_is_named_anew() -> None:
    recorder = Recorder()
    flows = Flows(Names(snapshot()), recorder)
    flows.on_events([inbound()])
    flows.set_names(Names(type(snapshot()).build(2)))
    flows.on_events([inbound()])

    workloads = [entry.flow.source.workload for entry in recorder.take(0) if isinstance(entry, Record)]
    assert workloads == ["shop/client", ""]
