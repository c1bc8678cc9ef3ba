# SPDX-License-Identifier: Apache-2.0
"""Huge pages and the shim: none while pages arrive, whatever the VMM asks for; afterwards as the VMM wants,
or the fault client where the VMM says nothing. What holds is read from the kernel: VmFlags of the mapping."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.resolver import ACCEPTED, COMPLETE, COMPLETE_HUGE_PAGES, Resolver, listen
from tests.kernel.vmm import Starter, Vmm
from tests.support.settings import HUGE_2_MIB


@contextmanager
def accepted(start: Starter, tmp_path: Path, *steps: str) -> Iterator[tuple[Vmm, Resolver]]:
    """A VMM that has mapped its RAM, in the role restore, and goes on after the step `pause`."""
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start("map", *steps) as vmm,
        Resolver(listener) as resolver,
    ):
        resolver.say(ACCEPTED)
        vmm.expect("map 0 0")
        yield vmm, resolver


def flags(vmm: Vmm, resolver: Resolver) -> set[str]:
    """VmFlags of the RAM."""
    smaps = Path(f"/proc/{vmm.process.pid}/smaps").read_text()
    mapping = smaps[smaps.index(f"{resolver.layout[0]['base_host_virt_addr']:x}-") :]
    return set(mapping[mapping.index("VmFlags:") :].splitlines()[0].split()[1:])


def pmd_mapped_kib(vmm: Vmm) -> int:
    rollup = Path(f"/proc/{vmm.process.pid}/smaps_rollup").read_text()
    return int(rollup[rollup.index("ShmemPmdMapped:") :].split()[1])


@pytest.mark.parametrize("step", ["hugepage", "process-hugepage", "nohugepage"])
def test_a_wish_changes_nothing_while_pages_arrive(start: Starter, tmp_path: Path, step: str) -> None:
    with accepted(start, tmp_path, step, "pause") as (vmm, resolver):
        vmm.expect(f"{step} 0 0")
        assert "nh" in flags(vmm, resolver)
        assert "hg" not in flags(vmm, resolver)
        vmm.go_on()
        assert vmm.end() == (0, "")


def test_a_collapse_is_refused_while_pages_arrive(start: Starter, ram: Path, tmp_path: Path) -> None:
    """The file is full of what the memory's last owner has left there: mapped at once, that would be read."""
    os.truncate(ram, 2 * HUGE_2_MIB)
    ram.write_bytes(b"old!" * (2 * HUGE_2_MIB // 4))
    steps = ("hugepage", "collapse", "read:3", "pause", "dontfork", "collapse", "pause")
    with accepted(start, tmp_path, *steps) as (vmm, resolver):
        vmm.expect("hugepage 0 0")
        vmm.expect("collapse -1 EINVAL")
        assert resolver.fault_page() == 3  # not there for the VMM, in spite of all
        assert pmd_mapped_kib(vmm) == 0
        resolver.map(3)
        vmm.expect(f"read {ord('o')} 0")
        resolver.say(COMPLETE)  # the guard was all that kept it from being mapped
        vmm.go_on()
        vmm.expect("pause 0 0")
        vmm.expect("dontfork 0 0")  # a call that the shim looks at: COMPLETE has been read
        vmm.expect("collapse 0 0")
        assert pmd_mapped_kib(vmm) == 2 * HUGE_2_MIB // 1024


@pytest.mark.parametrize(
    ("steps", "bits", "after"),
    [
        (("hugepage",), 0, "hg"),  # what it has asked for before
        (("process-hugepage",), 0, "hg"),
        ((), COMPLETE_HUGE_PAGES, "hg"),  # the fault client's wish
        ((), 0, "nh"),  # nobody's
        (("nohugepage",), COMPLETE_HUGE_PAGES, "nh"),  # the VMM knows better
        (("hugepage", "nohugepage"), 0, "nh"),  # its last word
        (("nohugepage", "hugepage"), 0, "hg"),
    ],
)
def test_after_complete(
    start: Starter, tmp_path: Path, steps: tuple[str, ...], bits: int, after: str
) -> None:
    with accepted(start, tmp_path, *steps, "pause", "punch:0", "pause") as (vmm, resolver):
        for step in steps:
            vmm.expect(f"{step} 0 0")
        resolver.say(COMPLETE, offset_bytes=bits)
        vmm.go_on()
        vmm.expect("pause 0 0")
        vmm.expect("punch 0 0")  # as above
        assert {"nh", "hg"} & flags(vmm, resolver) == {after}
        vmm.go_on()
        assert vmm.end() == (0, "")
