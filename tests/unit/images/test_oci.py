# SPDX-License-Identifier: Apache-2.0
"""Directories become images that container engines can read."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from daemonset.images import oci


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file, a program, a link, an empty directory and one that is for everybody."""
    found = tmp_path / "root"
    (found / "usr/bin").mkdir(parents=True)
    (found / "usr/bin/program").write_bytes(b"\x7fELF")
    (found / "usr/bin/program").chmod(0o755)
    (found / "etc").mkdir()
    (found / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (found / "bin").symlink_to("usr/bin")
    (found / "empty").mkdir()
    (found / "tmp").mkdir()
    (found / "tmp").chmod(0o1777)
    return found


def blobs(image: Path) -> dict[str, bytes]:
    with tarfile.open(image) as archive:
        return {one.name: file.read() for one in archive if (file := archive.extractfile(one)) is not None}


def read(image: Path) -> tuple[Any, Any, Any, bytes]:
    """Index, manifest, configuration, layer: each found by the digest that the one before names."""
    found = blobs(image)

    def blob(described: Any) -> bytes:
        data = found["blobs/" + described["digest"].replace(":", "/")]
        assert len(data) == described["size"]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == described["digest"]
        return data

    index = json.loads(found["index.json"])
    manifest = json.loads(blob(index["manifests"][0]))
    configuration = json.loads(blob(manifest["config"]))
    (layer,) = manifest["layers"]
    return index, manifest, configuration, blob(layer)


def test_every_part_is_found_by_its_digest_and_has_the_size_that_is_told(root: Path, tmp_path: Path) -> None:
    size = oci.write(oci.Image("localhost/x:1"), root, tmp_path / "x.tar")

    _, manifest, configuration, layer = read(tmp_path / "x.tar")
    assert size == len(layer)
    assert configuration["rootfs"] == {"type": "layers", "diff_ids": [manifest["layers"][0]["digest"]]}
    assert json.loads(blobs(tmp_path / "x.tar")["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}


def test_name_environment_and_entry_point_are_where_engines_look(root: Path, tmp_path: Path) -> None:
    image = oci.Image("reg.example:5000/x:1.2", ("/usr/bin/program",), {"B": "2", "A": "1"}, {"title": "x"})

    oci.write(image, root, tmp_path / "x.tar")

    index, _, configuration, _ = read(tmp_path / "x.tar")
    notes = index["manifests"][0]["annotations"]
    assert notes["io.containerd.image.name"] == "reg.example:5000/x:1.2"
    assert notes["org.opencontainers.image.ref.name"] == "1.2"
    assert configuration["config"]["Entrypoint"] == ["/usr/bin/program"]
    assert configuration["config"]["Env"] == ["A=1", "B=2"]
    assert configuration["config"]["Labels"] == {"title": "x"}
    assert (configuration["os"], configuration["architecture"]) == ("linux", oci.architecture())


def test_files_keep_their_modes_and_links_and_belong_to_root(root: Path, tmp_path: Path) -> None:
    oci.write(oci.Image("localhost/x:1"), root, tmp_path / "x.tar")

    (tmp_path / "layer.tar").write_bytes(read(tmp_path / "x.tar")[3])
    with tarfile.open(tmp_path / "layer.tar") as layer:
        found = {one.name: one for one in layer}
    assert sorted(found) == ["bin", "empty", "etc", "etc/passwd", "tmp", "usr", "usr/bin", "usr/bin/program"]
    assert found["usr/bin/program"].mode == 0o755
    assert found["tmp"].mode == 0o1777
    assert (found["bin"].issym(), found["bin"].linkname) == (True, "usr/bin")
    assert {(one.uid, one.gid, one.mtime, one.uname) for one in found.values()} == {(0, 0, 0, "")}


def test_same_files_give_the_same_bytes_whoever_wrote_them_and_when(root: Path, tmp_path: Path) -> None:
    oci.write(oci.Image("localhost/x:1"), root, tmp_path / "a.tar")
    os.utime(root / "etc/passwd", (1, 1))
    if os.geteuid() == 0:
        os.chown(root / "etc/passwd", 1000, 1000)

    oci.write(oci.Image("localhost/x:1"), root, tmp_path / "b.tar")

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_failure_leaves_the_last_image_and_nothing_beside_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "out" / "x.tar"
    to.parent.mkdir()
    oci.write(oci.Image("localhost/x:1"), root, to)
    before = to.read_bytes()
    (root / "etc/passwd").write_text("changed")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(oci, "_index", full)
    with pytest.raises(OSError, match="no space"):
        oci.write(oci.Image("localhost/x:1"), root, to)

    assert to.read_bytes() == before
    assert [one.name for one in to.parent.iterdir()] == ["x.tar"]
