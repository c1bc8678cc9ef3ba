# SPDX-License-Identifier: Apache-2.0
"""The soak's short form; `make soak` is the long one. And that it fails when it has to."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.branches import BRANCHES, DEATHS, count, never_met
from tests.support.build import ROOT
from tests.support.guest import Guest, Shape
from tests.support.pair import client, serve
from tests.support.ramfile import run_folder
from tests.support.requires import needs_huge_pages, needs_userfaultfd

PATIENCE_S = 240
ALL = {"memfd": Counter({branch.counter: 1 for branch in BRANCHES}), "tmpfs-huge": Counter()}


@needs_userfaultfd
@needs_huge_pages
def test_five_vms_at_once() -> None:
    arguments = [sys.executable, "-m", "tests.soak", "--short"]
    done = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    word, _, figures = done.stdout.splitlines()[-1].partition(": ")
    told = json.loads(figures)
    assert word == "soak" and told["ok"]
    assert min(told["branches"].values()) > 0
    assert min(told["faults_by_kind"].values()) > 0
    assert told["kills"] > 0 and told["cuts"] > 0 and told["deaths"] > 0


def test_a_branch_that_was_never_met_is_told() -> None:
    counters = ALL | {"tmpfs-huge": Counter({"faults_unheld_minor_total": 3})}
    assert never_met(counters) == []
    for branch in BRANCHES:
        without = {kind: Counter(counts) for kind, counts in counters.items()}
        for counts in without.values():
            counts.pop(branch.counter, None)
        assert never_met(without) == [branch.name]


def test_a_huge_folio_counts_where_there_are_some() -> None:
    (huge,) = (branch for branch in BRANCHES if branch.kinds)
    assert count(huge, ALL | {DEATHS: Counter({huge.counter: 7})}) == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@needs_userfaultfd
def test_a_page_of_another_vm_is_no_right_page(folder: Path) -> None:
    """Stamps say whose they are: the same holes, the same page, another image."""
    ours, theirs = Shape((512,), seed=31, data_percent=100), Shape((512,), seed=32, data_percent=100)
    image = theirs.make_image(folder / "theirs")
    with (
        serve(folder, {"vm": image}) as server,
        client(folder, server.ready["data"]) as run,
        Guest(ours, handoff=run.handoff, folder=folder) as guest,
    ):
        report = guest.ready().do("all")
        run.outcome()
    assert report.kinds == {"misplaced": ours.page_count}
