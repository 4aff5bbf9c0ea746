# SPDX-License-Identifier: Apache-2.0
"""The chart's admission policy in a real API server: misspelt words are refused when they are written."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.sources.kubernetes.api import Api, ApiError
from nodeagent.cli.cluster import objects
from nodeagent.cli.errors import CliError

Raw = dict[str, Any]
LABEL, ANNOTATION = "qanat.io/mesh", "qanat.io/same-node"
_numbers = itertools.count(1)


@pytest.fixture
async def words(admin: Api) -> AsyncIterator[str]:
    """The policy in force, and a namespace that had an odd label before."""
    if objects.helm() is None:
        pytest.skip("no helm program: tools/helm.sh compiles it")
    try:
        rendered = objects.load(values=("admission.enabled=true",))
    except CliError as error:
        raise AssertionError(str(error)) from error
    wanted = [one for one in rendered if one["kind"].startswith("ValidatingAdmissionPolicy")]
    assert [one["kind"] for one in wanted] == ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]
    space = f"words{next(_numbers)}"
    await admin.send("POST", "api/v1/namespaces", namespace(space, "maybe"))
    for one in wanted:
        await admin.apply(objects.path_of(one), one, manager="test")
    try:
        await until(admin, in_force=True)
        yield space
    finally:
        for one in reversed(wanted):
            await admin.send("DELETE", objects.path_of(one), {})
        await until(admin, in_force=False)
        mended = {"metadata": {"labels": {LABEL: None}}}  # other tests read the same API
        await admin.send("PATCH", f"api/v1/namespaces/{space}", mended, "application/merge-patch+json")


async def until(admin: Api, *, in_force: bool) -> None:
    """The API server takes a moment to follow its own objects, both ways."""
    async with asyncio.timeout(30):
        while bool(await refused(admin, "api/v1/namespaces", namespace("probe", "odd"))) is not in_force:
            await asyncio.sleep(0.1)


async def refused(admin: Api, path: str, body: Raw) -> str:
    """Why the API would not take it, empty when it would."""
    try:
        await admin.send("POST", f"{path}?dryRun=All", body)
    except ApiError as error:
        return str(error)
    return ""


def namespace(name: str, label: str | None) -> Raw:
    return {"kind": "Namespace", "metadata": {"name": name, "labels": {LABEL: label} if label is not None else {}}}


def pod(labels: dict[str, str], annotations: dict[str, str] | None = None) -> Raw:
    metadata = {"name": "p", "labels": labels, "annotations": annotations or {}}
    return {"kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "main", "image": "none"}]}}


def deployment(labels: dict[str, str], annotations: dict[str, str] | None = None) -> Raw:
    template = {**pod({"app": "p", **labels}, annotations)}
    spec = {"selector": {"matchLabels": {"app": "p"}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "p"}, "spec": spec}


async def test_words_that_the_mesh_knows_pass_and_others_are_named(admin: Api, words: str) -> None:
    pods, deployments = f"api/v1/namespaces/{words}/pods", f"apis/apps/v1/namespaces/{words}/deployments"

    good = [
        await refused(admin, "api/v1/namespaces", namespace("fresh", label)) for label in (None, "enabled", "disabled")
    ]
    good += [
        await refused(admin, path, made({LABEL: "disabled"}, {ANNOTATION: mode}))
        for mode in ("direct", "shortcut", "encrypt")
        for path, made in ((pods, pod), (deployments, deployment))
    ]
    good += [await refused(admin, pods, pod({})), await refused(admin, deployments, deployment({}))]
    bad = {
        await refused(admin, "api/v1/namespaces", namespace("fresh", "Enabled")),
        await refused(admin, pods, pod({LABEL: "Enabled"})),
        await refused(admin, deployments, deployment({LABEL: "Enabled"})),
    }
    empty = await refused(admin, pods, pod({LABEL: ""}))
    odd = [
        await refused(admin, pods, pod({}, {ANNOTATION: "fast"})),
        await refused(admin, deployments, deployment({}, {ANNOTATION: "fast"})),
    ]

    assert good == [""] * len(good)
    assert all('label qanat.io/mesh: expected enabled or disabled, got "Enabled"' in one for one in bad), bad
    assert 'got ""' in empty
    assert all('expected direct, shortcut or encrypt, got "fast"' in one for one in odd), odd


async def test_what_was_there_before_may_be_changed_elsewhere_and_mended(admin: Api, words: str) -> None:
    path, merge = f"api/v1/namespaces/{words}", "application/merge-patch+json"

    await admin.send("PATCH", path, {"metadata": {"labels": {"team": "blue"}}}, merge)
    with pytest.raises(ApiError, match='got "perhaps"'):
        await admin.send("PATCH", path, {"metadata": {"labels": {LABEL: "perhaps"}}}, merge)
    found = await admin.send("PATCH", path, {"metadata": {"labels": {LABEL: "enabled"}}}, merge)

    assert found["metadata"]["labels"][LABEL] == "enabled"
