# SPDX-License-Identifier: Apache-2.0
"""The shim, preloaded into a small VMM: what it hands over, what it guards, which VMMs it ends."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pageferry.limits import SHIM_ACCEPT_MS
from tests.kernel.resolver import ACCEPTED, COMPLETE, DISCARD, DISCARDED, Frame, Resolver, listen
from tests.kernel.vmm import PAGE_BYTES, PAGES, Starter, Vmm

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@contextmanager
def accepted(start: Starter, tmp_path: Path, *steps: str) -> Iterator[tuple[Vmm, Resolver]]:
    """A VMM that has mapped its RAM under an accepted hand-off."""
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start("map", *steps) as vmm,
        Resolver(listener) as resolver,
    ):
        resolver.say(ACCEPTED)
        vmm.expect("map 0 0")
        yield vmm, resolver


def stored_pages(ram: Path) -> int:
    return ram.stat().st_blocks * 512 // PAGE_BYTES


# ----------------------------------------------------------------------------------------------- the hand-off


def test_hand_off(start: Starter, tmp_path: Path, ram: Path) -> None:
    """One message, two descriptors; mmap returns when the client has accepted, and faults go to it."""
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start("map", "read:3") as vmm,
        Resolver(listener) as resolver,
    ):
        (region,) = resolver.layout
        address = region.pop("base_host_virt_addr")
        assert address % PAGE_BYTES == 0
        assert region == {
            "size": PAGES * PAGE_BYTES,
            "offset": 0,
            "page_size": PAGE_BYTES,
            "page_size_kib": PAGE_BYTES,
            "pageferry_frames": 1,
        }
        assert len(resolver.fds) == 2
        assert Path(f"/proc/self/fd/{resolver.uffd}").readlink() == Path("anon_inode:[userfaultfd]")
        assert os.path.samestat(os.fstat(resolver.fds[1]), ram.stat())
        region["base_host_virt_addr"] = address

        assert resolver.no_fault()
        resolver.say(ACCEPTED)
        vmm.expect("map 0 0")
        assert resolver.fault_page() == 3
        assert stored_pages(ram) == 0
        resolver.fill(3, 0x5A)
        vmm.expect(f"read {0x5A} 0")
        assert vmm.end() == (0, "")


def test_memory_is_registered_before_it_is_handed_over(start: Starter, tmp_path: Path) -> None:
    with listen(tmp_path / "uffd.sock") as listener, start("map") as vmm, Resolver(listener) as resolver:
        smaps = Path(f"/proc/{vmm.process.pid}/smaps").read_text()
        address = resolver.layout[0]["base_host_virt_addr"]
        mapping = smaps[smaps.index(f"{address:x}-") :]
        flags = mapping[mapping.index("VmFlags:") :].splitlines()[0].split()
        assert {"um", "ui", "nh", "dc"} <= set(flags)
        assert "lo" not in flags
        resolver.say(ACCEPTED)
        assert vmm.end()[0] == 0


def test_memfd_by_its_name(start: Starter, tmp_path: Path) -> None:
    with (
        listen(tmp_path / "uffd.sock") as listener,
        start(
            "map",
            "read:0",
            memory=("memfd", "memory-backend-memfd", str(PAGES)),
            settings={"PAGEFERRY_SHIM_RAM": "memfd:memory-backend-memfd"},
        ) as vmm,
        Resolver(listener) as resolver,
    ):
        resolver.say(ACCEPTED)
        assert resolver.fault_page() == 0
        resolver.fill(0, 7)
        vmm.expect("map 0 0")
        vmm.expect("read 7 0")
        assert vmm.end() == (0, "")


def test_a_name_that_only_begins_alike_is_another_memfd(start: Starter) -> None:
    memory = ("memfd", "memory-backend-memfd", str(PAGES))
    settings = {"PAGEFERRY_SHIM_RAM": "memfd:memory-backend"}
    with start("map", "read:0", memory=memory, settings=settings) as vmm:
        status, said = vmm.end()
    assert status == 0
    assert "has never mapped memfd:memory-backend" in said


def test_client_that_dies_leaves_the_vmm_waiting(start: Starter, tmp_path: Path) -> None:
    """The VMM keeps the userfaultfd open: or its last holder's death would wake the reader to zeros."""
    with accepted(start, tmp_path, "read:1") as (vmm, resolver):
        assert resolver.fault_page() == 1
        resolver.__exit__()
        resolver.fds = []
        with pytest.raises(subprocess.TimeoutExpired):
            vmm.process.wait(timeout=0.3)


def test_each_of_two_ram_files_is_handed_over_by_itself(start: Starter, tmp_path: Path, ram: Path) -> None:
    """Faults, discards and the end of the one mean nothing to the other."""
    other = ram.with_name(ram.name + ".other")
    other.touch()
    os.truncate(other, 2 * PAGES * PAGE_BYTES)
    settings = {
        "PAGEFERRY_SHIM_RAM_2": str(other),
        "PAGEFERRY_SHIM_SOCKET_2": str(tmp_path / "other.sock"),
    }
    steps = ("map", f"other:{other}", "map", "read:20", "punch:21", "pause", "back", "read:3", "punch:3")
    try:
        with (
            listen(tmp_path / "uffd.sock") as listener,
            listen(tmp_path / "other.sock") as other_listener,
            start(*steps, settings=settings) as vmm,
            Resolver(listener) as resolver,
        ):
            resolver.say(ACCEPTED)
            with Resolver(other_listener) as second:
                assert second.layout[0]["size"] == 2 * resolver.layout[0]["size"]
                assert os.path.samestat(os.fstat(second.fds[1]), other.stat())
                second.say(ACCEPTED)
                assert second.fault_page() == 20
                second.fill(20, 9)
                assert second.hear() == Frame(DISCARD, 1, 21 * PAGE_BYTES, PAGE_BYTES)
                second.say(DISCARDED, 1)
                for line in ("map 0 0", "other 0 0", "map 0 0", "read 9 0", "punch 0 0"):
                    vmm.expect(line)
                assert resolver.silent() and resolver.no_fault()
                second.say(COMPLETE)
            vmm.go_on()
            assert resolver.fault_page() == 3
            resolver.fill(3, 4)
            assert resolver.hear() == Frame(DISCARD, 1, 3 * PAGE_BYTES, PAGE_BYTES)
            resolver.say(DISCARDED, 1)
            for line in ("pause 0 0", "back 0 0", "read 4 0", "punch 0 0"):
                vmm.expect(line)
            assert vmm.end() == (0, "")
    finally:
        other.unlink()


# ---------------------------------------------------------------------------------------- no hand-off, no VMM


def assert_ended(vmm: Vmm, *fragments: str) -> None:
    status, said = vmm.end()
    assert status == 1, said
    assert said.startswith("pageferry-shim: ")
    assert said.count("\n") == 1
    for fragment in fragments:
        assert fragment in said


def test_nobody_listens(start: Starter, tmp_path: Path) -> None:
    with start("map") as vmm:
        assert_ended(vmm, f"nobody takes this VM at {tmp_path}/uffd.sock", "No such file", "faultclient run")


def test_listener_that_never_accepts(start: Starter, tmp_path: Path) -> None:
    with listen(tmp_path / "uffd.sock"), start("map", settings={"PAGEFERRY_SHIM_TIMEOUT_MS": "150"}) as vmm:
        assert_ended(vmm, "has not accepted this VM in 150 ms")


def test_client_that_refuses(start: Starter, tmp_path: Path) -> None:
    with listen(tmp_path / "uffd.sock") as listener, start("map") as vmm:
        with Resolver(listener):
            pass
        assert_ended(vmm, "has refused this VM", "see its log")


def test_answer_that_is_no_frame(start: Starter, tmp_path: Path) -> None:
    with listen(tmp_path / "uffd.sock") as listener, start("map") as vmm, Resolver(listener) as resolver:
        resolver.socket.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        assert_ended(vmm, "is no fault client of this version")


def test_answer_that_is_another_frame(start: Starter, tmp_path: Path) -> None:
    with listen(tmp_path / "uffd.sock") as listener, start("map") as vmm, Resolver(listener) as resolver:
        resolver.say(DISCARDED)
        assert_ended(vmm, "is no fault client of this version")


@pytest.mark.parametrize(
    ("step", "fragment"),
    [
        ("map-private", "it needs share=on"),
        ("map-populate", "without prealloc=on"),
        ("map-locked", "without memory locking"),
        ("map-half", "it must map the whole file"),
        ("mlockall", "mem-lock=off"),
    ],
)
def test_refused_before_the_hand_off(start: Starter, tmp_path: Path, step: str, fragment: str) -> None:
    with listen(tmp_path / "uffd.sock"), start(step) as vmm:
        assert_ended(vmm, fragment)


@pytest.mark.parametrize(
    ("step", "fragment"),
    [
        ("populate", "prealloc=on pulls every page"),
        ("mlock", "mem-lock=off"),
        ("mlockall", "mem-lock=off"),
        ("map", "maps its RAM"),
    ],
)
def test_refused_after_it(start: Starter, tmp_path: Path, ram: Path, step: str, fragment: str) -> None:
    with accepted(start, tmp_path, step) as (vmm, resolver):
        assert_ended(vmm, fragment)
        assert resolver.no_fault()
    assert stored_pages(ram) == 0


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"PAGEFERRY_SHIM_SOCKET": ""}, "set PAGEFERRY_SHIM_SOCKET too"),
        ({"PAGEFERRY_SHIM_RAM": ""}, "set PAGEFERRY_SHIM_RAM too"),
        ({"PAGEFERRY_SHIM_TIMEOUT_MS": "soon"}, 'PAGEFERRY_SHIM_TIMEOUT_MS is "soon"'),
        ({"PAGEFERRY_SHIM_SOCKET": "/" + "x" * 120}, "name a shorter one"),
        ({"PAGEFERRY_SHIM_RAM_2": "/ram"}, "set PAGEFERRY_SHIM_SOCKET_2 too"),
        ({"PAGEFERRY_SHIM_RAM_3": "/ram", "PAGEFERRY_SHIM_SOCKET_3": "/s"}, "without a gap"),
        (
            {"PAGEFERRY_SHIM_RAM": "/r", "PAGEFERRY_SHIM_RAM_2": "/r", "PAGEFERRY_SHIM_SOCKET_2": "/s"},
            "by itself",
        ),
    ],
)
def test_settings_that_cannot_be(start: Starter, settings: dict[str, str], fragment: str) -> None:
    with start("map", settings=settings) as vmm:
        assert_ended(vmm, fragment)


def test_settings_are_documented() -> None:
    """docs/handoff.md and limits.py, which the shim cannot read, name its settings and its default."""
    source = (ROOT / "native/vmm/shim.c").read_text()
    named = set(re.findall(r"PAGEFERRY_SHIM_\w+", source))
    assert named == set(re.findall(r"PAGEFERRY_SHIM_\w+", (ROOT / "docs/handoff.md").read_text()))
    assert f"#define TIMEOUT_MS_DEFAULT {SHIM_ACCEPT_MS}\n" in source


def test_ram_that_was_never_mapped(start: Starter, ram: Path) -> None:
    """A wrong name must not go unnoticed; nor may it change how a VMM ends."""
    with start() as vmm:
        status, said = vmm.end()
    assert status == 0
    assert f"has never mapped {ram}" in said


def test_without_settings_it_does_nothing(start: Starter) -> None:
    with start("map", "read:0", settings={"PAGEFERRY_SHIM_RAM": "", "PAGEFERRY_SHIM_SOCKET": ""}) as vmm:
        assert vmm.end() == (0, "")


# ------------------------------------------------------------------------------------------------- privileges


@pytest.fixture
def unprivileged(ram: Path) -> Iterator[dict[str, str]]:
    """Settings with which uid 65534 finds everything it may use, except a userfaultfd."""
    if os.geteuid() != 0:
        pytest.skip("needs root: to start a process as another user")
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("vm.unprivileged_userfaultfd is 1: everybody has the right")
    if not Path("/dev/userfaultfd").exists():
        pytest.skip("no /dev/userfaultfd here")
    os.chown(ram, NOBODY, NOBODY)
    path = Path(f"/dev/shm/pageferry-test-{os.getpid()}.sock")
    yield {"PAGEFERRY_SHIM_SOCKET": str(path)}
    path.unlink(missing_ok=True)


def test_no_userfaultfd_right(start: Starter, unprivileged: dict[str, str]) -> None:
    with start("map", settings=unprivileged, user=NOBODY) as vmm:
        assert_ended(vmm, "no userfaultfd right", "CAP_SYS_PTRACE", "/dev/userfaultfd")


def test_device_passed_on_to_an_unprivileged_vmm(start: Starter, unprivileged: dict[str, str]) -> None:
    path = Path(unprivileged["PAGEFERRY_SHIM_SOCKET"])
    device = os.open("/dev/userfaultfd", os.O_RDWR)
    try:
        settings = unprivileged | {"PAGEFERRY_SHIM_UFFD_FD": str(device)}
        with listen(path) as listener:
            os.chown(path, NOBODY, NOBODY)
            with (
                start("map", "read:2", settings=settings, user=NOBODY, pass_fds=(device,)) as vmm,
                Resolver(listener) as resolver,
            ):
                resolver.say(ACCEPTED)
                assert resolver.fault_page() == 2
                resolver.fill(2, 9)
                vmm.expect("map 0 0")
                vmm.expect("read 9 0")
                assert vmm.end() == (0, "")
    finally:
        os.close(device)


# ----------------------------------------------------------------------------------------------------- guards


def test_what_qemu_does_to_its_mapping(start: Starter, tmp_path: Path, ram: Path) -> None:
    """HUGEPAGE is swallowed, and a forked child does not get memory that is not there yet."""
    with accepted(start, tmp_path, "hugepage", "dontfork", "mergeable", "fork", "pause") as (vmm, resolver):
        for step in ("hugepage", "dontfork", "mergeable", "fork"):
            vmm.expect(f"{step} 0 0")
        smaps = Path(f"/proc/{vmm.process.pid}/smaps").read_text()
        mapping = smaps[smaps.index(f"{resolver.layout[0]['base_host_virt_addr']:x}-") :]
        assert " nh " in mapping[: mapping.index("VmFlags:") + 200]
        assert resolver.no_fault()
        vmm.go_on()
        assert vmm.end() == (0, "")
    assert stored_pages(ram) == 0


@pytest.mark.parametrize("step", ["punch", "remove"])
def test_discard_is_reported_before_the_drop(start: Starter, tmp_path: Path, ram: Path, step: str) -> None:
    with accepted(start, tmp_path, "read:5", f"{step}:5") as (vmm, resolver):
        assert resolver.fault_page() == 5
        resolver.fill(5, 1)
        frame = resolver.hear()
        assert frame == Frame(DISCARD, 1, 5 * PAGE_BYTES, PAGE_BYTES)
        assert stored_pages(ram) == 1
        resolver.say(DISCARDED, frame.sequence)
        vmm.expect("read 1 0")
        vmm.expect(f"{step} 0 0")
        assert stored_pages(ram) == 0
        assert vmm.end() == (0, "")


@pytest.mark.parametrize("step", ["punch", "remove"])
def test_discard_that_is_answered_with_keep(start: Starter, tmp_path: Path, ram: Path, step: str) -> None:
    """A VMM that empties its RAM file before it starts: it is content, and the pages stay."""
    with accepted(start, tmp_path, "read:5", f"{step}:5", "read:5") as (vmm, resolver):
        assert resolver.fault_page() == 5
        resolver.fill(5, 1)
        frame = resolver.hear()
        resolver.say(DISCARDED, frame.sequence, frame.offset_bytes, frame.length_bytes)
        for line in ("read 1 0", f"{step} 0 0", "read 1 0"):
            vmm.expect(line)
        assert stored_pages(ram) == 1
        assert vmm.end() == (0, "")


def test_discard_inside_pages_brings_them_first(start: Starter, tmp_path: Path) -> None:
    """The kernel zeroes a part of the first and the last page: of an absent page that would be lost."""
    with accepted(start, tmp_path, "punch-odd:4") as (vmm, resolver):
        assert resolver.fault_page() == 4
        resolver.fill(4, 0x11)
        assert resolver.fault_page() == 6
        resolver.fill(6, 0x22)
        assert resolver.hear() == Frame(DISCARD, 1, 5 * PAGE_BYTES, PAGE_BYTES)
        resolver.say(DISCARDED, 1)
        vmm.expect("punch-odd 0 0")
        half = PAGE_BYTES // 2
        assert os.pread(resolver.fds[1], PAGE_BYTES, 4 * PAGE_BYTES) == b"\x11" * half + bytes(half)
        assert os.pread(resolver.fds[1], PAGE_BYTES, 6 * PAGE_BYTES) == bytes(half) + b"\x22" * half
        assert vmm.end() == (0, "")


def test_dontneed_is_no_discard(start: Starter, tmp_path: Path) -> None:
    """On shared memory it drops a mapping and no bytes: reported, it would turn a page to come into zeros."""
    with accepted(start, tmp_path, "dontneed:2", "read:2", "dontneed:2", "pause") as (vmm, resolver):
        vmm.expect("dontneed 0 0")
        assert resolver.fault_page() == 2
        resolver.fill(2, 3)
        vmm.expect("read 3 0")
        vmm.expect("dontneed 0 0")
        assert resolver.silent()
        vmm.go_on()
        assert vmm.end() == (0, "")


def test_discard_without_a_client_fails_and_loses_nothing(start: Starter, tmp_path: Path, ram: Path) -> None:
    with accepted(start, tmp_path, "read:5", "pause", "punch:5", "remove:5") as (vmm, resolver):
        assert resolver.fault_page() == 5
        resolver.fill(5, 1)
        vmm.expect("read 1 0")
        resolver.socket.close()
        vmm.go_on()
        for line in ("pause 0 0", "punch -1 EIO", "remove -1 EIO"):
            vmm.expect(line)
        status, said = vmm.end()
    assert status == 0
    assert said.count("\n") == 1
    assert "the fault client has gone before all pages were here" in said
    assert stored_pages(ram) == 1


def test_client_that_dies_while_asked(start: Starter, tmp_path: Path) -> None:
    with accepted(start, tmp_path, "punch:5") as (vmm, resolver):
        assert resolver.hear().kind == DISCARD
        resolver.socket.close()
        vmm.expect("punch -1 EIO")


def test_after_complete_nothing_is_reported_or_refused(start: Starter, tmp_path: Path) -> None:
    with accepted(start, tmp_path, "pause", "punch:5", "hugepage", "map", "dontfork") as (vmm, resolver):
        resolver.say(COMPLETE)
        resolver.socket.close()
        vmm.go_on()
        for line in ("pause 0 0", "punch 0 0", "hugepage 0 0", "map 0 0", "dontfork 0 0"):
            vmm.expect(line)
        assert vmm.end() == (0, "")


def test_answers_to_nothing_hide_no_complete(start: Starter, tmp_path: Path) -> None:
    with accepted(start, tmp_path, "pause", "punch:5") as (vmm, resolver):
        for sequence in (0, 0, 1):
            resolver.say(DISCARDED, sequence)
        resolver.say(COMPLETE)
        resolver.socket.close()
        vmm.go_on()
        for line in ("pause 0 0", "punch 0 0"):
            vmm.expect(line)
        assert vmm.end() == (0, "")


def test_complete_instead_of_an_answer(start: Starter, tmp_path: Path) -> None:
    """The last page came while the VMM asked: the client may close without answering."""
    with accepted(start, tmp_path, "punch:5", "punch:6", "pause") as (vmm, resolver):
        assert resolver.hear().kind == DISCARD
        resolver.say(COMPLETE)
        vmm.expect("punch 0 0")
        vmm.expect("punch 0 0")
        assert resolver.silent()
        vmm.go_on()
        assert vmm.end() == (0, "")
