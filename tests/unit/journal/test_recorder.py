# SPDX-License-Identifier: Apache-2.0
"""Counting connections together, within bounds."""

from __future__ import annotations

from mesh.journal.flow import Lost, Record
from mesh.journal.recorder import Recorder
from tests.unit.journal.builders import NOW, SECOND, flow


def counts(entries: list[Record | Lost]) -> dict[int, int]:
    """By port."""
    return {entry.flow.port: entry.count for entry in entries if isinstance(entry, Record)}


def test_many_connections_of_one_flow_are_one_record_with_first_and_last() -> None:
    recorder = Recorder()
    for number in (3, 0, 7, 5):
        recorder.count("key", NOW + number * SECOND, flow)

    (found,) = recorder.take(0)

    assert found == Record(flow(), 4, NOW, NOW + 7 * SECOND)


def test_new_flow_is_due_at_once_and_a_repeated_one_after_its_period() -> None:
    recorder = Recorder(period_s=60)
    recorder.count(1, NOW, lambda: flow(port=1))
    assert counts(recorder.take(100)) == {1: 1}

    for _ in range(5):
        recorder.count(1, NOW, lambda: flow(port=1))
    recorder.count(2, NOW, lambda: flow(port=2))

    assert counts(recorder.take(101)) == {2: 1}
    assert counts(recorder.take(160)) == {1: 5}


def test_idle_flow_is_forgotten() -> None:
    recorder = Recorder(period_s=60)
    recorder.count(1, NOW, flow)
    recorder.take(0)

    assert recorder.take(60) == []
    assert len(recorder) == 0


def test_asking_for_everything_does_not_keep_idle_flows_alive() -> None:
    recorder = Recorder(period_s=60)
    recorder.count(1, NOW, flow)
    recorder.take(0)
    recorder.count(1, NOW, flow)

    assert counts(recorder.take(1, everything=True)) == {8080: 1}
    for second in range(2, 60):
        assert recorder.take(second, everything=True) == []
    recorder.take(60)
    assert len(recorder) == 0


def test_flows_over_the_bound_are_counted_as_lost_and_said_once() -> None:
    recorder = Recorder(max_flows=100)
    for number in range(1000):
        recorder.count(number, NOW, lambda number=number: flow(f"client-{number}", port=number))  # type: ignore[misc]

    found = recorder.take(0)

    assert len(recorder) == 100
    assert len(counts(found)) == 100
    assert found[-1] == Lost(900)
    assert recorder.lost == 900
    assert recorder.take(1) == []


def test_scanner_cannot_take_the_room_of_others() -> None:
    recorder = Recorder(max_flows=100)
    for number in range(1000):
        recorder.count(number, NOW, lambda number=number: flow("scanner", port=number))  # type: ignore[misc]
    recorder.count("other", NOW, lambda: flow("other", port=2000))

    found = counts(recorder.take(0))

    assert found[2000] == 1
    assert len(found) == 26


def test_room_comes_back_when_flows_end() -> None:
    recorder = Recorder(max_flows=16, period_s=60)
    for round_ in range(40):
        recorder.count(round_, NOW, flow)
        recorder.take(round_ * 120)

    assert recorder.lost == 0


def test_forgotten_names_are_asked_again_and_nothing_is_lost() -> None:
    recorder = Recorder(max_flows=8, period_s=60)
    recorder.count("10.0.0.1", NOW, lambda: flow("old", port=1))
    recorder.take(0)
    recorder.count("10.0.0.1", NOW, lambda: flow("old", port=1))
    recorder.forget_names()
    recorder.count("10.0.0.1", NOW, lambda: flow("new", port=2))

    assert counts(recorder.take(1)) == {1: 1, 2: 1}
    for number in range(100):
        recorder.forget_names()
        recorder.count("10.0.0.1", NOW, lambda: flow("new", port=2))
        assert counts(recorder.take(2 + number)) == {2: 1}
    assert recorder.lost == 0


def test_what_could_not_be_written_is_lost_and_said_later() -> None:
    recorder = Recorder()
    for _ in range(3):
        recorder.count(1, NOW, flow)
    recorder.give_back([*recorder.take(0), Lost(4)])

    assert recorder.take(1) == [Lost(7)]
