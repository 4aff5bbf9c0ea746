# SPDX-License-Identifier: Apache-2.0
"""What the kernel is told by differences is what it would be told at once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.kube.assemble import Assembler
from mesh.kube.objects import KubeObject, ObjectRef
from mesh.kube.settings import TranslateSettings
from mesh.model.snapshot import MeshSnapshot
from mesh.policy.same_node import SameNode
from nodeagent.paths.content import Content
from nodeagent.pods.seam import LocalPod
from tests.unit.mesh.builders import Raw, parsed
from tests.unit.mesh.test_assembler import STEPS
from tests.unit.paths.world import FakeKernel


def local_pods(snapshot: MeshSnapshot) -> list[LocalPod]:
    return [LocalPod(1 + at, w.uid, -1, w.addresses) for at, w in enumerate(snapshot.on_node("n1")) if w.captured]


@settings(max_examples=200, deadline=None)
@given(STEPS, st.data())
def test_any_history_leads_to_the_maps_of_what_stands_now(
    steps: list[tuple[list[Raw], list[int]]], data: st.DataObject
) -> None:
    assembler = Assembler(TranslateSettings())
    kernel = FakeKernel()
    content = Content(kernel, SameNode.DIRECT)
    standing: dict[ObjectRef, KubeObject] = {}
    for epoch, (raws, numbers) in enumerate(steps, 1):
        put = {item.ref: item for item in parsed(*raws)}
        known = list(standing)
        gone = {known[number % len(known)] for number in numbers if known} - set(put)
        assembler.update(put.values(), gone)
        standing = {ref: item for ref, item in {**standing, **put}.items() if ref not in gone}
        snapshot, _ = assembler.snapshot(epoch)
        if data.draw(st.booleans()):  # rounds of the keeper leave some out
            continue

        content.apply(snapshot, local_pods(snapshot))

        afresh = FakeKernel()
        Content(afresh, SameNode.DIRECT).apply(snapshot, local_pods(snapshot))
        for name in ("mesh_addrs", "services"):
            assert kernel.entries(name) == afresh.entries(name)
