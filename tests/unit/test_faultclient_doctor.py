# SPDX-License-Identifier: Apache-2.0
"""`faultclient doctor`: what it prints for people and for programs, and how it ends. Whether its verdicts are
true is for tests/kernel/test_doctor.py."""

import json
from collections.abc import Sequence

import pytest
from click.testing import CliRunner, Result

from faultclient import cli
from faultclient.commands import doctor as module
from pageferry.reasons import Exit, PageferryError, Reason
from pageferry.service.native import Fact, Verdict, probe

BEFORE = (
    Fact("userfaultfd", Verdict.GOOD, "by the system call", "makes one", None),
    Fact("kernel_faults", Verdict.GOOD, "reported", "", None),
    Fact("shared_memory", Verdict.GOOD, "works", "", None),
    Fact("private_memory", Verdict.GOOD, "works", "", None),
    Fact("poison", Verdict.LESS, "no UFFDIO_POISON", "", "use a newer kernel"),
)
USABLE = Fact("usable", Verdict.GOOD, "yes", "", None)
UNUSABLE = Fact("usable", Verdict.BAD, "no: userfaultfd", "", "as for userfaultfd")


class Probe:
    """Answers in place of the machine."""

    def __init__(self) -> None:
        self.facts: Sequence[Fact] = (*BEFORE, USABLE)
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, device_fd: int, *, spare_pools: bool) -> Sequence[Fact]:
        self.asked.append((device_fd, spare_pools))
        return self.facts


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Probe:
    answers = Probe()
    monkeypatch.setattr(module, "probe", answers)
    return answers


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, ["doctor", *arguments], auto_envvar_prefix="FAULTCLIENT")


def test_a_line_each(machine: Probe) -> None:
    result = invoke()
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "good     userfaultfd     by the system call",
        "good     kernel_faults   reported",
        "good     shared_memory   works",
        "good     private_memory  works",
        "less     poison          no UFFDIO_POISON  -> use a newer kernel",
        "good     usable          yes",
    ]


def test_for_programs(machine: Probe) -> None:
    told = json.loads(invoke("--json").stdout)
    assert told.keys() == {"usable", "kernel", "uid", "facts"}
    assert told["usable"] is True
    assert told["facts"][0] == {
        "name": "userfaultfd",
        "verdict": "GOOD",
        "found": "by the system call",
        "remedy": None,
        "help": "makes one",
    }
    assert [one["name"] for one in told["facts"]] == [one.name for one in machine.facts]


@pytest.mark.parametrize("as_json", [False, True])
def test_not_usable(machine: Probe, as_json: bool) -> None:
    right = Fact("userfaultfd", Verdict.BAD, "refused: Operation not permitted", "", "give it a right")
    machine.facts = (right, *BEFORE[1:], UNUSABLE)
    result = invoke(*(["--json"] if as_json else []))
    assert isinstance(result.exception, PageferryError)
    assert result.exception.reason is Reason.NOT_ALLOWED
    assert result.exception.exit_code == Exit.SYSTEM
    assert "userfaultfd: refused: Operation not permitted; give it a right" in str(result.exception)
    if as_json:
        assert json.loads(result.stdout)["usable"] is False
    else:
        last = "bad      usable          no: userfaultfd  -> as for userfaultfd"
        assert result.stdout.splitlines()[-1] == last


def test_what_has_failed_is_no_missing_right(machine: Probe) -> None:
    broken = Fact("kernel_faults", Verdict.FAILED, "Input/output error", "", "look at the log")
    machine.facts = (BEFORE[0], broken, Fact("usable", Verdict.FAILED, "no: kernel_faults", "", "look"))
    result = invoke()
    assert isinstance(result.exception, PageferryError)
    assert result.exception.reason is Reason.UNSUPPORTED
    assert result.stdout.splitlines()[1].startswith("failed   kernel_faults")


def test_the_pools_are_tried_and_the_device_is_passed_on(machine: Probe) -> None:
    invoke()
    invoke("--device-fd", "7")
    assert machine.asked == [(-1, False), (7, False)]
    assert invoke("--device-fd", "-1").exit_code == 2


def test_the_facts_of_this_machine() -> None:
    """Whatever they are: each has a name of its own, help, and words; what is not good has a remedy."""
    facts = probe(spare_pools=True)
    assert len({one.name for one in facts}) == len(facts) > 10
    assert facts[-1].name == "usable"
    assert all(one.help and one.found for one in facts)
    assert all(one.remedy for one in facts if one.verdict in (Verdict.LESS, Verdict.BAD, Verdict.FAILED))
