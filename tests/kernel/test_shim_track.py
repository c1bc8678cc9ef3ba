# SPDX-License-Identifier: Apache-2.0
"""The shim in the role `track`: a VM that runs is handed to a page server, which sees what it writes.

What is seen is looked at as the page server does, by PAGEMAP_SCAN, and written down here a second time.
"""

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.resolver import ACCEPTED, Resolver, listen
from tests.kernel.vmm import PAGE_BYTES, PAGES, Starter, Vmm

TRACK = {"PAGEFERRY_SHIM_ROLE": "track"}
PAGEMAP_SCAN = 0xC0606610
WP_MATCHING, CHECK_WPASYNC = 1, 2
PAGE_IS_WRITTEN = 2


class Tracker:
    """The page server's eyes: which pages of the VM's memory have been written since clean()."""

    def __init__(self, pid: int, address: int) -> None:
        self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._address = address

    def _scan(self, flags: int) -> set[int]:
        ranges = (ctypes.c_uint64 * (3 * PAGES))()
        end = self._address + PAGES * PAGE_BYTES
        masks = (0, PAGE_IS_WRITTEN, 0, PAGE_IS_WRITTEN)
        request = struct.pack(
            "=12Q", 96, flags, self._address, end, 0, ctypes.addressof(ranges), PAGES, 0, *masks
        )
        count = fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, bytearray(request))
        pages: set[int] = set()
        for index in range(count):
            first, past = ((ranges[3 * index + edge] - self._address) // PAGE_BYTES for edge in (0, 1))
            pages |= set(range(first, past))
        return pages

    def written(self) -> set[int]:
        return self._scan(CHECK_WPASYNC)

    def clean(self) -> None:
        self._scan(WP_MATCHING | CHECK_WPASYNC)
        assert self.written() == set()

    def close(self) -> None:
        os.close(self._pagemap)


@contextmanager
def tracked(
    start: Starter, tmp_path: Path, *steps: str, role: str = "track"
) -> Iterator[tuple[Vmm, Resolver, Tracker]]:
    """A VMM that has mapped its RAM and is taken by a page server."""
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start("map", *steps, settings={"PAGEFERRY_SHIM_ROLE": role}) as vmm,
        Resolver(listener) as resolver,
    ):
        tracker = Tracker(vmm.process.pid, resolver.layout[0]["base_host_virt_addr"])
        resolver.say(ACCEPTED)
        vmm.expect("map 0 0")
        try:
            yield vmm, resolver, tracker
        finally:
            tracker.close()


def test_hand_off(start: Starter, tmp_path: Path, ram: Path) -> None:
    """As for a restore, with the role in the first region; the memory works at once and nobody serves it."""
    with tracked(start, tmp_path, "read:3", "write:4", "read:4") as (vmm, resolver, _):
        assert resolver.layout[0]["pageferry_role"] == "track"
        assert resolver.layout[0]["pageferry_frames"] == 1
        assert os.path.samestat(os.fstat(resolver.fds[1]), ram.stat())
        for line in ("read 0 0", "write 0 0", f"read {0xA5} 0"):
            vmm.expect(line)
        assert resolver.no_fault()
        assert vmm.end() == (0, "")


def test_the_vmm_waits_until_it_is_taken(start: Starter, tmp_path: Path) -> None:
    with listen(tmp_path / "uffd.sock") as listener, start("map", settings=TRACK) as vmm:
        with Resolver(listener):
            smaps = Path(f"/proc/{vmm.process.pid}/smaps").read_text()
        status, said = vmm.end()
    assert status == 1
    assert "the page server at" in said and "has refused this VM" in said
    assert any({"uw", "nh", "dc"} <= set(line.split()) for line in smaps.splitlines() if "VmFlags" in line)


def test_nobody_takes_it(start: Starter) -> None:
    with start("map", settings=TRACK) as vmm:
        status, said = vmm.end()
    assert status == 1
    assert "start `pageserver serve` on that socket first" in said


def test_writes_are_seen(start: Starter, tmp_path: Path) -> None:
    steps = ("pause", "write:3", "read:5", "write:9", "pause", "write:3", "pause")
    with tracked(start, tmp_path, *steps) as (vmm, _, tracker):
        assert tracker.written() == set(range(PAGES)), "what nobody has looked at counts as written"
        tracker.clean()
        vmm.go_on()
        for line in ("pause 0 0", "write 0 0", "read 0 0", "write 0 0"):
            vmm.expect(line)
        assert tracker.written() == {3, 9}
        tracker.clean()
        vmm.go_on()
        for line in ("pause 0 0", "write 0 0"):
            vmm.expect(line)
        assert tracker.written() == {3}
        vmm.go_on()
        assert vmm.end() == (0, "")


def test_dropped_memory_counts_as_written(start: Starter, tmp_path: Path) -> None:
    """The kernel does not see that a clean page has become a hole; half a page of zeros is news as well."""
    held = [f"write:{page}" for page in range(PAGES)]
    steps = (*held, "pause", "punch:2", "remove:5", "punch-odd:8", "dontneed:12", "read:12", "pause")
    with tracked(start, tmp_path, *steps) as (vmm, resolver, tracker):
        for _ in held:
            vmm.expect("write 0 0")
        tracker.clean()
        vmm.go_on()
        for line in (
            "pause 0 0",
            "punch 0 0",
            "remove 0 0",
            "punch-odd 0 0",
            "dontneed 0 0",
            f"read {0xA5} 0",
        ):
            vmm.expect(line)
        assert tracker.written() == {2, 5, 8, 9, 10}
        assert resolver.silent(), "nothing is to be asked: every page is here"
        vmm.go_on()
        assert vmm.end() == (0, "")


def test_what_pulls_pages_is_harmless_here(start: Starter, tmp_path: Path) -> None:
    with listen(tmp_path / "uffd.sock") as listener:
        steps = ("map-populate", "populate", "mlock", "mlockall", "hugepage", "pause")
        with start(*steps, settings=TRACK) as vmm, Resolver(listener) as resolver:
            resolver.say(ACCEPTED)
            for step in steps[:-1]:
                vmm.expect(f"{step} 0 0")
            smaps = Path(f"/proc/{vmm.process.pid}/smaps").read_text()
            flags = [set(line.split()) for line in smaps.splitlines() if "VmFlags" in line]
            assert any({"uw", "nh"} <= one and "hg" not in one for one in flags), (
                "no huge pages in tracked memory"
            )
            vmm.go_on()
            assert vmm.end() == (0, "")


def test_a_second_mapping_is_refused_and_the_vm_runs_on(start: Starter, tmp_path: Path) -> None:
    with tracked(start, tmp_path, "map", "write:1", "fork") as (vmm, _, _):
        for line in ("map -1 EBUSY", "write 0 0", "fork 0 0"):
            vmm.expect(line)
        status, said = vmm.end()
    assert status == 0
    assert said.count("\n") == 1
    assert "writes there could not be tracked" in said


def test_a_page_server_that_goes_leaves_the_vm_running(start: Starter, tmp_path: Path) -> None:
    with tracked(start, tmp_path, "pause", "punch:3", "punch:4", "write:3", "read:3") as (vmm, resolver, _):
        resolver.socket.close()
        vmm.go_on()
        for line in ("pause 0 0", "punch 0 0", "punch 0 0", "write 0 0", f"read {0xA5} 0"):
            vmm.expect(line)
        status, said = vmm.end()
    assert status == 0
    assert said.count("\n") == 1
    assert "the page server has gone: the VM runs on" in said


def test_tracking_goes_on_without_its_first_holder(start: Starter, tmp_path: Path) -> None:
    """The VMM keeps the userfaultfd as well: what is written while nobody looks is not forgotten."""
    with tracked(start, tmp_path, "pause", "write:7", "pause") as (vmm, resolver, tracker):
        tracker.clean()
        resolver.socket.close()
        os.close(resolver.fds.pop(0))
        vmm.go_on()
        for line in ("pause 0 0", "write 0 0"):
            vmm.expect(line)
        assert tracker.written() == {7}


def test_both_roles_at_once(start: Starter, tmp_path: Path) -> None:
    """A VM that is restored and is to move on: its faults go to the client, and its writes are seen."""
    steps = ("read:1", "pause", "write:1", "write:2", "pause")
    with tracked(start, tmp_path, *steps, role="both") as (vmm, resolver, tracker):
        assert resolver.layout[0]["pageferry_role"] == "both"
        assert resolver.fault_page() == 1
        resolver.fill(1, 9)
        vmm.expect("read 9 0")
        tracker.clean()
        vmm.go_on()
        vmm.expect("pause 0 0")
        vmm.expect("write 0 0")
        assert resolver.fault_page() == 2
        assert tracker.written() == {1}
        resolver.fill(2, 0)
        vmm.expect("write 0 0")
        assert tracker.written() == {1, 2}


def test_a_role_that_is_none(start: Starter) -> None:
    with start("map", settings={"PAGEFERRY_SHIM_ROLE": "source"}) as vmm:
        status, said = vmm.end()
    assert status == 1
    assert said == 'pageferry-shim: PAGEFERRY_SHIM_ROLE is "source": it must be restore, track or both\n'


@pytest.mark.parametrize("role", ["restore", "track"])
def test_a_vmm_that_never_maps_its_ram_says_so(start: Starter, role: str) -> None:
    with start("mergeable", settings={"PAGEFERRY_SHIM_ROLE": role}) as vmm:
        status, said = vmm.end()
    assert status == 0
    assert ("it could not have been moved" in said) == (role == "track")
