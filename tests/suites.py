# SPDX-License-Identifier: Apache-2.0
"""Runs the suites one after another and closes with a table: what each found, and how long it took.

    python -m tests.suites                  every suite
    python -m tests.suites unit house       these
    python -m tests.suites nightly          tests that take long, of all folders; in no other run

A suite is a command of COMMANDS, or a folder of tests/ that holds test_*.py. One that fails does not keep the
next from running. The last line is "total: N passed, N failed, N skipped"; exit status 1 if any failed.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
MAKE = ["make", "--no-print-directory"]
COMMANDS = {
    "lint": [*MAKE, "lint"],
    "native": [*MAKE, "-C", "native", "check"],
    "simulation": ["native/build/tests/test_simulation", "2000", "10000"],
    "mutants": [sys.executable, "-m", "tests.mutants", "--tenth"],
    "sanitize": [*MAKE, "sanitize"],
    "fuzz": [*MAKE, "fuzz", "SECONDS=45"],
}
# only when they are named
ON_DEMAND = {"nightly": [sys.executable, "-m", "pytest", "-q", "-m", "nightly", "tests"]}
# quick ones first; a folder that is not named here runs last
ORDER = ("lint", "native", "unit", "house", "model", "k8s", "kernel", "kvm", "wire", "e2e", *COMMANDS)
NO_TESTS_COLLECTED = 5


@dataclass(frozen=True)
class Outcome:
    suite: str
    passed: int
    failed: int
    skipped: int
    seconds: float


def names() -> list[str]:
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/test_*.py")}
    others = sorted(folders.difference(ORDER))
    known = [name for name in dict.fromkeys(ORDER) if name in folders or name in COMMANDS]
    return known + others


def counted(line: str, exit_status: int) -> tuple[int, int, int]:
    """Passed, failed, skipped by the last line of what ran; linters, which count nothing, are one."""
    count = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", line)}
    if mutants := re.match(r'mutants: .*"killed": (\d+), "equal": (\d+), "survived": (\d+)', line):
        count = {"passed": int(mutants[1]) + int(mutants[2]), "failed": int(mutants[3])}
    failed = count.get("failed", 0) + count.get("error", 0)
    if exit_status not in (0, NO_TESTS_COLLECTED):
        return count.get("passed", 0), max(failed, 1), count.get("skipped", 0)
    return count.get("passed", 0 if count else 1), failed, count.get("skipped", 0)


def run(suite: str) -> Outcome:
    print(f"\n== {suite}", flush=True)
    command = (COMMANDS | ON_DEMAND).get(suite) or [sys.executable, "-m", "pytest", "-q", f"tests/{suite}"]
    started = time.monotonic()
    last = ""
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return Outcome(suite, *counted(last, child.returncode), time.monotonic() - started)


def main(chosen: list[str]) -> int:
    known = names()
    unknown = [name for name in chosen if name not in known and name not in ON_DEMAND]
    if unknown:
        sys.exit(f"no such suite: {' '.join(unknown)}; there are: {' '.join([*known, *ON_DEMAND])}")
    outcomes = [run(suite) for suite in chosen or known]
    print(f"\n{'suite':<10} {'passed':>7} {'failed':>7} {'skipped':>7} {'seconds':>8}")
    for one in outcomes:
        print(f"{one.suite:<10} {one.passed:>7} {one.failed:>7} {one.skipped:>7} {one.seconds:>8.1f}")
    failed = sum(one.failed for one in outcomes)
    passed, skipped = sum(one.passed for one in outcomes), sum(one.skipped for one in outcomes)
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
