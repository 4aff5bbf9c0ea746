# SPDX-License-Identifier: Apache-2.0
"""Replacing issuer and root: phases, every pair of nodes at every moment, restarts and crashes in between."""

from __future__ import annotations

import datetime as dt
import itertools
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controlplane.ca import authority, rotation, storage
from controlplane.ca.authority import Authority
from controlplane.ca.x509 import BadAuthority
from mesh.model.identity import Identity
from ztunnel.identity.x509 import IssuedCertificate, accept, new_request, with_roots

WEB = Identity("cluster.local", "shop", "web")
TTL_S = 3600.0


@dataclass
class Time:
    now: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC).replace(microsecond=0))

    def __call__(self) -> dt.datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "ca"


def start(directory: Path, time: Time, ttl_s: float = TTL_S) -> Authority:
    return Authority(directory, "cluster.local", ttl_s, now=time)


def leaf(made: Authority, time: Time) -> IssuedCertificate:
    request = new_request(WEB)
    return accept(made.sign(request.csr_pem, WEB, 0).chain, request, WEB, time.now)


def verifies(shown: IssuedCertificate, trusting: IssuedCertificate, at: dt.datetime, tmp_path: Path) -> bool:
    """By OpenSSL, as the engine does: the chain that one node shows, the roots that the other trusts."""
    (tmp_path / "chain").write_bytes(shown.chain_pem)
    (tmp_path / "roots").write_bytes(trusting.roots_pem)
    command = ["openssl", "verify", "-attime", str(int(at.timestamp())), "-no-CApath", "-no-CAstore", "-x509_strict"]
    command += ["-CAfile", "roots", "-untrusted", "chain", "chain"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_phases_follow_each_other_once_everybody_trusts_both(directory: Path, time: Time) -> None:
    made = start(directory, time)
    old = made.root_pem

    assert made.rotate_root()
    assert made.standing().phase == "announced"
    assert made.root_pem == old
    assert not made.advance(everybody_trusts_both=False)

    assert made.advance(everybody_trusts_both=True)
    assert made.standing().phase == "issuing"
    assert made.root_pem != old
    assert made.bundle_pem() == made.root_pem + old

    time.pass_(TTL_S + 301)
    assert made.advance(everybody_trusts_both=False)
    assert made.standing().phase == "idle"
    assert made.bundle_pem() == made.root_pem != old


def test_old_root_stays_until_every_leaf_under_it_has_ended(directory: Path, time: Time) -> None:
    made = start(directory, time)
    made.rotate_root()
    last = leaf(made, time)
    made.advance(everybody_trusts_both=True)

    while time.now < last.not_after:
        made.advance(everybody_trusts_both=True)
        assert made.standing().phase == "issuing"
        time.pass_(300)


def test_shorter_lifetimes_after_a_restart_do_not_retire_the_old_root_early(directory: Path, time: Time) -> None:
    last = leaf(start(directory, time, ttl_s=86_400), time)
    made = start(directory, time, ttl_s=60)
    made.rotate_root()
    made.advance(everybody_trusts_both=True)

    time.pass_(4 * 3600)
    made.advance(everybody_trusts_both=True)

    assert time.now < last.not_after
    assert made.standing().phase == "issuing"


def test_nodes_that_never_answer_delay_but_do_not_stop_a_rotation(directory: Path, time: Time) -> None:
    made = start(directory, time)
    made.rotate_root()

    time.pass_(TTL_S)
    assert not made.advance(everybody_trusts_both=False)
    time.pass_(301)

    assert made.advance(everybody_trusts_both=False)
    assert made.standing().phase == "issuing"


def test_every_pair_of_nodes_verifies_each_other_whatever_each_has_seen_of_a_rotation(
    directory: Path, time: Time, tmp_path: Path
) -> None:
    made = start(directory, time)
    seen = [("before", leaf(made, time))]
    made.rotate_root()
    seen.append(("announced", leaf(made, time)))
    seen.append(("announced, old leaf", with_roots(seen[0][1], made.bundle_pem().encode(), time.now)))
    made.advance(everybody_trusts_both=True)
    seen.append(("issuing", leaf(made, time)))
    seen.append(("issuing, old leaf", with_roots(seen[0][1], made.bundle_pem().encode(), time.now)))

    for (one, shown), (other, trusting) in itertools.product(seen, seen):
        assert verifies(shown, trusting, time.now, tmp_path), f"{other} refuses {one}"

    renewed = leaf(made, time)
    time.pass_(TTL_S / 2 + 301)
    renewed = leaf(made, time)
    time.pass_(TTL_S / 2)
    assert made.advance(everybody_trusts_both=False)
    idle = [renewed, with_roots(renewed, made.bundle_pem().encode(), time.now), leaf(made, time)]
    for shown, trusting in itertools.product(idle, idle):
        assert verifies(shown, trusting, time.now, tmp_path)
    assert not verifies(seen[0][1], idle[2], time.now - dt.timedelta(seconds=TTL_S), tmp_path)


def test_issuer_is_replaced_at_once_and_old_leaves_go_on(directory: Path, time: Time, tmp_path: Path) -> None:
    made = start(directory, time)
    before = leaf(made, time)

    made.rotate_issuer()

    after = leaf(made, time)
    assert before.chain[1].serial != after.chain[1].serial
    assert verifies(before, after, time.now, tmp_path)
    assert verifies(after, before, time.now, tmp_path)


def test_second_request_during_a_rotation_changes_nothing(directory: Path, time: Time) -> None:
    made = start(directory, time)
    assert made.rotate_root()
    before = made.standing()

    assert not made.rotate_root()

    assert made.standing() == before


def test_restart_in_any_phase_goes_on_from_there(directory: Path, time: Time) -> None:
    made = start(directory, time)
    for phase in ("announced", "issuing"):
        assert made.rotate_root() if phase == "announced" else made.advance(everybody_trusts_both=True)
        assert made.standing().phase == phase
        before, bundle = made.standing(), made.bundle_pem()

        made = start(directory, time)

        assert (made.standing(), made.bundle_pem()) == (before, bundle)
    time.pass_(TTL_S + 301)
    assert made.advance(everybody_trusts_both=False)
    assert start(directory, time).standing().phase == "idle"


class Crash(BaseException):
    """The machine stops here."""


@pytest.mark.parametrize("writes", range(6))
def test_crash_before_any_write_of_a_rotation_loses_nothing(
    directory: Path, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    made = start(directory, time)
    before = leaf(made, time)
    real, left = storage.write_atomically, itertools.count(writes, -1)

    def write_or_stop(path: Path, data: bytes, mode: int) -> None:
        if next(left) == 0:
            raise Crash
        real(path, data, mode)

    for module in (authority, rotation):
        monkeypatch.setattr(module, "write_atomically", write_or_stop)
    with pytest.raises(Crash):
        made.rotate_root()
        made.advance(everybody_trusts_both=True)
    monkeypatch.undo()

    again = start(directory, time)

    after = leaf(again, time)
    assert verifies(before, after, time.now, tmp_path)
    assert verifies(after, before, time.now, tmp_path)
    again.rotate_root()
    again.advance(everybody_trusts_both=True)
    assert again.standing().phase == "issuing"
    assert verifies(leaf(again, time), before, time.now, tmp_path)


def test_disk_that_is_full_for_a_while_only_delays(
    directory: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(directory, time)
    made.rotate_root()

    def full(path: Path, data: bytes, mode: int) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(authority, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            made.advance(everybody_trusts_both=True)
        assert leaf(made, time).identity == WEB

    made.advance(everybody_trusts_both=True)

    assert made.standing().phase == "issuing"
    assert start(directory, time).standing() == made.standing()
    assert leaf(made, time).chain[1].subject.startswith("CN=Qanat issuer")


def test_root_near_its_end_is_replaced_by_itself(directory: Path, time: Time) -> None:
    made = start(directory, time)
    assert not made.advance(everybody_trusts_both=True)

    time.pass_(9.1 * 365 * 86_400)

    assert made.advance(everybody_trusts_both=False)
    assert made.standing().phase == "announced"


def test_files_of_a_rotation_are_private_and_nothing_is_left_over(directory: Path, time: Time) -> None:
    made = start(directory, time)
    made.rotate_root()
    (directory / ".root.pem.0badcafe").write_text("half")
    made.advance(everybody_trusts_both=True)
    start(directory, time)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"root.pem": 0o600, "issuer.pem": 0o600, "state.json": 0o600, "root-cert.pem": 0o644}
    assert (directory / "root-cert.pem").read_text() == made.bundle_pem()
    assert "PRIVATE" not in repr(made.standing())


def test_damaged_state_is_named_and_not_replaced(directory: Path, time: Time) -> None:
    start(directory, time)
    (directory / "state.json").write_text('{"rotation": {"phase": "??"}}')

    with pytest.raises(BadAuthority, match=r"state\.json: .*restore it"):
        start(directory, time)

    assert "??" in (directory / "state.json").read_text()


def test_authority_of_an_earlier_version_keeps_its_root(directory: Path, time: Time) -> None:
    before = start(directory, time).root_pem
    (directory / "state.json").unlink()

    assert start(directory, time).root_pem == before
    shutil.rmtree(directory)
