# SPDX-License-Identifier: Apache-2.0
"""One row a reason; what a failed call means; what a refusal says."""

import subprocess
import sys

import grpc
import pytest

from pageferry.reasons import ROWS, Code, Exit, PageferryError, Reason, Remedy, reason_from_status


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_row(reason: Reason) -> None:
    row = ROWS[reason]
    assert row.exit not in (Exit.OK, Exit.USAGE), "0 is success, 64 is for the command line"
    # The sentence becomes a C string and a cell of a table.
    assert row.sentence and not set(row.sentence) & set('"\\|\n%')
    assert not row.sentence.endswith(".")


def test_rows_are_in_the_order_of_the_contract() -> None:
    assert list(ROWS) == sorted(Reason)


@pytest.mark.parametrize("code", Code)
def test_codes_are_those_of_grpc(code: Code) -> None:
    assert grpc.StatusCode[code.name].value[0] == code.value


@pytest.mark.parametrize("reason", Reason)
def test_a_named_reason_wins_over_the_code(reason: Reason) -> None:
    assert reason_from_status(Code.UNAVAILABLE, reason.name) is reason


@pytest.mark.parametrize("name", [None, "", "NO_SUCH_REASON", "busy", "REASON_BUSY"])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.GOING_AWAY),
        (grpc.StatusCode.CANCELLED, Reason.GOING_AWAY),
        (grpc.StatusCode.UNKNOWN, Reason.GOING_AWAY),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.GOING_AWAY),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED),
    ],
)
def test_a_status_of_a_library_or_proxy(status: grpc.StatusCode, name: str | None, reason: Reason) -> None:
    assert reason_from_status(status.value[0], name) is reason


def test_what_can_help_itself_is_retried() -> None:
    retried = {reason for reason, row in ROWS.items() if row.client is Remedy.RETRY}
    assert retried == {Reason.BUSY, Reason.GOING_AWAY, Reason.TOO_SLOW}
    assert {reason for reason, row in ROWS.items() if row.client is Remedy.PAUSE} == {Reason.NO_MEMORY}


def test_an_error_says_what_and_what_to_do() -> None:
    error = PageferryError(Reason.NO_MEMORY, "tmpfs /ram is full", "free 4096 bytes")
    assert str(error) == "tmpfs /ram is full; free 4096 bytes"
    assert error.exit_code == 73
    assert error.row is ROWS[Reason.NO_MEMORY]


def test_an_error_without_a_remedy() -> None:
    error = PageferryError(Reason.BUSY, "64 connections are open", retry_after_ms=100)
    assert str(error) == "64 connections are open"
    assert error.retry_after_ms == 100


def test_the_words_load_no_grpc() -> None:
    """They are imported before the first fault is served; grpc costs 0.4 s."""
    code = (
        "import sys; import pageferry.limits, pageferry.phases, pageferry.reasons, pageferry.units;"
        "sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
