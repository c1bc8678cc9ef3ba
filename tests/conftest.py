# SPDX-License-Identifier: Apache-2.0
"""One rule for every suite: a test may skip only on a ground that tests/allowed_skips.txt names; others fail.

Otherwise a broken environment looks like a green one. Each line of that file: a pattern of test ids, a tab,
how the reason that the test gives begins.
"""

from collections.abc import Generator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


@dataclass(frozen=True)
class AllowedSkip:
    pattern: str
    reason: str

    def covers(self, test_id: str, reason: str) -> bool:
        return fnmatchcase(test_id, self.pattern) and reason.startswith(self.reason)


def allowed_skips() -> list[AllowedSkip]:
    lines = (line for line in ALLOWED_SKIPS.read_text().splitlines() if line and not line.startswith("#"))
    return [AllowedSkip(*line.split("\t")) for line in lines]


def judge(report: pytest.TestReport | pytest.CollectReport, allowed: list[AllowedSkip]) -> None:
    """Turns a skip that nobody allowed into a failure. An expected failure (xfail) is no skip."""
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not any(skip.covers(report.nodeid, reason) for skip in allowed):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} skipped, and tests/allowed_skips.txt does not allow it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    judge(report, allowed_skips())
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    judge(report, allowed_skips())
    return report
