# SPDX-License-Identifier: Apache-2.0
"""The shim says on stderr what is lost, and goes on with everything else."""

from pathlib import Path

from tests.kernel.resolver import (
    ACCEPTED,
    CLEARED,
    COMPLETE,
    DISCARD,
    DISCARDED,
    POISON_HELD,
    POISONED,
    Frame,
    Resolver,
    listen,
)
from tests.kernel.vmm import PAGE_BYTES, Starter

UNKNOWN = 4711


def test_lost_pages_are_said_and_nothing_else_happens(start: Starter, tmp_path: Path) -> None:
    """Of many, the first and each doubling; unknown kinds are passed over, and COMPLETE still counts."""
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start("map", "read:2", "punch:5", "punch:6") as vmm,
        Resolver(listener) as resolver,
    ):
        resolver.say(ACCEPTED)
        vmm.expect("map 0 0")
        for number in range(1, 41):
            resolver.say(POISONED, number, number * PAGE_BYTES, PAGE_BYTES)
        resolver.say(POISON_HELD, 64, 64 * PAGE_BYTES, PAGE_BYTES)
        resolver.say(CLEARED, 0, 3 * PAGE_BYTES, PAGE_BYTES)
        resolver.say(UNKNOWN, 1, 2, 3)
        assert resolver.fault_page() == 2
        resolver.fill(2, 9)
        vmm.expect("read 9 0")
        assert resolver.hear() == Frame(DISCARD, 1, 5 * PAGE_BYTES, PAGE_BYTES)
        resolver.say(DISCARDED, 1)
        vmm.expect("punch 0 0")
        resolver.say(COMPLETE)
        vmm.expect("punch 0 0")
        status, said = vmm.end()
    lines = said.splitlines()
    assert status == 0
    assert len(lines) == 18
    first = f"pageferry-shim: the page at offset {PAGE_BYTES} of the RAM is lost, number 1: "
    assert lines[0] == first + "an access to it raises SIGBUS"
    assert lines[16].split(" of the RAM ")[0] == f"pageferry-shim: the page at offset {32 * PAGE_BYTES}"
    assert lines[17].endswith("number 64: whoever touches it waits until its poison is cleared")


def test_a_drop_that_begins_in_a_lost_page_ends_nobody(start: Starter, tmp_path: Path) -> None:
    """It brings the page first, by no access of its own: that raised SIGBUS in the VMM's fallocate."""
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start("map", "punch-odd:5", "read:7") as vmm,
        Resolver(listener) as resolver,
    ):
        resolver.say(ACCEPTED)
        vmm.expect("map 0 0")
        assert resolver.fault_page() == 5
        resolver.poison(5)
        assert resolver.fault_page() == 7
        resolver.fill(7, 9)
        assert resolver.hear() == Frame(DISCARD, 1, 6 * PAGE_BYTES, PAGE_BYTES)
        resolver.say(DISCARDED, 1)
        vmm.expect("punch-odd 0 0")
        vmm.expect("read 0 0")
        assert vmm.end() == (0, "")
