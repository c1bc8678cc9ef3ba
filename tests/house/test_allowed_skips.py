# SPDX-License-Identifier: Apache-2.0
"""The skip policy (tests/conftest.py) is kept, and its list names only tests that exist."""

from fnmatch import fnmatchcase

import pytest

from tests.conftest import AllowedSkip, allowed_skips, judge
from tests.house.tracked import tracked

ALLOWED = [AllowedSkip("tests/wire/test_ghz.py::*", "no ghz")]


def skipped(test_id: str, reason: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=test_id,
        location=("", None, ""),
        keywords={},
        outcome="skipped",
        longrepr=("test_ghz.py", 1, f"Skipped: {reason}"),
        when="setup",
    )


@pytest.mark.parametrize(
    ("test_id", "reason", "outcome"),
    [
        ("tests/wire/test_ghz.py::test_unary[data]", "no ghz: there is no Go here", "skipped"),
        ("tests/wire/test_ghz.py::test_unary[data]", "the port is taken", "failed"),
        ("tests/wire/test_server.py::test_unary", "no ghz", "failed"),
    ],
)
def test_only_allowed_skips_stay_skips(test_id: str, reason: str, outcome: str) -> None:
    report = skipped(test_id, reason)
    judge(report, ALLOWED)
    assert report.outcome == outcome


def test_an_expected_failure_is_no_skip() -> None:
    report = skipped("tests/wire/test_server.py::test_unary", "")
    report.wasxfail = "reason: known"
    judge(report, ALLOWED)
    assert report.outcome == "skipped"


def test_each_allowed_skip_is_of_a_file_that_exists_and_has_a_reason() -> None:
    for skip in allowed_skips():
        pattern = skip.pattern.split("::")[0]
        assert any(fnmatchcase(name, pattern) for name in tracked("tests/*.py")), skip.pattern
        assert skip.reason, skip.pattern
