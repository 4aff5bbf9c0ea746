# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from mesh.model.snapshot import MeshSnapshot
from mesh.sources import SourceError, SourceUpdate
from mesh.sources.files import FileSource
from tests.unit.mesh.builders import endpoint_slice, namespace, pod, service, write

WEB = service("web", "10.96.0.1", selector={"app": "web"})


def names(snapshot: MeshSnapshot) -> set[str]:
    return {w.name for w in snapshot.workloads.values()} | {s.name for s in snapshot.services.values()}


def load(*dirs: Path, status: Path | None = None) -> tuple[MeshSnapshot, list[SourceError]]:
    return FileSource(dirs, status_dirs=[status] if status else []).load()


def test_broken_file_keeps_all_its_objects_until_mended(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    source = FileSource([tmp_path])
    write(file, pod("a", "10.1.0.1"), WEB)
    before, errors = source.load()
    assert errors == []

    file.write_text("a: [")
    broken, errors = source.load()

    assert broken is before
    assert [(e.file, e.line) for e in errors] == [(str(file), 1)]

    write(file, pod("b", "10.1.0.1"))
    mended, errors = source.load()

    assert names(mended) == {"b"}
    assert errors == []
    assert mended.epoch > before.epoch


def test_bad_object_keeps_its_last_good_version_and_the_others_change(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    source = FileSource([tmp_path])
    write(file, pod("a", "10.1.0.1"), WEB)
    source.load()

    write(file, pod("a", "10.1.0.2"), service("web", "10.96.0.2", ports=[{"port": "http"}]))
    broken, (error,) = source.load()

    assert [str(w.addresses[0]) for w in broken.workloads.values()] == ["10.1.0.2"]
    assert [str(s.vips[0]) for s in broken.services.values()] == ["10.96.0.1"]
    assert str(error).startswith(f"{file}:")
    assert str(error).endswith('Service shop/web: spec.ports[0].port: expected a port number, got "http"')

    write(file, pod("a", "10.1.0.2"), service("web", "10.96.0.2"))
    mended, errors = source.load()

    assert [str(s.vips[0]) for s in mended.services.values()] == ["10.96.0.2"]
    assert errors == []


def test_object_that_was_never_good_is_left_out_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", service("bad", "nonsense"), WEB)

    snapshot, errors = load(tmp_path)

    assert names(snapshot) == {"web"}
    assert [e.object for e in errors] == ["Service shop/bad"]


def test_deleted_file_takes_its_objects_with_it(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", pod("a", "10.1.0.1"))
    write(tmp_path / "b.yml", WEB)
    source = FileSource([tmp_path])
    source.load()

    (tmp_path / "a.yaml").unlink()
    snapshot, errors = source.load()

    assert names(snapshot) == {"web"}
    assert errors == []


def test_deleted_object_does_not_come_back_when_it_returns_broken(tmp_path: Path) -> None:
    source = FileSource([tmp_path])
    for objects in ([WEB], [], [service("web", "nonsense")]):
        write(tmp_path / "a.yaml", *objects)
        snapshot, errors = source.load()

    assert names(snapshot) == set()
    assert len(errors) == 1


def test_first_file_by_name_wins_and_the_error_names_both(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", pod("a", "10.1.0.1"))
    write(tmp_path / "b.yaml", pod("a", "10.1.0.2"))

    snapshot, (error,) = load(tmp_path)

    assert [str(w.addresses[0]) for w in snapshot.workloads.values()] == ["10.1.0.1"]
    assert error.file == str(tmp_path / "b.yaml")
    assert str(tmp_path / "a.yaml") in error.message


def test_missing_directory_is_an_error_that_heals(tmp_path: Path) -> None:
    late = tmp_path / "late"
    source = FileSource([late])

    snapshot, (error,) = source.load()
    assert names(snapshot) == set()
    assert error.file == str(late)

    late.mkdir()
    write(late / "a.yaml", WEB)
    snapshot, errors = source.load()
    assert names(snapshot) == {"web"}
    assert errors == []


def test_unreadable_things_are_named_and_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sub.yaml").mkdir()
    write(tmp_path / "web.yaml", WEB)

    snapshot, errors = load(tmp_path)

    assert names(snapshot) == {"web"}
    assert {Path(e.file).name for e in errors} == {"pipe.yaml", "gone.yaml"}


def unread(source: FileSource) -> list[str]:
    return [Path(error.file).name for error in source.update().unread]


def test_file_that_was_never_read_makes_the_whole_unread_until_it_can_be(tmp_path: Path) -> None:
    write(tmp_path / "web.yaml", WEB)
    (tmp_path / "policies.yaml").write_text("a: [")
    source = FileSource([tmp_path])
    assert unread(source) == ["policies.yaml"]

    (tmp_path / "later.yaml").write_text("b: [")
    assert unread(source) == ["later.yaml", "policies.yaml"]

    (tmp_path / "later.yaml").unlink()
    write(tmp_path / "policies.yaml", pod("a", "10.1.0.1"))
    assert unread(source) == []
    assert names(source.update().snapshot) == {"web", "a"}


def test_file_that_was_never_read_and_is_gone_is_waited_for_no_longer(tmp_path: Path) -> None:
    write(tmp_path / "web.yaml", WEB)
    (tmp_path / "policies.yaml").write_text("a: [")
    source = FileSource([tmp_path])
    assert unread(source)

    (tmp_path / "policies.yaml").unlink()

    assert unread(source) == []


def test_file_that_breaks_or_comes_broken_after_a_whole_reading_holds_nothing_up(tmp_path: Path) -> None:
    write(tmp_path / "web.yaml", WEB)
    source = FileSource([tmp_path])
    assert unread(source) == []

    (tmp_path / "web.yaml").write_text("a: [")
    (tmp_path / "new.yaml").write_text("a: [")
    write(tmp_path / "pod.yaml", pod("a", "10.1.0.1"))

    assert unread(source) == []
    assert {Path(error.file).name for error in source.update().errors} == {"web.yaml", "new.yaml"}
    assert names(source.update().snapshot) == {"web", "a"}


def test_users_directory_must_be_there_once_and_a_status_directory_need_not(tmp_path: Path) -> None:
    source = FileSource([tmp_path / "late"], status_dirs=[tmp_path / "status"])
    assert unread(source) == ["late"]

    (tmp_path / "late").mkdir()
    assert unread(source) == []

    (tmp_path / "late").rmdir()
    assert unread(source) == []


def test_status_file_that_was_never_read_makes_the_whole_unread(tmp_path: Path) -> None:
    (tmp_path / "pods.yaml").write_text("a: [")

    assert unread(FileSource([], status_dirs=[tmp_path])) == ["pods.yaml"]


def test_two_objects_on_one_line_are_two(tmp_path: Path) -> None:
    one, other = json.dumps(service("web", "10.96.0.1")), json.dumps(service("web", "10.96.0.2"))
    (tmp_path / "a.yaml").write_text(f'{{"kind": "List", "apiVersion": "v1", "items": [{one}, {other}]}}')

    snapshot, (error,) = load(tmp_path)

    assert [str(found.vips[0]) for found in snapshot.services.values()] == ["10.96.0.1"]
    assert "is already in" in error.message


def test_status_directory_lends_status_node_and_cluster_address_only(tmp_path: Path) -> None:
    user, status = tmp_path / "user", tmp_path / "status"
    user.mkdir()
    status.mkdir()
    write(user / "a.yaml", namespace("shop", mesh="enabled"), pod("a", None, nodeName=None), service("web"))
    write(
        status / "a.yaml",
        pod("a", "10.1.0.1", labels={"mesh": "disabled"}, nodeName="n7", serviceAccountName="evil"),
        pod("stranger", "10.1.0.9"),
        service("web", "10.96.0.5", ports=[]),
        endpoint_slice("web-1", "web", [{"port": 8080}], [{"addresses": ["10.1.0.1"]}]),
    )

    snapshot, errors = load(user, status=status)

    (workload,) = snapshot.workloads.values()
    (web,) = snapshot.services.values()
    assert errors == []
    assert (workload.captured, workload.service_account, workload.node) == (True, "web", "n7")
    assert [str(a) for a in workload.addresses] == ["10.1.0.1"]
    assert [str(v) for v in web.vips] == ["10.96.0.5"]
    assert [e.workload for e in snapshot.endpoints_of(web.key)] == [workload.uid]


def test_unknown_kinds_are_notes_not_errors(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}, WEB)
    source = FileSource([tmp_path])

    _, errors = source.load()

    assert errors == []
    assert [note.object for note in source.notes] == ["apps/v1 Deployment"]


async def until(updates: AsyncIterator[SourceUpdate], names_wanted: set[str]) -> SourceUpdate:
    seen: list[set[str]] = []
    try:
        async with asyncio.timeout(15):
            async for update in updates:
                seen.append(names(update.snapshot))
                if seen[-1] == names_wanted:
                    return update
    except TimeoutError:
        raise AssertionError(f"wanted {names_wanted}, saw {seen}") from None
    raise AssertionError("the watch ended")


async def test_watch_sees_renames_edits_and_deletions(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", pod("a", "10.1.0.1"))
    source = FileSource([tmp_path])
    async with aclosing(source.watch()) as updates:
        await until(updates, {"a"})

        write(tmp_path / "a.yaml", pod("b", "10.1.0.1"))
        update = await until(updates, {"b"})
        assert [w.name for w in update.delta.added_workloads] == ["b"]
        assert update.delta.removed_workloads == ("Kubernetes//Pod/shop/a",)

        with (tmp_path / "a.yaml").open("a") as file:
            file.write("---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\n")
        await until(updates, {"b", "s"})

        (tmp_path / "a.yaml").unlink()
        await until(updates, set())


async def test_watch_reports_errors_and_their_end(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", WEB)
    source = FileSource([tmp_path])
    source.load()
    async with aclosing(source.watch()) as updates:
        (tmp_path / "a.yaml").write_text("a: [")
        async with asyncio.timeout(15):
            broken = await anext(updates)
        assert len(broken.errors) == 1
        assert broken.delta.is_empty

        write(tmp_path / "a.yaml", WEB)
        async with asyncio.timeout(15):
            mended = await anext(updates)
        assert mended.errors == ()
        assert mended.snapshot.epoch == broken.snapshot.epoch


async def test_watch_follows_the_links_of_a_mounted_config_map(tmp_path: Path) -> None:
    for version, name in (("v1", "a"), ("v2", "b")):
        (tmp_path / f"..{version}").mkdir()
        write(tmp_path / f"..{version}" / "mesh.yaml", pod(name, "10.1.0.1"))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "mesh.yaml").symlink_to("..data/mesh.yaml")
    async with aclosing(FileSource([tmp_path]).watch()) as updates:
        await until(updates, {"a"})

        (tmp_path / "..new").symlink_to("..v2")
        (tmp_path / "..new").rename(tmp_path / "..data")

        await until(updates, {"b"})


async def test_watch_finds_a_directory_that_comes_later(tmp_path: Path) -> None:
    async with aclosing(FileSource([tmp_path / "late"]).watch()) as updates:
        async with asyncio.timeout(15):
            assert len((await anext(updates)).errors) == 1

        (tmp_path / "late").mkdir()
        write(tmp_path / "late" / "a.yaml", WEB)

        assert (await until(updates, {"web"})).errors == ()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hundred_thousand_pods_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "---\n{apiVersion: v1, kind: Pod, metadata: {name: p%d, namespace: ns%d, labels: {app: a%d}}, "
        "spec: {nodeName: n%d, serviceAccountName: sa}, status: {podIP: 10.%d.%d.%d}}\n"
    )
    for part in range(20):
        rows = [line % (i, i % 100, i % 50, i % 1000, i >> 16, i >> 8 & 255, i & 255) for i in _part(part)]
        (tmp_path / f"{part:02}.yaml").write_text("".join(rows))
    write(tmp_path / "svc.yaml", service("web", "10.200.0.1", ns="ns0", selector={"app": "a0"}))
    before_kb, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()

    snapshot, errors = load(tmp_path)

    took_s = time.monotonic() - start
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) // 1024
    with capsys.disabled():
        print(f"\n10^5 pods: loaded in {took_s:.1f} s, {grown_mb} MB more resident")
    assert errors == []
    assert len(snapshot.workloads) == 100_000
    assert len(snapshot.on_node("n1")) == 100
    assert grown_mb < 1024


def _part(part: int) -> range:
    return range(part * 5000, (part + 1) * 5000)
