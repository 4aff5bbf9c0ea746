# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cni.install import CniConfigError, CniInstall

BRIDGE = {"type": "bridge", "bridge": "cni0"}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
LATE = {"type": "bandwidth"}


@pytest.fixture
def install(tmp_path: Path) -> CniInstall:
    (tmp_path / "plugin").write_bytes(b"binary")
    (tmp_path / "net.d").mkdir()
    return CniInstall(tmp_path / "plugin", tmp_path / "bin", tmp_path / "net.d", {"waitSeconds": 5})


def chain(path: Path, *plugins: dict[str, Any], name: str = "k8s") -> None:
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins}))


def types(path: Path) -> list[str]:
    return [plugin["type"] for plugin in json.loads(path.read_text())["plugins"]]


def test_plugin_goes_to_the_end_of_the_first_chain_only(install: CniInstall) -> None:
    chain(install.conf_dir / "10-k8s.conflist", BRIDGE, PORTMAP)
    chain(install.conf_dir / "20-other.conflist", BRIDGE)

    assert install.ensure()

    assert types(install.conf_dir / "10-k8s.conflist") == ["bridge", "portmap", "qanat-cni"]
    assert types(install.conf_dir / "20-other.conflist") == ["bridge"]
    assert (install.bin_dir / "qanat-cni").read_bytes() == b"binary"
    assert (install.bin_dir / "qanat-cni").stat().st_mode & 0o777 == 0o755
    assert not install.ensure()


def test_rewritten_chain_gets_the_plugin_again_behind_the_new_ones(install: CniInstall) -> None:
    path = install.conf_dir / "10-k8s.conflist"
    chain(path, BRIDGE)
    install.ensure()
    written = json.loads(path.read_text())

    path.write_text(json.dumps({**written, "plugins": [*written["plugins"], LATE]}))
    assert install.ensure()
    assert types(path) == ["bridge", "bandwidth", "qanat-cni"]

    chain(path, BRIDGE, PORTMAP)
    assert install.ensure()
    assert types(path) == ["bridge", "portmap", "qanat-cni"]


def test_chain_that_comes_to_stand_before_takes_over(install: CniInstall) -> None:
    chain(install.conf_dir / "20-k8s.conflist", BRIDGE)
    install.ensure()
    chain(install.conf_dir / "10-new.conflist", PORTMAP)

    install.ensure()

    assert types(install.conf_dir / "10-new.conflist") == ["portmap", "qanat-cni"]
    assert types(install.conf_dir / "20-k8s.conflist") == ["bridge"]


def test_everything_else_in_the_file_stays(install: CniInstall) -> None:
    path = install.conf_dir / "10-k8s.conflist"
    before = {"cniVersion": "0.4.0", "name": "x", "disableCheck": True, "plugins": [PORTMAP], "note": {"a": [1]}}
    path.write_text(json.dumps(before))
    path.chmod(0o640)
    install.ensure()
    after = json.loads(path.read_text())
    assert {**after, "plugins": []} == {**before, "plugins": []}
    assert path.stat().st_mode & 0o777 == 0o640

    assert install.remove()

    assert json.loads(path.read_text()) == before
    assert not (install.bin_dir / "qanat-cni").exists()
    assert not install.remove()


def test_single_plugin_becomes_a_chain_and_comes_back(install: CniInstall) -> None:
    path = install.conf_dir / "10-k8s.conf"
    path.write_text(json.dumps({"cniVersion": "0.3.1", "name": "k8s", **BRIDGE}))

    install.ensure()
    assert types(install.conf_dir / "10-k8s.conflist") == ["bridge", "qanat-cni"]
    assert not install.ensure()

    install.remove()
    assert sorted(one.name for one in install.conf_dir.iterdir()) == ["10-k8s.conf"]
    assert json.loads(path.read_text())["type"] == "bridge"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plugins": 3}', "{}"])
def test_broken_configuration_is_left_alone_and_named(install: CniInstall, text: str) -> None:
    path = install.conf_dir / "10-k8s.conflist"
    path.write_text(text)

    with pytest.raises(CniConfigError, match="10-k8s"):
        install.ensure()

    assert path.read_text() == text
    install.remove()
    assert path.read_text() == text


def test_no_configuration_yet_is_said(install: CniInstall) -> None:
    with pytest.raises(CniConfigError, match="no CNI configuration yet"):
        install.ensure()


def test_changed_plugin_binary_is_replaced(install: CniInstall) -> None:
    chain(install.conf_dir / "10-k8s.conflist", BRIDGE)
    install.ensure()
    install.binary.write_bytes(b"newer")

    assert install.ensure()

    assert (install.bin_dir / "qanat-cni").read_bytes() == b"newer"
