# SPDX-License-Identifier: Apache-2.0
"""An agent that takes the mesh off its node leaves nothing there."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from mesh.leaving import MARK, forget
from mesh.sources.choice import SourceChoice
from nodeagent.cluster import plugin_of
from nodeagent.config import ClusterSettings, CniSettings, Config
from nodeagent.leaving import leave


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A node with a network plugin of its own, ours installed beside it, and files of both programs."""
    run_dir, conf_dir = tmp_path / "run", tmp_path / "net.d"
    node_dir = run_dir / "default" / "nodes" / "n1"
    (node_dir / "journal" / "ztunnel").mkdir(parents=True)
    (node_dir / "journal" / "ztunnel" / "1").write_text("x")
    (node_dir / "cni-namespaces.json").write_text("{}")
    conf_dir.mkdir()
    (conf_dir / "10-net.conflist").write_text(json.dumps({"name": "net", "plugins": [{"type": "bridge"}]}))
    binary = tmp_path / "qanat-cni"
    binary.write_text("plugin")
    cni = CniSettings(binary, tmp_path / "bin", conf_dir, node_dir / "cni.sock", node_dir / "cni-namespaces.json")
    plugin_of(cni).ensure()
    return Config("default", "n1", SourceChoice("kubernetes"), run_dir, cluster=ClusterSettings(None, cni))


def test_cni_entry_plugin_and_files_are_gone(config: Config, tmp_path: Path) -> None:
    leave(config)

    assert json.loads((tmp_path / "net.d" / "10-net.conflist").read_text())["plugins"] == [{"type": "bridge"}]
    assert list((tmp_path / "bin").iterdir()) == []
    assert list(config.run_dir.iterdir()) == []


def test_directory_is_left_to_a_ztunnel_that_still_drains(config: Config) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ztunnel:
        ztunnel.bind(str(config.node_dir / "ztunnel.sock"))
        ztunnel.listen()
        leave(config)

    assert (config.node_dir / MARK).exists()
    forget(config.node_dir)  # what ztunnel does at its end
    assert list(config.run_dir.iterdir()) == []


def test_other_nodes_of_the_same_run_directory_stay(config: Config) -> None:
    other = config.node_dir.with_name("n2")
    other.mkdir()

    leave(config)

    assert other.is_dir()
    assert not config.node_dir.exists()


def test_configuration_that_cannot_be_read_does_not_stop_the_rest(config: Config, tmp_path: Path) -> None:
    (tmp_path / "net.d" / "10-net.conflist").write_text("{")

    leave(config)

    assert list(config.run_dir.iterdir()) == []


def test_names_of_nodes_with_dots_are_possible_in_bpffs(config: Config) -> None:
    named = Config("default", "ip-10-0-0-1.ec2.internal", config.source, config.run_dir)

    assert named.instance == "default-ip-10-0-0-1_ec2_internal"
