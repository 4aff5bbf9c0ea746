# SPDX-License-Identifier: Apache-2.0
"""YAML to what a playground runs."""

from __future__ import annotations

from pathlib import Path

from nodeagent.playground.manifests import Manifests
from nodeagent.playground.objects import Exec, HttpGet, ObjectName

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: n2
  containers:
  - name: main
    command: [nginx]
    args: ["-g", "daemon off;"]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 2}
    livenessProbe: {exec: {command: ["true"]}}
"""


def load(directory: Path, **files: str) -> Manifests:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return Manifests(directory)


def test_command_and_arguments_become_one_command(tmp_path: Path) -> None:
    objects, errors = load(tmp_path, pod=POD).load()

    (pod,) = objects.pods
    assert errors == []
    assert pod.containers[0].command == ("nginx", "-g", "daemon off;")
    assert pod.port("http") == 8080


def test_probe_refers_to_a_port_by_name(tmp_path: Path) -> None:
    objects, _ = load(tmp_path, pod=POD).load()

    container = objects.pods[0].containers[0]
    assert container.readiness is not None
    assert container.readiness.action == HttpGet("/ready", 8080)
    assert container.readiness.period_s == 2
    assert container.liveness is not None
    assert container.liveness.action == Exec(("true",))


def test_two_nodes_where_nobody_names_any(tmp_path: Path) -> None:
    objects, _ = load(tmp_path, pod=POD.replace("  nodeName: n2\n", "")).load()

    assert [node.name for node in objects.nodes] == ["n1", "n2"]
    assert objects.pods[0].node in ("n1", "n2")


def test_bad_field_is_named_and_the_last_good_pod_stays(tmp_path: Path) -> None:
    manifests = load(tmp_path, pod=POD)
    before, _ = manifests.load()
    (tmp_path / "pod.yaml").write_text(POD.replace("containerPort: 8080", "containerPort: many"))

    after, errors = manifests.load()

    assert after.pods == before.pods
    assert [(error.obj, error.field) for error in errors] == [
        ("Pod/shop/web", "spec.containers[0].ports[0].containerPort")
    ]


def test_broken_file_takes_nobody_else_with_it(tmp_path: Path) -> None:
    objects, errors = load(tmp_path, pod=POD, broken="kind: [").load()

    assert [pod.name for pod in objects.pods] == [ObjectName("shop", "web")]
    assert len(errors) == 1
    assert "broken.yaml" in str(errors[0])


def test_changed_label_is_the_same_pod_and_changed_command_another(tmp_path: Path) -> None:
    texts = (POD, POD.replace("app: web", "app: other"), POD.replace("nginx", "apache"))

    digests = [load(tmp_path, pod=text).load()[0].pods[0].digest for text in texts]

    assert digests[0] == digests[1] != digests[2]


def test_service_wants_addresses_of_the_families_it_names(tmp_path: Path) -> None:
    text = "kind: Service\nmetadata: {name: a}\nspec: {ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}\n"
    objects, errors = load(tmp_path, service=text).load()

    assert errors == []
    assert sorted(objects.services[0].families) == [4, 6]
    assert objects.services[0].ports[0].target == 80
