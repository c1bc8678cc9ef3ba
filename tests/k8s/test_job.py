# SPDX-License-Identifier: Apache-2.0
"""k8s/: both manifests are valid in each release that we name, and keep what validators do not look at.

`kubernetes-validate` finds misspelt fields. Combinations that an API server refuses, and what would keep a
pod from its work, are tested one by one.
"""

import re
from collections.abc import Iterator

import click
import kubernetes_validate
import pytest

from faultclient.cli import cli
from pageferry.limits import DRAIN_TIMEOUT_MS
from pageferry.reasons import ROWS, Exit, Remedy
from tests.k8s.render import Manifest, container_of, job_of, render_base, render_overlay

RELEASES = ("1.33", "1.34", "1.35", "1.36", "1.37")
SOCKET = "/run/pageferry/handoff.sock"


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    return render_base()


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return render_overlay(tmp_path_factory.mktemp("k8s"))


@pytest.fixture(scope="module", params=["base", "overlay"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    found: list[Manifest] = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_every_field_is_one_that_the_release_knows(manifests: list[Manifest], release: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, release, strict=True)


def test_a_misspelt_field_is_found(base: list[Manifest]) -> None:
    job = job_of(base)
    wrong = {**job, "spec": {**job["spec"], "backOffLimit": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


# --------------------------------------------------------------------------------------------------- the Job


def test_a_failure_policy_demands_that_containers_are_not_restarted(manifests: list[Manifest]) -> None:
    spec = job_of(manifests)["spec"]
    assert spec["podFailurePolicy"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_there_are_never_two_restores_at_once(manifests: list[Manifest]) -> None:
    spec = job_of(manifests)["spec"]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec.get("parallelism", 1) == 1


def test_the_job_fails_on_exit_codes_that_another_try_does_not_change(base: list[Manifest]) -> None:
    """By the table of reasons: all but those that say to try again, or that somebody must make room."""
    rules = job_of(base)["spec"]["podFailurePolicy"]["rules"]
    (rule,) = (rule for rule in rules if rule["action"] == "FailJob")
    again = {Exit.OK, Exit.TRY_AGAIN} | {row.exit for row in ROWS.values() if row.client is Remedy.PAUSE}
    assert set(rule["onExitCodes"]["values"]) == set(Exit) - again
    assert rule["onExitCodes"]["containerName"] == "faultclient"


# --------------------------------------------------------------------------------------------------- the pod


def test_the_pod_is_one_that_the_restricted_level_admits(manifests: list[Manifest]) -> None:
    pod = job_of(manifests)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostPID", "hostIPC", "hostNetwork"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "runAsUser" not in context, "both containers are the pod's user"


def test_the_fault_client_sees_the_process_of_the_vmm(manifests: list[Manifest]) -> None:
    assert job_of(manifests)["spec"]["template"]["spec"]["shareProcessNamespace"] is True


def test_the_vmm_starts_after_the_socket_is_there(overlay: list[Manifest]) -> None:
    containers = job_of(overlay)["spec"]["template"]["spec"]["containers"]
    assert [container["name"] for container in containers] == ["faultclient", "vmm"]
    assert SOCKET in " ".join(containers[0]["lifecycle"]["postStart"]["exec"]["command"])


def test_both_containers_mean_the_same_socket(overlay: list[Manifest]) -> None:
    environment = {entry["name"]: entry["value"] for entry in container_of(job_of(overlay), "vmm")["env"]}
    assert environment["PAGEFERRY_SHIM_SOCKET"] == SOCKET
    assert f"--socket={SOCKET}" in container_of(job_of(overlay), "faultclient")["args"]


def test_the_grace_period_is_longer_than_a_drain(manifests: list[Manifest]) -> None:
    pod = job_of(manifests)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] * 1000 > DRAIN_TIMEOUT_MS


# ------------------------------------------------------------------------------------------- its command line


def expanded(manifests: list[Manifest]) -> Iterator[str]:
    """The arguments as the kubelet hands them over: $(NAME) from the ConfigMap that the container names."""
    container = container_of(job_of(manifests), "faultclient")
    wanted = container["envFrom"][0]["configMapRef"]["name"]
    (config,) = (one for one in manifests if one["kind"] == "ConfigMap" and one["metadata"]["name"] == wanted)
    for argument in container["args"]:
        yield re.sub(r"\$\((\w+)\)", lambda match: str(config["data"][match[1]]), argument)


def test_faultclient_takes_the_command_line(manifests: list[Manifest]) -> None:
    command, *arguments = expanded(manifests)
    run = cli.get_command(click.Context(cli), command)
    assert run is not None
    run.make_context(command, arguments)
