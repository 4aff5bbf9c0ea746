# SPDX-License-Identifier: Apache-2.0
"""A policy that cannot be used: reported by file, object and field, and never a reason to let more through."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from mesh.model.identity import Identity
from mesh.model.snapshot import MeshSnapshot, diff
from mesh.policy.evaluate import PolicySet, Request, Verdict, evaluate
from mesh.sources.files import FileSource

CLIENT = Identity("cluster.local", "shop", "client")

ALLOW_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: client, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
"""

DENY_PORT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules:
  - to: [{operation: {ports: ["9000"]}}]
"""

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mtls, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


class Directory:
    """A mesh source whose one file is rewritten between looks at it."""

    def __init__(self, path: Path) -> None:
        self._file = path / "policies.yaml"
        self._source = FileSource([path])
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.snapshot = MeshSnapshot.build(0)

    def write(self, *documents: str) -> Directory:
        fresh = self._file.with_suffix(".new")
        fresh.write_text("---\n".join(documents))
        fresh.rename(self._file)  # another inode: never taken for the same file
        self.snapshot, errors = self._source.load()
        self.errors = [str(error).removeprefix(f"{self._file.parent}/") for error in errors]
        self.notes = [str(note) for note in self._source.notes]
        return self

    def verdict(self, source: Identity | None = CLIENT, port: int = 8080, app: str = "web") -> Verdict:
        request = Request(source, ip_address("10.1.0.1"), "shop", {"app": app}, ip_address("10.1.0.9"), port)
        return evaluate(PolicySet.of(self.snapshot), request)


@pytest.fixture
def mesh(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def test_policies_of_files_are_in_the_snapshot(mesh: Directory) -> None:
    mesh.write(ALLOW_CLIENT, DENY_PORT, STRICT)

    assert mesh.errors == []
    assert list(mesh.snapshot.policies) == [
        "AuthorizationPolicy/shop/client",
        "AuthorizationPolicy/shop/no-admin",
        "PeerAuthentication/shop/mtls",
    ]
    assert mesh.verdict().rule == "shop/client rules[0]"
    assert mesh.verdict(port=9000).rule == "shop/no-admin rules[0]"
    assert mesh.verdict(source=None).rule == "shop/mtls STRICT"


def test_change_of_a_policy_is_a_delta(mesh: Directory) -> None:
    before = mesh.write(ALLOW_CLIENT, DENY_PORT).snapshot
    after = mesh.write(ALLOW_CLIENT.replace("sa/client", "sa/other"), STRICT).snapshot
    delta = diff(before, after)

    assert sorted(p.key for p in delta.set_policies) == ["shop/client", "shop/mtls"]
    assert delta.removed_policies == ("AuthorizationPolicy/shop/no-admin",)
    assert delta.apply(before) == after


def test_error_names_file_line_object_and_field(mesh: Directory) -> None:
    mesh.write(ALLOW_CLIENT.replace("principals:", "principal:"))

    assert mesh.errors == [
        "policies.yaml:7: AuthorizationPolicy shop/client: spec.rules[0].from[0].source.principal: is not known here; "
        "known: principals, notPrincipals, namespaces, notNamespaces, serviceAccounts, notServiceAccounts, ipBlocks, "
        "notIpBlocks, requestPrincipals, notRequestPrincipals, remoteIpBlocks, notRemoteIpBlocks"
    ]


@pytest.mark.parametrize("broken", [DENY_PORT.replace('"9000"', "9000"), "kind: [", DENY_PORT.replace("to:", "too:")])
def test_policy_that_breaks_keeps_its_last_good_form(mesh: Directory, broken: str) -> None:
    mesh.write(DENY_PORT).write(broken)

    assert mesh.errors
    assert not mesh.verdict(port=9000).allowed
    assert mesh.verdict(port=8080).allowed


def test_last_good_form_stays_through_several_bad_ones(mesh: Directory) -> None:
    mesh.write(DENY_PORT).write(DENY_PORT.replace("to:", "too:")).write(DENY_PORT.replace("app: web", "app: 1"))

    assert mesh.verdict(port=9000).rule == "shop/no-admin rules[0]"
    assert mesh.verdict(port=8080).allowed


def test_deny_policy_never_seen_good_closes_what_it_selects(mesh: Directory) -> None:
    mesh.write(DENY_PORT.replace("to:", "too:"))

    assert mesh.verdict() == Verdict(False, "shop/no-admin (rejected at spec.rules[0].too) everything")
    assert mesh.verdict(app="db").allowed


def test_policy_whose_selector_is_bad_closes_its_namespace(mesh: Directory) -> None:
    mesh.write(DENY_PORT.replace("matchLabels", "matchExpressions"))

    assert not mesh.verdict(app="db").allowed


@pytest.mark.parametrize("action", ["CUSTOM", "deny", "[]"])
def test_policy_whose_action_is_bad_closes(mesh: Directory, action: str) -> None:
    mesh.write(DENY_PORT.replace("action: DENY", f"action: {action}"))

    assert mesh.verdict().rule == "shop/no-admin (rejected at spec.action) everything"


def test_allow_policy_never_seen_good_allows_nothing_but_takes_nothing_from_others(mesh: Directory) -> None:
    bad = ALLOW_CLIENT.replace("from:", "form:")
    good = ALLOW_CLIENT.replace("name: client", "name: good")

    assert mesh.write(bad).verdict() == Verdict(
        False, "no rule of shop/client (rejected at spec.rules[0].form) allows it"
    )
    assert mesh.write(bad, good).verdict().rule == "shop/good rules[0]"


def test_peer_authentication_never_seen_good_closes_plaintext(mesh: Directory) -> None:
    mesh.write(STRICT.replace("STRICT", "strict"))

    assert mesh.verdict(source=None).rule == "shop/mtls (rejected at spec.mtls.mode) STRICT"
    assert mesh.verdict().allowed


DRY = DENY_PORT.replace("{name: no-admin", "{annotations: {istio.io/dry-run: 'true'}, name: no-admin")


@pytest.mark.parametrize("text", [DENY_PORT.replace("DENY", "AUDIT"), DRY])
def test_bad_policy_that_decides_nothing_closes_nothing(mesh: Directory, text: str) -> None:
    mesh.write(text.replace("to:", "too:"))

    assert mesh.errors
    assert mesh.verdict().allowed


def test_stand_in_goes_when_the_policy_is_mended_or_gone(mesh: Directory) -> None:
    bad = DENY_PORT.replace("to:", "too:")

    assert mesh.write(bad).write(DENY_PORT).verdict().allowed
    assert mesh.write(bad).write(STRICT).verdict().allowed


def test_stand_in_follows_the_selector_of_the_bad_object(mesh: Directory) -> None:
    bad = DENY_PORT.replace("to:", "too:")
    mesh.write(bad).write(bad.replace("app: web", "app: db"))

    assert mesh.verdict(app="web").allowed
    assert not mesh.verdict(app="db").allowed


def test_bad_name_is_still_closed_under_that_name(mesh: Directory) -> None:
    mesh.write(DENY_PORT.replace("name: no-admin", "name: No_Admin"))

    assert mesh.verdict().rule == "shop/No_Admin (rejected at metadata.name) everything"


def test_misspelt_kind_and_old_version_are_errors(mesh: Directory) -> None:
    mesh.write(DENY_PORT.replace("Authorization", "Authorisation"), STRICT.replace("io/v1", "io/v1alpha1"))

    assert "AuthorisationPolicy shop/no-admin: kind: expected AuthorizationPolicy or PeerAuth" in mesh.errors[0]
    assert "PeerAuthentication shop/mtls: apiVersion: expected security.istio.io/v1" in mesh.errors[1]


def test_second_object_of_one_name_is_reported_and_does_not_count(mesh: Directory) -> None:
    mesh.write(DENY_PORT, DENY_PORT.replace("9000", "9001"))

    assert "AuthorizationPolicy shop/no-admin: is already in" in mesh.errors[0]
    assert mesh.verdict(port=9001).allowed


@pytest.mark.parametrize(
    "spoilt",
    [
        ("name: no-admin", "name: 5"),
        ("namespace: shop", "namespace: 5"),
        ("namespace: shop", "namespace: Shop"),
        ("kind: AuthorizationPolicy", "kind: 5"),
        ("kind: AuthorizationPolicy", "kind: AuthorisationPolicy"),
        ("security.istio.io", "security.istio.oi"),
        ("metadata: {name: no-admin, namespace: shop}", "metadata: []"),
    ],
)
def test_policy_that_cannot_be_told_by_its_name_any_more_still_counts(mesh: Directory, spoilt: tuple[str, str]) -> None:
    broken = DENY_PORT.replace(*spoilt)
    mesh.write(DENY_PORT, STRICT).write(broken, STRICT)

    assert not mesh.verdict(port=9000).allowed
    assert any("no-admin: is gone from this file" in error for error in mesh.errors)

    mesh.write(broken, STRICT.replace("STRICT", "PERMISSIVE"))
    assert not mesh.verdict(port=9000).allowed
    assert mesh.verdict(source=None).allowed

    assert mesh.write(STRICT).verdict(port=9000).allowed
    assert mesh.errors == []


def test_policy_can_be_taken_from_a_file_that_always_had_a_stranger(mesh: Directory) -> None:
    stranger = DENY_PORT.replace("security.istio.io/v1", "policy.linkerd.io/v1alpha1").replace("no-admin", "other")
    mesh.write(DENY_PORT, stranger).write(stranger)

    assert mesh.verdict(port=9000).allowed


@pytest.mark.parametrize(
    "spoilt", [("name: no-admin", "name: 5"), ("kind: AuthorizationPolicy", "kind: AuthorisationPolicy")]
)
def test_policy_with_a_bad_name_or_kind_never_seen_good_closes_what_it_selects(
    mesh: Directory, spoilt: tuple[str, str]
) -> None:
    mesh.write(DENY_PORT.replace(*spoilt))

    assert not mesh.verdict().allowed
    assert mesh.verdict(app="db").allowed


def test_rejected_peer_authentication_closes_plaintext_whatever_others_say(mesh: Directory) -> None:
    older = STRICT.replace("name: mtls", "name: m, creationTimestamp: '2020-01-01T00:00:00Z'")
    mesh.write(STRICT.replace("mtls: {mode", "mtsl: {mode"), older.replace("STRICT", "PERMISSIVE"))

    assert mesh.verdict(source=None).rule == "shop/mtls (rejected at spec.mtsl) STRICT"


def test_policy_of_too_many_parts_is_rejected(mesh: Directory) -> None:
    ports = ", ".join(f'"{1 + n % 60000}"' for n in range(9_000))
    many = DENY_PORT.replace('["9000"]', f"&p [{ports}]")
    many = many.rstrip("\n") + "\n  - to: [{operation: {ports: *p}}]" * 6 + "\n"

    mesh.write(many)

    assert mesh.errors == [
        "policies.yaml:5: AuthorizationPolicy shop/no-admin: spec: has more than 50000 parts; split it into several "
        "policies"
    ]
    assert not mesh.verdict(port=1).allowed


@pytest.mark.parametrize(
    "text",
    [
        DENY_PORT.replace("no-admin", r'"x\e]0;owned\a\r\n2026 all is well\u202e"'),
        DENY_PORT.replace("action: DENY", r'"\e[2J\0": DENY'),
        DENY_PORT.replace("action: DENY", r'action: "\e[31mDENY"'),
        DENY_PORT.replace("app: web", r'"app\e[2J": 1'),
        DENY_PORT.replace("AuthorizationPolicy", r'"Authorization\e[2JPolicy"'),
        DENY_PORT.replace("v1", r'"v1\e[2J"', 1).replace('/"', "/").replace("apiVersion: ", 'apiVersion: "', 1),
        DENY_PORT.replace("security.istio.io/v1", r'"other/v1\e[2J"'),
        DENY_PORT.replace("action: DENY", r"action: !<tag:x,%1b[2J> DENY"),
    ],
)
def test_errors_and_verdicts_carry_no_control_characters(mesh: Directory, text: str) -> None:
    mesh.write(text)

    seen = [*mesh.errors, mesh.verdict().rule]
    assert mesh.errors or mesh.notes
    assert all(one.isprintable() and len(one) < 500 for one in [*seen, *mesh.notes])


@pytest.mark.parametrize(
    "misplaced",
    [
        ("  action: DENY", "  acton: DENY"),
        ("spec:\n  action: DENY", "action: DENY\nspec:"),
        ("  action: DENY\n  selector: {", "  selector: {action: DENY, "),
        ("  action: DENY\n", "  targetRefs: [{action: deny}]\n"),
    ],
)
def test_deny_policy_whose_action_is_misplaced_closes_though_another_allows(
    mesh: Directory, misplaced: tuple[str, str]
) -> None:
    mesh.write(DENY_PORT.replace(*misplaced), ALLOW_CLIENT)

    assert mesh.errors
    assert not mesh.verdict().allowed


def test_mode_that_stands_beside_its_spec_is_an_error(mesh: Directory) -> None:
    mesh.write(STRICT.replace("spec: {mtls: {mode: STRICT}}", "mtls: {mode: STRICT}"))

    assert "PeerAuthentication shop/mtls: mtls: is not known here" in mesh.errors[0]
    assert not mesh.verdict(source=None).allowed


@pytest.mark.parametrize("field", ["name: no-admin", "namespace: shop"])
def test_name_that_ends_in_a_newline_is_no_name(mesh: Directory, field: str) -> None:
    key, _, value = field.partition(": ")
    mesh.write(DENY_PORT.replace(field, f'{key}: "{value}\\n"'))

    assert "expected a DNS" in mesh.errors[0]


def test_error_about_a_very_long_key_is_short(mesh: Directory) -> None:
    mesh.write(DENY_PORT.replace("action: DENY", f"{'x' * 900}: DENY"))

    assert len(mesh.errors[0]) < 300
    assert len(mesh.verdict().rule) < 200


def test_new_bad_policy_closes_also_when_another_goes_in_the_same_edit(mesh: Directory) -> None:
    """It has a good name of its own, so it is not the other one spoilt."""
    mesh.write(ALLOW_CLIENT)

    mesh.write(DENY_PORT.replace("to:", "too:"))

    assert mesh.verdict() == Verdict(False, "shop/no-admin (rejected at spec.rules[0].too) everything")
    assert [str(key) for key in mesh.snapshot.policies] == ["AuthorizationPolicy/shop/no-admin"]


@pytest.mark.parametrize("name", ["name: ''", "name: 5", f"name: {'x' * 300}", "labels: {}"])
def test_rejected_policies_without_a_usable_name_all_close_what_they_select(mesh: Directory, name: str) -> None:
    unnamed = DENY_PORT.replace("name: no-admin", name)
    mesh.write(unnamed, unnamed.replace("app: web", "app: db"), unnamed.replace("app: web", "app: cache"), ALLOW_CLIENT)

    assert not any(mesh.verdict(app=app).allowed for app in ("web", "db", "cache"))
    assert mesh.verdict(app="other").allowed
    assert len(mesh.errors) == 3

    mesh.write(unnamed, ALLOW_CLIENT)
    assert [mesh.verdict(app=app).allowed for app in ("web", "db", "cache")] == [False, True, True]


def test_policy_whose_name_is_spoilt_like_one_that_always_was_still_counts(mesh: Directory) -> None:
    unnamed = DENY_PORT.replace("name: no-admin", "name: 5").replace("app: web", "app: db")
    mesh.write(unnamed, DENY_PORT)

    mesh.write(unnamed, DENY_PORT.replace("name: no-admin", "name: 5").replace("app: web", "app: wbe"))

    assert not mesh.verdict(port=9000).allowed
    assert not mesh.verdict(app="db").allowed


def test_bad_policy_whose_namespace_got_lost_still_counts_where_it_was(mesh: Directory) -> None:
    mesh.write(DENY_PORT)

    mesh.write(DENY_PORT.replace(", namespace: shop", "").replace("to:", "too:"))

    assert not mesh.verdict(port=9000).allowed
    assert any("no-admin: is gone from this file" in error for error in mesh.errors)
