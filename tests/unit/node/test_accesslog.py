"""The access log's lines."""

from __future__ import annotations

import json
import os

from mesh.telemetry.names import Names
from tests.unit.node.doubles import event, snapshot
from ztunnel.dataplane.values import Direction, Event, Kind, Path, Reason
from ztunnel.telemetry.accesslog import AccessLog

NAMES = Names(snapshot())


def line(one: Event, form: str = "text") -> str:
    return AccessLog(NAMES, -1, form=form, pod_name=lambda _: "shop/web").line(one)


def test_outbound_line_reads_as_ztunnels() -> None:
    assert line(event(sent=84, received=358)) == (
        "2023-11-14T22:13:22.000000Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.0.0.1:40000 src.workload="client" src.namespace="shop" '
        'src.identity="spiffe://cluster.local/ns/shop/sa/default" '
        "dst.addr=10.0.1.2:15008 dst.hbone_addr=10.96.0.10:80 "
        'dst.service="web.shop.svc.cluster.local" dst.workload="web" dst.namespace="shop" '
        'dst.identity="spiffe://cluster.local/ns/shop/sa/web" direction="outbound" '
        'bytes_sent=84 bytes_recv=358 duration="2000ms" path=tunnel mtls=true reason=ok\n'
    )


def test_plaintext_client_is_logged_as_such() -> None:
    found = json.loads(
        line(
            event(
                direction=Direction.INBOUND,
                path=Path.PLAIN,
                src="[2001:db8::1]:7",
                dst="10.0.1.2:8080",
                peer="",
                src_identity="",
                dst_identity="",
                service="",
            ),
            "json",
        )
    )

    assert found["mtls"] is False
    assert found["path"] == "plain"
    assert found["src.addr"] == "[2001:db8::1]:7"
    assert "src.identity" not in found
    assert found["dst.workload"] == "web"


def test_failure_is_an_error_with_reason_and_words() -> None:
    found = json.loads(line(event(reason=Reason.TIMEOUT, connect_us=-1, detail="10 s"), "json"))

    assert found["level"] == "error"
    assert found["reason"] == "timeout"
    assert "NetworkPolicy" in found["error"] and found["error"].endswith(": 10 s")


def test_line_says_which_rule_decided_and_which_took_note() -> None:
    one = event(direction=Direction.INBOUND, rule="shop/p rules[0]", noted=("AUDIT shop/a rules[0]", "DENY shop/b all"))

    assert 'reason=ok rule="shop/p rules[0]" noted="AUDIT shop/a rules[0], DENY shop/b all"\n' in line(one)
    found = json.loads(line(one, "json"))
    assert found["rule"] == "shop/p rules[0]"
    assert found["noted"] == ["AUDIT shop/a rules[0]", "DENY shop/b all"]


def test_refused_tunnel_has_a_line_of_its_own() -> None:
    found = json.loads(
        line(event(kind=Kind.TUNNEL, direction=Direction.INBOUND, reason=Reason.NOT_TLS, detail="http"), "json")
    )

    assert found["message"] == "tunnel failed"
    assert found["pod"] == "shop/web"
    assert found["reason"] == "not_tls"


def test_control_characters_of_a_peer_stay_inside_their_field() -> None:
    text = line(event(service="a\nb\tc", reason=Reason.H2, detail='x"\ny'))

    assert text.count("\n") == 1
    assert text.count("\t") == 4


def test_one_batch_is_one_write_and_certificate_wishes_are_no_lines() -> None:
    read, write = os.pipe()

    AccessLog(NAMES, write).on_events([event(1), event(2), event(3, kind=Kind.NEED_CERT)])

    assert os.read(read, 65536).count(b"\n") == 2
    os.close(read)
    os.close(write)


def test_reader_that_sleeps_loses_lines_and_does_not_block() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    log = AccessLog(NAMES, write)

    for number in range(1000):
        log.on_events([event(number)])

    assert log.lost > 0
    os.close(read)
    os.close(write)
