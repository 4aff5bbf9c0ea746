"""plan(): which pods are enrolled and released, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mesh.model.workload import NetworkMode, Workload
from nodeagent.pods.plan import ObservedPod, Plan, Unenroll, WantedPod, plan
from tests.unit.node.doubles import workload

NETNS = Path("/run/netns/web")
WEB = workload("web")
POD = ObservedPod("shop", "web", "uid-web", NETNS, (1, 100))


def enrolled(*pods: WantedPod) -> dict[str, WantedPod]:
    return {pod.uid: pod for pod in pods}


def wanted(one: Workload = WEB, pod: ObservedPod = POD) -> WantedPod:
    return plan([one], [pod], {}).enroll[0]


def test_captured_pod_with_a_namespace_is_enrolled() -> None:
    found = plan([WEB], [POD], {})

    assert [pod.uid for pod in found.enroll] == ["uid-web"]
    assert found.enroll[0].info.addresses == WEB.addresses
    assert not found.unenroll and not found.waiting


def test_nothing_is_done_when_all_is_as_wanted() -> None:
    assert plan([WEB], [POD], enrolled(wanted())) == Plan((), (), ())


def test_pod_without_label_is_left_alone() -> None:
    assert plan([workload("web", captured=False)], [POD], {}) == Plan((), (), ())


def test_pod_on_the_hosts_network_is_left_alone() -> None:
    assert plan([replace(WEB, network_mode=NetworkMode.HOST_NETWORK)], [POD], {}) == Plan((), (), ())


def test_pod_of_the_same_name_in_another_namespace_is_another_pod() -> None:
    found = plan([WEB], [replace(POD, namespace="other")], {})

    assert not found.enroll
    assert "not running on this node" in found.waiting[0].why


def test_missing_namespace_and_address_are_waited_for_and_named() -> None:
    no_netns = plan([WEB], [replace(POD, netns_id=None)], {})
    no_address = plan([workload("web", "")], [POD], {})

    assert "/run/netns/web cannot be found" in no_netns.waiting[0].why
    assert "no address" in no_address.waiting[0].why
    assert not no_netns.enroll and not no_address.enroll


def test_label_taken_away_lets_open_connections_finish() -> None:
    found = plan([workload("web", captured=False)], [POD], enrolled(wanted()))

    assert found.unenroll == (Unenroll("uid-web", drain=True, why="no longer captured"),)


def test_deleted_pod_is_cut() -> None:
    found = plan([], [], enrolled(wanted()))

    assert found.unenroll == (Unenroll("uid-web", drain=False, why="pod is gone"),)


def test_pod_that_still_runs_after_its_object_is_gone_is_drained() -> None:
    assert plan([], [POD], enrolled(wanted())).unenroll[0].drain


def test_namespace_replaced_under_the_same_name_is_enrolled_anew() -> None:
    again = replace(POD, netns_id=(1, 101))

    found = plan([WEB], [again], enrolled(wanted()))

    assert found.unenroll == (Unenroll("uid-web", drain=False, why="network namespace replaced"),)
    assert found.enroll[0].netns_id == (1, 101)


def test_pod_that_is_not_seen_well_for_a_moment_stays_captured() -> None:
    before = enrolled(wanted())

    assert plan([WEB], [replace(POD, netns_id=None)], before) == Plan((), (), ())
    assert plan([workload("web", "")], [POD], before) == Plan((), (), ())


def test_new_pod_of_the_same_name_replaces_the_old() -> None:
    found = plan([WEB], [replace(POD, uid="uid-2", netns_id=(1, 101))], enrolled(wanted()))

    assert found.unenroll == (Unenroll("uid-web", drain=False, why="pod is gone"),)
    assert [pod.uid for pod in found.enroll] == ["uid-2"]


def test_changed_service_account_is_drained_and_enrolled_anew() -> None:
    found = plan([workload("web", service_account="other")], [POD], enrolled(wanted()))

    assert found.unenroll[0].drain
    assert found.enroll[0].info.service_account == "other"
