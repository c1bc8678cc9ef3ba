# SPDX-License-Identifier: Apache-2.0
"""How a console script ends: an exit code for each reason, one line on stderr, never a traceback."""

import json
import sys
from collections.abc import Iterator

import click
import pytest
import structlog

from pageferry.reasons import ROWS, Exit, PageferryError, Reason
from pageferry.service.entry import refusal_in, run_command
from pageferry.service.logs import configure_logging


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["program"])
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def ended(error: BaseException | None, *, logging: bool = False) -> int:
    """The exit code of a command that raises it."""

    @click.command()
    def command() -> None:
        if logging:
            configure_logging("json")
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        run_command(command)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_has_its_exit_code(reason: Reason, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(PageferryError(reason, "it broke", "mend it")) == ROWS[reason].exit
    assert capsys.readouterr().err == f"Error: it broke; mend it [{reason.name}]\n"


def test_a_command_that_logs_says_it_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(PageferryError(Reason.BUSY, "full", "wait"), logging=True) == Exit.TRY_AGAIN
    entry = json.loads(capsys.readouterr().err)
    del entry["timestamp"]
    assert entry == {"event": "refused", "level": "error", "reason": "BUSY", "text": "full", "remedy": "wait"}


def test_success() -> None:
    assert ended(None) == Exit.OK


def test_the_command_line_is_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(click.UsageError("no such option")) == Exit.USAGE
    assert "no such option" in capsys.readouterr().err


def test_ctrl_c() -> None:
    assert ended(KeyboardInterrupt()) == Exit.TRY_AGAIN


def test_what_nobody_has_foreseen_is_a_bug_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ZeroDivisionError("by zero")) == Exit.BUG
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["event"] == "bug"
    assert "please report" in entry["remedy"]
    assert "ZeroDivisionError" in entry["exception"]


def test_no_memory() -> None:
    assert ended(MemoryError()) == Exit.NO_MEMORY


def test_a_refusal_in_a_group_of_tasks() -> None:
    refusal = PageferryError(Reason.MISMATCH, "other bytes")
    group = BaseExceptionGroup("tasks", [ExceptionGroup("inner", [refusal]), refusal])
    assert refusal_in(group) is refusal
    assert ended(group) == Exit.DATA


def test_a_bug_beside_a_refusal_is_a_bug() -> None:
    group = ExceptionGroup("tasks", [PageferryError(Reason.MISMATCH, "other bytes"), ValueError("bug")])
    assert refusal_in(group) is None
    assert ended(group) == Exit.BUG
