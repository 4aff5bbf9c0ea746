# SPDX-License-Identifier: Apache-2.0
"""Fuzzes what reads people's objects: ``python -m tests.fuzz.objects TARGET SECONDS DIRECTORY``.

Guided by coverage where atheris is installed, by Hypothesis alone elsewhere. A finding ends with a traceback and a
non-zero exit code; atheris leaves its input in DIRECTORY, and a corpus.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GUIDED = importlib.util.find_spec("atheris") is not None
with contextlib.ExitStack() as stack:
    if GUIDED:
        import atheris

        stack.enter_context(atheris.instrument_imports(include=["mesh.kube", "mesh.policy", "mesh.sources"]))
    from mesh.kube.objects import ObjectError, PolicyObject
    from mesh.kube.parse import parse_object, unroll
    from mesh.model.policy import AuthorizationPolicy, EgressPolicy, PeerAuthentication
    from mesh.policy.egress import Addresses, EgressRequest, evaluate_egress
    from mesh.policy.evaluate import PolicySet, Request, evaluate
    from mesh.policy.lint import Text, lint
    from mesh.sources.files.documents import DocumentError, read_documents
    from tests.support.mutations import Raw, egress_objects, mutated, objects
    from tests.support.policies import IPS, egress_requests, known_hosts, requests, workload
    from ztunnel.dataplane.egress import compile_egress_set
    from ztunnel.dataplane.policy import compile_set
    from ztunnel.dataplane.policyset import CompiledPolicies

WANTED = Request(None, IPS[0], "shop", {}, IPS[2], 80)
SLICE = 200
"""Examples of Hypothesis between two looks at the clock."""


@st.composite
def spoilt(draw: st.DrawFn) -> list[Raw]:
    """Some objects, of which some are as they should be."""
    good = [draw(objects(f"p{number}")) for number in range(3)]
    return [draw(mutated(raw, most=3)) if draw(st.booleans()) else raw for raw in good]


@given(spoilt(), st.lists(requests, min_size=1, max_size=4))
def engine(raws: list[Raw], asked: list[Request]) -> None:
    """Objects to policies to rows to the engine: its verdict is the reference's, for stand-ins too."""
    found = [value.policy for value in map(_understood, raws) if isinstance(value, PolicyObject)]
    policies = PolicySet(
        tuple(p for p in found if isinstance(p, AuthorizationPolicy)),
        tuple(p for p in found if isinstance(p, PeerAuthentication)),
    )
    for request in asked:
        with CompiledPolicies(compile_set(policies, [workload(request)], 1)) as compiled:
            verdict = compiled.evaluate(request.source, request.source_ip, request.ip, request.port)
        expected = evaluate(policies, request)
        assert (verdict.allowed, verdict.rule) == (expected.allowed, expected.rule)
        assert verdict.noted == expected.noted[:4]


@st.composite
def spoilt_egress(draw: st.DrawFn) -> list[Raw]:
    good = [draw(egress_objects(f"p{number}")) for number in range(3)]
    return [draw(mutated(raw, most=3)) if draw(st.booleans()) else raw for raw in good]


@given(spoilt_egress(), st.lists(egress_requests, min_size=1, max_size=4), known_hosts)
def egress(raws: list[Raw], asked: list[EgressRequest], hosts: Addresses) -> None:
    """As ``engine``, for what may leave the mesh."""
    found = [value.policy for value in map(_understood, raws) if isinstance(value, PolicyObject)]
    # Two that are still of one name and namespace are one object to every source.
    policies = tuple({p.key: p for p in found if isinstance(p, EgressPolicy)}.values())
    for request in asked:
        source = replace(workload(WANTED), namespace=request.source.namespace, labels=request.labels)
        with CompiledPolicies(compile_egress_set(policies, [source], hosts, 1)) as compiled:
            verdict = compiled.evaluate(request.source, source.addresses[0], request.ip, request.port)
        expected = evaluate_egress(policies, request, hosts)
        if policies:
            assert (verdict.allowed, verdict.rule) == (expected.allowed, expected.rule)
        else:
            assert verdict.allowed
            assert expected.allowed


def _understood(raw: Raw) -> object:
    try:
        return parse_object(raw)
    except ObjectError as error:
        _check_line(error)
        return error.stand_in


def _check_line(error: Exception) -> None:
    """What goes into a log about other people's text."""
    assert str(error).isprintable()


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def text(data: bytes) -> None:
    """Any bytes as a file: documents or an error with a line, objects or an error with a place, findings of lint."""
    _read(data)


def _read(data: bytes) -> None:
    try:
        documents = read_documents(data)
    except DocumentError:
        return
    for document in documents:
        try:
            for raw, prefix in unroll(document.value):
                try:
                    parse_object(raw)
                except ObjectError as error:
                    _check_line(error)
                    line = document.line_of((*prefix, *error.path))
                    assert 0 < line <= len(data)
        except ObjectError as error:
            _check_line(error)
    lint([Text("fuzzed.yaml", data)])


TARGETS: dict[str, tuple[Any, Callable[[bytes], object]]] = {
    "engine": (engine, engine.hypothesis.fuzz_one_input),  # type: ignore[attr-defined]
    "egress": (egress, egress.hypothesis.fuzz_one_input),  # type: ignore[attr-defined]
    "text": (text, _read),
}
"""A property, and the same for bytes of the fuzzer's choice."""


def guided(check: Callable[[bytes], object], seconds: int, directory: Path, seeds: Path) -> None:
    """Ends the process."""

    def run(data: bytes) -> None:
        check(data)

    corpora = [str(directory), *([str(seeds)] if seeds.is_dir() else [])]
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-len_control=0"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={directory}/", "-print_final_stats=1", *corpora], run)
    atheris.Fuzz()


def unguided(check: Any, seconds: int) -> None:
    end, slices = time.monotonic() + seconds, 0
    run = settings(max_examples=SLICE, deadline=None, database=None, suppress_health_check=list(HealthCheck))(check)
    while time.monotonic() < end:
        run()
        slices += 1
    print(f"stat::number_of_executed_units: {slices * SLICE}")


def main() -> None:
    name, seconds, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    check, check_bytes = TARGETS[name]
    if GUIDED:
        guided(check_bytes, seconds, directory, Path(__file__).parent / "corpus" / name)
    else:
        unguided(check, seconds)


if __name__ == "__main__":
    main()
