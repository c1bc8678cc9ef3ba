# SPDX-License-Identifier: Apache-2.0
"""What services make of the probe at their start: a refusal where nothing could work, a line where less
does."""

import asyncio
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from faultclient import cli, worker
from faultclient.serve import serve
from pageferry.reasons import Exit, PageferryError, Reason
from pageferry.service import abilities as module
from pageferry.service.abilities import check_arriving, check_leaving, say_leaving
from pageferry.service.native import Fact, Verdict, probe
from pageserver import attach

NAMES = tuple(one.name for one in probe(spare_pools=True))
Machine = Callable[..., None]


def fact(name: str, verdict: Verdict = Verdict.GOOD) -> Fact:
    remedy = None if verdict is Verdict.GOOD else f"mend {name}"
    return Fact(name, verdict, f"what {name} found", "", remedy)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine(poison=Verdict.LESS): all else is good there."""

    def set_up(**verdicts: Verdict) -> None:
        assert verdicts.keys() <= set(NAMES)
        facts = tuple(fact(name, verdicts.get(name, Verdict.GOOD)) for name in NAMES)
        monkeypatch.setattr(module, "abilities", lambda: facts)

    return set_up


Said = list[MutableMapping[str, Any]]


@pytest.fixture
def said() -> Iterator[Said]:
    """The log, as it grows."""
    with capture_logs() as entries:
        yield entries


def degraded(name: str, event: str = "degraded") -> dict[str, Any]:
    return {
        "event": event,
        "log_level": "warning",
        "fact": name,
        "found": f"what {name} found",
        "remedy": f"mend {name}",
    }


def test_nothing_is_said_of_a_machine_that_has_all(machine: Machine, said: Said) -> None:
    machine()
    check_arriving(filled_before=True)
    say_leaving()
    check_leaving()
    assert said == []


def test_a_line_for_each_that_is_less(machine: Machine, said: Said) -> None:
    machine(poison=Verdict.LESS, thp_shared=Verdict.LESS)
    check_arriving(filled_before=False)
    assert said == [degraded("poison"), degraded("thp_shared")]


def test_what_concerns_nobody_here_is_not_said(machine: Machine, said: Said) -> None:
    machine(swap=Verdict.LESS, dirty_tracking=Verdict.LESS, huge_shared_memory=Verdict.LESS)
    check_arriving(filled_before=True)
    assert said == []


def test_the_limit_of_the_cgroup_matters_where_pages_come_first(machine: Machine, said: Said) -> None:
    machine(headroom=Verdict.LESS)
    check_arriving(filled_before=False)
    assert not said
    check_arriving(filled_before=True)
    assert said == [degraded("headroom")]


def test_failed_is_not_absent_and_is_said_whoever_it_concerns(machine: Machine, said: Said) -> None:
    machine(dirty_tracking=Verdict.FAILED, shared_memory=Verdict.FAILED, usable=Verdict.FAILED)
    check_arriving(filled_before=False)
    failed = ("shared_memory", "dirty_tracking", "usable")
    assert said == [degraded(name, "probe_failed") for name in failed]


def test_a_right_that_only_the_vmm_needs_refuses_nothing(machine: Machine, said: Said) -> None:
    tried = ("handshake", "shared_memory", "private_memory", "poison", "dirty_tracking")
    machine(
        userfaultfd=Verdict.BAD,
        kernel_faults=Verdict.UNTRIED,
        usable=Verdict.BAD,
        **dict.fromkeys(tried, Verdict.UNTRIED),
    )
    check_arriving(filled_before=False)
    (line,) = said
    assert (line["event"], line["log_level"]) == ("not_tried", "info")
    assert "userfaultfd" in line["because"]
    assert "faultclient doctor" in line["remedy"]


def test_a_kernel_that_can_serve_no_vm_is_refused(machine: Machine) -> None:
    machine(shared_memory=Verdict.BAD, private_memory=Verdict.BAD, usable=Verdict.BAD)
    with pytest.raises(PageferryError, match="what shared_memory found; mend shared_memory") as refused:
        check_arriving(filled_before=False)
    assert refused.value.reason is Reason.UNSUPPORTED


def test_one_kind_of_memory_is_enough(machine: Machine, said: Said) -> None:
    machine(shared_memory=Verdict.LESS, usable=Verdict.LESS)
    check_arriving(filled_before=False)
    assert said == [degraded("shared_memory")]


# ---------------------------------------------------------------------------------------------- moving away


def test_a_page_server_says_that_nothing_can_leave(machine: Machine, said: Said) -> None:
    machine(dirty_tracking=Verdict.LESS, thp_shared=Verdict.LESS)
    say_leaving()
    assert said == [degraded("dirty_tracking")]


def test_attach_is_refused_before_it_touches_anything(machine: Machine, tmp_path: Path) -> None:
    machine(dirty_tracking=Verdict.LESS)
    with pytest.raises(PageferryError, match="what dirty_tracking found") as refused:
        attach.attach(1, "memfd:ram", tmp_path / "none.sock", 1.0)
    assert refused.value.reason is Reason.UNSUPPORTED
    assert refused.value.exit_code == Exit.SYSTEM


@pytest.mark.parametrize("verdict", [Verdict.GOOD, Verdict.UNTRIED, Verdict.FAILED])
def test_attach_tries_where_nothing_is_known_to_be_absent(machine: Machine, verdict: Verdict) -> None:
    machine(dirty_tracking=verdict)
    check_leaving()


# ------------------------------------------------------------------------------------- where services ask it


def test_run_is_refused_before_it_listens(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    async def taken(options: Any) -> Any:
        seen.append(options)
        return worker.Outcome({}, None)

    monkeypatch.setattr(worker, "run", taken)
    socket = tmp_path / "handoff.sock"
    given = ["--data-address=127.0.0.1:1", "--image=one", "--control-listen=127.0.0.1:0"]
    assert CliRunner().invoke(cli.cli, ["run", f"--socket={socket}", *given]).exit_code == 0
    machine(shared_memory=Verdict.BAD, private_memory=Verdict.BAD, usable=Verdict.BAD)
    with pytest.raises(PageferryError, match="no VM can be served"):
        worker.check(seen[0])
    assert not socket.exists()


def test_serve_is_refused_before_it_listens(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    async def taken(options: Any) -> None:
        seen.append(options)

    monkeypatch.setattr("faultclient.serve.serve", taken)
    socket, state = tmp_path / "one.sock", tmp_path / "state"
    given = [f"--vm=one,handoff={socket},process", f"--state-dir={state}", "--control-listen=127.0.0.1:0"]
    result = CliRunner().invoke(cli.cli, ["serve", *given])
    assert result.exit_code == 0, result.output
    machine(shared_memory=Verdict.BAD, private_memory=Verdict.BAD, usable=Verdict.BAD)
    with pytest.raises(PageferryError, match="no VM can be served"):
        asyncio.run(serve(seen[0]))
    assert not socket.exists()
    assert not state.exists()
