# SPDX-License-Identifier: Apache-2.0
"""``--ca``: the three forms, and what every other one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.identity.target import BadTarget, source

TOKEN, ROOT = Path("/token"), Path("/root.pem")


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("unix:/run/qanat/default/ca.sock", "GrpcCaClient('unix:/run/qanat/default/ca.sock'"),
        ("unix:///run/ca.sock", "GrpcCaClient('unix:/run/ca.sock'"),
        ("https://istiod.istio-system.svc:15012", "GrpcCaClient('istiod.istio-system.svc:15012'"),
        ("https://[fd00::1]:15012/", "GrpcCaClient('[fd00::1]:15012'"),
        ("file:/etc/qanat/certs", "FilesSource('/etc/qanat/certs')"),
    ],
)
def test_each_form_makes_its_kind(target: str, shown: str) -> None:
    assert shown in repr(source(target, TOKEN, ROOT))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("istiod:15012", "is no certificate authority: give unix:"),
        ("http://istiod:15012", "is no certificate authority"),
        ("https://istiod", "give host and port"),
        ("https://istiod:0x1", "Port could not be cast"),
        ("https://user@istiod:15012", "give host and port and nothing else"),
        ("https://istiod:15012/path", "give host and port and nothing else"),
        ("unix:ca.sock", "the path must be absolute"),
        ("file:", "the path must be absolute"),
        ("file:certs", "the path must be absolute"),
    ],
)
def test_any_other_form_is_told_what_is_wrong(target: str, told: str) -> None:
    with pytest.raises(BadTarget, match=told):
        source(target, TOKEN, ROOT)


def test_https_without_a_root_is_told_which_option() -> None:
    with pytest.raises(BadTarget, match=r"--ca-root \(CA_ROOT_CA\)"):
        source("https://istiod:15012", TOKEN, None)
