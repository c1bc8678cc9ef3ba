# SPDX-License-Identifier: Apache-2.0
"""The shim drops mappings when it is told to, and takes its own zaps for no discards."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.resolver import (
    ACCEPTED,
    COMPLETE,
    DISCARD,
    DISCARDED,
    ZAP,
    ZAPPED,
    Frame,
    Resolver,
    listen,
)
from tests.kernel.vmm import PAGE_BYTES, PAGES, Starter, Vmm

DONTNEED = 1  # enum zap_method
ALL_BYTES = PAGES * PAGE_BYTES


@contextmanager
def accepted(start: Starter, tmp_path: Path, *steps: str) -> Iterator[tuple[Vmm, Resolver]]:
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start("map", *steps) as vmm,
        Resolver(listener) as resolver,
    ):
        resolver.say(ACCEPTED)
        vmm.expect("map 0 0")
        yield vmm, resolver


def zap(resolver: Resolver, sequence: int, page: int, pages: int = 1) -> None:
    """Asked, done, and by nothing else than its answer."""
    resolver.say(ZAP, sequence, page * PAGE_BYTES, pages * PAGE_BYTES)
    assert resolver.hear() == Frame(ZAPPED, sequence, DONTNEED, pages * PAGE_BYTES)
    assert resolver.silent()


def test_what_was_mapped_faults_again_and_keeps_its_data(start: Starter, tmp_path: Path) -> None:
    """Also what nobody had touched: it is as absent as before."""
    steps = ("read:3", "write:3", "pause", "read:3", "read:4")
    with accepted(start, tmp_path, *steps) as (vmm, resolver):
        assert resolver.fault_page() == 3
        resolver.fill(3, 0x5A)
        vmm.expect(f"read {0x5A} 0")
        vmm.expect("write 0 0")
        zap(resolver, 1, 3, 2)
        vmm.go_on()
        vmm.expect("pause 0 0")
        assert resolver.fault_page() == 3
        resolver.map(3)
        vmm.expect(f"read {0xA5} 0")
        assert resolver.fault_page() == 4
        resolver.fill(4, 0x44)
        vmm.expect(f"read {0x44} 0")
        assert vmm.end() == (0, "")


def test_zap_while_the_vmm_waits_for_an_answer(start: Starter, tmp_path: Path, ram: Path) -> None:
    """A client may want both at once: it is one thread that answers, another that waits."""
    with accepted(start, tmp_path, "punch:5") as (vmm, resolver):
        assert resolver.hear() == Frame(DISCARD, 1, 5 * PAGE_BYTES, PAGE_BYTES)
        zap(resolver, 7, 0, PAGES)
        zap(resolver, 8, 5)
        resolver.say(DISCARDED, 1)
        vmm.expect("punch 0 0")
        assert vmm.end() == (0, "")


def test_zap_after_complete(start: Starter, tmp_path: Path) -> None:
    with accepted(start, tmp_path, "read:1", "pause", "read:1", "punch:1", "read:1") as (vmm, resolver):
        assert resolver.fault_page() == 1
        resolver.fill(1, 9)
        vmm.expect("read 9 0")
        resolver.say(COMPLETE)
        zap(resolver, 1, 0, PAGES)
        vmm.go_on()
        vmm.expect("pause 0 0")
        assert resolver.fault_page() == 1
        resolver.map(1)
        vmm.expect("read 9 0")
        vmm.expect("punch 0 0")  # no report any more
        assert resolver.fault_page() == 1
        resolver.fill(1, 0)
        vmm.expect("read 0 0")
        assert vmm.end() == (0, "")


def test_client_that_closes_after_complete_is_not_missed(start: Starter, tmp_path: Path) -> None:
    with accepted(start, tmp_path, "pause", "punch:1") as (vmm, resolver):
        resolver.say(COMPLETE)
        resolver.socket.close()
        vmm.go_on()
        vmm.expect("pause 0 0")
        vmm.expect("punch 0 0")
        assert vmm.end() == (0, "")


@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes"),
    [
        (ALL_BYTES, PAGE_BYTES),
        (0, ALL_BYTES + PAGE_BYTES),
        (PAGE_BYTES, ALL_BYTES),
        (2**64 - PAGE_BYTES, 2 * PAGE_BYTES),
        (0, 0),
        (0, PAGE_BYTES + 1),
        (100, PAGE_BYTES),
        (0, (2 << 20) + PAGE_BYTES),
    ],
)
def test_what_cannot_be_zapped(start: Starter, tmp_path: Path, offset_bytes: int, length_bytes: int) -> None:
    """Said to the client and on stderr; the VM goes on, and is served."""
    with accepted(start, tmp_path, "read:2") as (vmm, resolver):
        resolver.say(ZAP, 3, offset_bytes, length_bytes)
        assert resolver.hear() == Frame(ZAPPED, 3, errno.EINVAL, 0)
        assert resolver.fault_page() == 2
        resolver.fill(2, 2)
        vmm.expect("read 2 0")
        status, said = vmm.end()
    assert status == 0
    assert said.startswith("pageferry-shim: mappings of the RAM could not be dropped (Invalid argument): ")
    assert said.count("\n") == 1
