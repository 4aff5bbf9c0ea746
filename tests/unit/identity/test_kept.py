# SPDX-License-Identifier: Apache-2.0
"""Certificates kept for the next ztunnel, in the kernel's real keyring."""

from __future__ import annotations

import dataclasses
import datetime as dt
import errno
import logging
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.ca.authority import Authority
from mesh import keyring
from mesh.keyring import Keyring, node_keyring
from mesh.model.identity import Identity
from tests.unit.identity.support import CART, TRUST_DOMAIN, WEB
from ztunnel.identity import kept, x509
from ztunnel.identity.kept import KernelKept
from ztunnel.identity.x509 import IssuedCertificate


@pytest.fixture
def mesh() -> Iterator[str]:
    """A name nobody else has."""
    name = f"unit{secrets.token_hex(4)}"
    try:
        Keyring(node_keyring(name, "probe"))
    except OSError as error:
        pytest.skip(f"no kernel keyring here: {error}")
    yield name
    keyring.remove(node_keyring(name))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca", TRUST_DOMAIN, 3600)


def utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def issue(authority: Authority, identity: Identity = WEB, ttl_s: float = 0) -> IssuedCertificate:
    request = x509.new_request(identity)
    return x509.accept(authority.sign(request.csr_pem, identity, ttl_s).chain, request, identity, utc())


def opened(mesh: str) -> KernelKept:
    return KernelKept(Keyring(node_keyring(mesh, "n1")))


def test_what_one_keeps_its_successor_recalls(mesh: str, authority: Authority) -> None:
    issued = issue(authority)
    opened(mesh).keep(WEB, issued)

    found = opened(mesh).recall(WEB, utc())

    assert found is not None
    assert found.issued == issued


def test_another_process_recalls_it(mesh: str, authority: Authority) -> None:
    issued = issue(authority)
    opened(mesh).keep(WEB, issued)
    program = (
        "import sys, datetime as dt\n"
        "from mesh.model.identity import Identity\n"
        "from ztunnel.identity import kept\n"
        f"found = kept.open_for({mesh!r}, 'n1').recall(Identity.parse({str(WEB)!r}), dt.datetime.now(dt.UTC))\n"
        "print(found.issued.serial)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == issued.serial


def test_newer_certificate_replaces_the_kept_one(mesh: str, authority: Authority) -> None:
    place = opened(mesh)
    place.keep(WEB, issue(authority))
    newer = issue(authority)

    place.keep(WEB, newer)

    assert place.recall(WEB, utc())[0] == newer  # type: ignore[index]


def test_arrival_of_a_certificate_is_kept_when_only_its_roots_change(mesh: str, authority: Authority) -> None:
    first, second = opened(mesh), issue(authority)
    first.keep(WEB, second)
    came = first.recall(WEB, utc())
    assert came is not None

    successor = opened(mesh)
    successor.recall(WEB, utc())
    successor.keep(WEB, second)

    again = opened(mesh).recall(WEB, utc())
    assert again is not None
    assert again.since == came.since


def test_forgotten_identity_is_gone_and_others_stay(mesh: str, authority: Authority) -> None:
    place = opened(mesh)
    place.keep(WEB, issue(authority))
    place.keep(CART, issue(authority, CART))

    place.forget(WEB)

    assert place.recall(WEB, utc()) is None
    assert place.recall(CART, utc()) is not None


def test_identities_of_pods_that_left_meanwhile_are_forgotten(mesh: str, authority: Authority) -> None:
    place = opened(mesh)
    place.keep(WEB, issue(authority))
    place.keep(CART, issue(authority, CART))

    place.keep_only({CART})

    assert Keyring(node_keyring(mesh, "n1")).names() == [str(CART)]


def test_nodes_and_meshes_do_not_see_each_others(mesh: str, authority: Authority) -> None:
    opened(mesh).keep(WEB, issue(authority))

    assert KernelKept(Keyring(node_keyring(mesh, "n2"))).recall(WEB, utc()) is None


def test_kernel_forgets_it_when_the_certificate_ends(mesh: str, authority: Authority) -> None:
    place = opened(mesh)
    place.keep(WEB, issue(authority, ttl_s=1.5))

    deadline = utc() + dt.timedelta(seconds=10)
    while Keyring(node_keyring(mesh, "n1")).names() and utc() < deadline:
        pass

    assert Keyring(node_keyring(mesh, "n1")).names() == []
    assert place.recall(WEB, utc()) is None


def test_ended_certificate_is_not_recalled(mesh: str, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    place = opened(mesh)
    place.keep(WEB, issue(authority))

    assert place.recall(WEB, utc() + dt.timedelta(hours=2)) is None

    assert "kept certificate not used" in caplog.text


def damage(mesh: str, how: str, authority: Authority, tmp_path: Path) -> None:
    """Writes something else under WEB's name."""
    ring = Keyring(node_keyring(mesh, "n1"))
    good = kept._pack(issue(authority), 1.0)
    other = issue(authority, CART)
    stranger = issue(Authority(tmp_path / "other", TRUST_DOMAIN, 3600))
    mixed = issue(authority)
    content = {
        "flipped bit": good[:80] + bytes([good[80] ^ 1]) + good[81:],
        "cut short": good[:-9],
        "another version": b"qnc9" + good[4:],
        "not ours": b"hello",
        "another identity": kept._pack(other, 1.0),
        "another key": kept._pack(_replace(mixed, key_pem=stranger.key_pem), 1.0),
        "other roots": kept._pack(_replace(mixed, roots_pem=stranger.roots_pem), 1.0),
        "no key": kept._pack(_replace(mixed, key_pem=b""), 1.0),
    }[how]
    ring.put(str(WEB), content, 60)


def _replace(issued: IssuedCertificate, **parts: bytes) -> IssuedCertificate:
    return dataclasses.replace(issued, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "how",
    [
        *("flipped bit", "cut short", "another version", "not ours"),
        *("another identity", "another key", "other roots", "no key"),
    ],
)
def test_what_does_not_fit_is_ignored_forgotten_and_logged(
    mesh: str, authority: Authority, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(mesh, how, authority, tmp_path)

    assert opened(mesh).recall(WEB, utc()) is None

    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "kept certificate not used"
    ]
    assert Keyring(node_keyring(mesh, "n1")).names() == []
    assert "PRIVATE" not in caplog.text


def test_bundle_too_long_for_the_kernel_is_not_kept_and_said(
    mesh: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    place = opened(mesh)
    issued = issue(authority)
    long = _replace(issued, roots_pem=secrets.token_hex(50_000).encode())

    place.keep(WEB, long)

    assert "will not outlive this process" in caplog.text
    assert place.recall(WEB, utc()) is None


def test_without_a_keyring_everything_goes_on_unkept(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(name: str) -> Keyring:
        raise OSError(errno.EPERM, "kernel keyring: Operation not permitted")

    monkeypatch.setattr(kept, "Keyring", forbidden)

    place = kept.open_for("m", "n1")

    place.keep(WEB, issue(authority))
    assert place.recall(WEB, utc()) is None
    place.forget(WEB)
    place.keep_only(())
    assert "certificates will not outlive this process" in caplog.text


def test_mesh_taken_down_leaves_nothing(mesh: str, authority: Authority) -> None:
    opened(mesh).keep(WEB, issue(authority))

    removed = keyring.remove(node_keyring(mesh))

    assert sorted(removed) == [f"qanat:{mesh}/n1", f"qanat:{mesh}/probe"]
    assert opened(mesh).recall(WEB, utc()) is None
