# SPDX-License-Identifier: Apache-2.0
"""Huge pages while a VM's memory arrives, and afterwards, on the kernel that runs.

The story: a RAM file may lie on folios of 2 MiB, of its last owner or of somebody who writes into it. A
kernel that maps such a folio as a whole shows the guest pages that have not arrived; with missing faults
alone each page of it is shown at the first touch. So memory is registered for missing and minor faults, with
MADV_NOHUGEPAGE on it, and nothing may be mapped when the VM begins to run. huge_race.c takes away one of the
three in turn: then wrong bytes are read, which shows that they would be seen.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.build import FLAGS
from tests.support.settings import THP, Settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A piece of 2 MiB; the smallest VM has all four kinds of them twice.
PIECE_PAGES = 512
PAGES = 8 * PIECE_PAGES
READERS = 3
WORDS = 512
KHUGEPAGED = THP / "khugepaged"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, and reads /proc/kpageflags")


@cache
def program() -> Path:
    """Compiled against the C library, if something has changed."""
    subprocess.run(["make", "-s", "-C", "native", "lib"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    sources = [HERE / "huge_race.c", HERE / "huge_vmm.c", ROOT / "native/build/libpageferry.a"]
    read = [*sources, HERE / "huge_race.h", ROOT / "native/pageferry.h"]
    target = ROOT / "build/kernel/huge_race"
    if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in read):
        target.parent.mkdir(parents=True, exist_ok=True)
        libraries = ["-lnghttp2", "-lxxhash", "-lcrypto", "-lm"]
        command: list[str | Path] = ["cc", *FLAGS, "-Inative", "-o", target, *sources, *libraries]
        subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    return target


@dataclass(frozen=True)
class Raced:
    rounds: int
    armed: int
    tries: int
    huge: int
    wrong: int
    wrong_page: int
    wrong_word: int
    old: bool
    alarms: int
    alias_done: int
    alias_refused: int
    remote_done: int
    remote_refused: int
    text: str


def race(folder: Path, scenario: str, *, pages: int = PAGES, rounds: int, seed: int) -> Raced:
    words: list[str | Path] = [program(), scenario, folder / "ram", str(pages), str(rounds), str(seed)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    print(scenario, f"seed={seed}", answer, done.stderr)
    return Raced(**answer)


@pytest.fixture
def machine() -> Iterator[Settings]:
    with Settings() as settings:
        yield settings


@pytest.fixture(params=["advise", "always", "within_size"])
def folder(machine: Settings, request: pytest.FixtureRequest) -> Path:
    """On a tmpfs whose files lie on huge pages where that is asked for, or always."""
    return machine.tmpfs(f"huge={request.param}", "size=160m")


def guarded(folder: Path, *, pages: int, rounds: int, tries: int) -> None:
    found = race(folder, "guarded", pages=pages, rounds=rounds, seed=os.getpid())
    assert found.wrong == 0, f"page {found.wrong_page} held {found.wrong_word:#x}, old={found.old}"
    assert found.alarms == 0
    assert found.armed == rounds
    assert found.tries >= tries
    assert found.huge >= found.tries // 10, "too few of them have met a huge page"
    assert found.alias_done > 0, "nobody has collapsed anything beside the VM"
    assert found.remote_done == 0, "somebody has collapsed a piece in the VM"
    assert found.remote_refused > 0


def test_reads_that_race_arrivals_on_huge_pages(folder: Path) -> None:
    guarded(folder, pages=PAGES, rounds=4, tries=10_000)


def test_zeros_where_no_huge_page_can_be_split(folder: Path) -> None:
    """Somebody holds a page of each. What the image has as zeros cannot be punched out then, and was once
    held back for ever, with whoever waited for it."""
    found = race(folder, "pinned", rounds=2, seed=os.getpid())
    assert found.armed == 2
    assert found.wrong == 0
    assert found.alarms == 0
    assert found.huge >= found.tries // 2


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_a_hundred_thousand_reads_that_race_arrivals(folder: Path) -> None:
    guarded(folder, pages=4 * PAGES, rounds=10, tries=100_000)


def test_khugepaged_meanwhile(machine: Settings) -> None:
    """As quick as it can be, beside all else. It may make huge pages of the file, and take mappings away."""
    folder = machine.tmpfs("huge=always", "size=160m")
    for name in ("scan_sleep_millisecs", "alloc_sleep_millisecs"):
        machine.write(KHUGEPAGED / name, "1")
    machine.write(KHUGEPAGED / "pages_to_scan", "100000")
    collapsed = int((KHUGEPAGED / "pages_collapsed").read_text())
    guarded(folder, pages=PAGES, rounds=4, tries=10_000)
    assert int((KHUGEPAGED / "pages_collapsed").read_text()) > collapsed


@pytest.mark.parametrize("scenario", ["missing-only", "unbarred", "early-blind"])
def test_without_one_guard_old_bytes_are_read(folder: Path, scenario: str) -> None:
    """Each piece that was on a huge page is then wrong as a whole, for every reader."""
    found = race(folder, scenario, rounds=1, seed=1)
    assert found.armed == 1
    assert found.old
    assert found.wrong == PAGES * 3 // 4 * READERS * WORDS
    assert scenario == "missing-only" or found.remote_done == PAGES * 3 // 4 // PIECE_PAGES


def test_what_is_mapped_too_early_is_found(folder: Path) -> None:
    found = race(folder, "early", rounds=1, seed=1)
    assert found.armed == 0
    assert found.text.startswith(f"{PAGES * 3 // 4} pages of the VM are mapped already")
