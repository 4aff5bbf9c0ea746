# SPDX-License-Identifier: Apache-2.0
"""What goes into the image that is made from this machine's files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from daemonset.images import local

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "daemonset/images/Dockerfile"
debian = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not a Debian system")


@debian
def test_closure_has_what_a_package_depends_on_and_not_what_only_installing_needs() -> None:
    found = local.closure({"iproute2"})

    assert {"iproute2", "libc6", "libelf1"} <= found
    assert not found & local.LEFT_OUT


@debian
def test_unknown_package_is_told_with_what_to_do() -> None:
    with pytest.raises(local.CannotBuild, match="apt-get install"):
        local.closure({"no-such-package-anywhere"})


@debian
def test_owner_of_a_library_is_found_by_either_of_its_paths() -> None:
    libc = next(path for path in local.linked([Path(sys.executable)]) if path.name.startswith("libc."))

    assert local.owners([libc]) == {"libc6"}


@debian
def test_library_of_no_package_is_refused_by_its_path(tmp_path: Path) -> None:
    stray = tmp_path / "libstray.so.1"
    stray.write_bytes(b"")

    with pytest.raises(local.CannotBuild, match=re.escape(str(stray))):
        local.owners([stray])


def test_missing_shared_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.c").write_text("int gone(void) { return 1; }")
    (tmp_path / "user.c").write_text("int gone(void); int user(void) { return gone(); }")
    cc = ["gcc", "-shared", "-fPIC", "-o"]
    subprocess.run([*cc, tmp_path / "libgone.so", tmp_path / "gone.c"], check=True)
    user = tmp_path / "libuser.so"
    subprocess.run([*cc, user, tmp_path / "user.c", "-L", tmp_path, "-lgone"], check=True)
    (tmp_path / "libgone.so").unlink()

    with pytest.raises(local.CannotBuild, match=r"libgone\.so"):
        local.linked([user])


def test_python_packages_are_those_that_run_not_those_that_test() -> None:
    found = local.distributions("qanat")

    assert {"qanat", "aiohttp", "click", "cryptography"} <= set(found)
    assert not {"pytest", "hypothesis", "mypy", "ruff"} & set(found)


def test_files_of_a_package_keep_their_place_and_links_stay_links(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    (stage / "usr/lib").mkdir(parents=True)
    (stage / "lib").symlink_to("usr/lib")
    source = tmp_path / "lib"
    source.mkdir()
    (source / "libx.so.1.2").write_bytes(b"x")
    (source / "libx.so.1").symlink_to("libx.so.1.2")

    for name in ("libx.so.1.2", "libx.so.1"):
        local._copy(source / name, stage)

    where = stage.joinpath(*source.parts[1:])
    assert (where / "libx.so.1.2").read_bytes() == b"x"
    assert (where / "libx.so.1").is_symlink()


@pytest.mark.parametrize("path", ["/usr/share/doc/x", "/usr/share/man/man1/x.1.gz", "/usr/include/x.h"])
def test_documentation_and_headers_stay_out(path: str) -> None:
    assert local.NOT_RUN.match(path)


@pytest.mark.parametrize("path", ["/usr/share/zoneinfo/UTC", "/usr/bin/x", "/usr/lib/include-me.so"])
def test_what_runs_does_not(path: str) -> None:
    assert not local.NOT_RUN.match(path)


def test_tree_that_is_not_built_is_refused_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ROOT", tmp_path)

    with pytest.raises(local.CannotBuild, match="make build"):
        local.build("localhost/x:1", tmp_path / "x.tar", bcc=False)

    assert list(tmp_path.iterdir()) == []


# --- the Dockerfile makes the same image


def test_dockerfile_stands_on_one_base_that_can_be_replaced() -> None:
    text = DOCKERFILE.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)

    assert re.search(r"^ARG BASE=\S+$", text, re.MULTILINE)
    assert bases == ["${BASE}", "${BASE}", "base", "base"]


def test_dockerfile_and_local_image_have_the_same_environment() -> None:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)

    assert dict(one.split("=", 1) for one in line.split()) == local.ENVIRONMENT


def test_last_stage_of_the_dockerfile_has_no_compiler() -> None:
    base = DOCKERFILE.read_text().partition("AS base")[2].partition("FROM base AS bcc")[0]

    assert not re.search(r"\b(gcc|clang|make|llvm|\S+-dev)\b", base)


def test_version_of_the_default_name_is_that_of_the_manifests() -> None:
    manifests = (ROOT / "daemonset/manifests/qanat.yaml").read_text()

    assert set(re.findall(r"image: (\S+)", manifests)) == {f"localhost/qanat:{metadata.version('qanat')}"}
