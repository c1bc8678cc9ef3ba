# SPDX-License-Identifier: Apache-2.0
"""The table of README, "When something is wrong": every row is provoked, and does what the table says.

Each twice where that can be seen: by `faultclient run`, for its message, remedy and exit code; and by a
session in this process, which ends with as many descriptors and threads as it began with.
"""

import asyncio
import ctypes
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faultclient.config import RunOptions
from faultclient.restore import Restore, follow, give_up_unattached
from faultclient.session import Postcopy
from faultclient.vms import Vms
from faultclient.worker import take_over
from pageferry.host.handoff import receive
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.ready import Ready
from tests.support.build import ROOT, guest_program
from tests.support.guest import Shape
from tests.support.handoff_client import LIBC, PAGE_BYTES, Memory, Vmm, checked, layout, region, send
from tests.support.pair import client, serve
from tests.support.processes import PATIENCE_S, Process, unchanged
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHAPE = Shape((64,), seed=31)
NOBODY = "127.0.0.1:1"
NOBODYS_UID = 65534
HUGE_BYTES = 2 << 20


# -------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    wrong: str
    message: str
    remedy: str
    exit_code: int

    def said_in(self, text: str) -> bool:
        """N stands for any number; marks of code are for the reader of the table."""
        plain = text.replace("`", "")
        return all(re.search(pattern(words), plain) for words in (self.message, self.remedy))


def pattern(words: str) -> str:
    return re.sub(r"\bN\b", r"\\d+", re.escape(words.replace("`", "")))


def rows() -> list[Row]:
    text = (ROOT / "README.md").read_text().partition("## When something is wrong\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [Row(what, says, remedy, int(code.split(",")[0])) for what, says, remedy, code in cells[2:]]


# ---------------------------------------------------------------------------------------------- what is wrong


@dataclass
class Wrong:
    """A hand-off with something wrong about it, or around it."""

    message: bytes
    fds: Sequence[int]
    image: str = "vm"
    data_address: str = ""  # the page server's
    launcher: list[str] | None = None
    # by `faultclient run` alone: what is wrong cannot be had in this process
    apart: bool = False
    mend: Callable[[], None] | None = None
    options: list[str] = field(default_factory=lambda: ["--attach-timeout=0.3"])


def handed_over(stack: ExitStack, **more: object) -> Wrong:
    memory = stack.enter_context(Memory(SHAPE.page_count))
    return Wrong(memory.layout(), memory.fds, **more)  # type: ignore[arg-type]


def unknown_image(stack: ExitStack, folder: Path) -> Wrong:
    return handed_over(stack, image="other")


def too_short(stack: ExitStack, folder: Path) -> Wrong:
    memory = stack.enter_context(Memory(2 * SHAPE.page_count))
    return Wrong(memory.layout(), memory.fds)


def unaligned(stack: ExitStack, folder: Path) -> Wrong:
    memory = stack.enter_context(Memory(SHAPE.page_count))
    return Wrong(layout(region(memory.address + 512, SHAPE.page_count)), memory.fds)


def overlapping(stack: ExitStack, folder: Path) -> Wrong:
    memory = stack.enter_context(Memory(SHAPE.page_count))
    half = SHAPE.page_count // 2
    both = (region(memory.address, half), region(memory.address + PAGE_BYTES, half, half))
    return Wrong(layout(*both), memory.fds)


def piped(stack: ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    stack.callback(os.close, writing)
    return reading, writing


def no_uffd(stack: ExitStack, folder: Path) -> Wrong:
    wrong = handed_over(stack)
    wrong.fds = piped(stack)
    return wrong


def no_memory_file(stack: ExitStack, folder: Path) -> Wrong:
    memory = stack.enter_context(Memory(SHAPE.page_count))
    return Wrong(memory.layout(), (memory.uffd, piped(stack)[1]))


def full_tmpfs(stack: ExitStack, folder: Path) -> Wrong:
    """Holds all of the guest's pages, or this file beside a few of them."""
    mount = small_tmpfs(SHAPE.page_count * PAGE_BYTES)
    stack.callback(os.close, mount)
    filler = os.open("filler", os.O_RDWR | os.O_CREAT, dir_fd=mount)
    os.posix_fallocate(filler, 0, (SHAPE.page_count - 8) * PAGE_BYTES)
    os.close(filler)
    ram = os.open("ram", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, dir_fd=mount)
    memory = stack.enter_context(Memory(SHAPE.page_count, file=ram))
    return Wrong(memory.layout(), memory.fds, mend=lambda: os.unlink("filler", dir_fd=mount))


def unreachable(stack: ExitStack, folder: Path) -> Wrong:
    return handed_over(stack, data_address=NOBODY)


def unknown_name(stack: ExitStack, folder: Path) -> Wrong:
    return handed_over(stack, data_address="nowhere.invalid:7850")


def other_page_size(stack: ExitStack, folder: Path) -> Wrong:
    """As if it lay on a pool of huge pages. Where it begins is never looked at."""
    memory = stack.enter_context(Memory(SHAPE.page_count))
    huge = region(HUGE_BYTES, HUGE_BYTES // PAGE_BYTES, page_size=HUGE_BYTES, page_size_kib=HUGE_BYTES)
    return Wrong(layout(huge), memory.fds)


def locked(stack: ExitStack, folder: Path) -> Wrong:
    memory = stack.enter_context(Memory(SHAPE.page_count, locked=True))
    return Wrong(memory.layout(), memory.fds)


PROVOKE: dict[str, Callable[[ExitStack, Path], Wrong]] = {
    "unknown image": unknown_image,
    "image shorter than the regions": too_short,
    "unaligned regions": unaligned,
    "overlapping regions": overlapping,
    "no userfaultfd among the descriptors": no_uffd,
    "RAM on the wrong kind of file": no_memory_file,
    "full tmpfs": full_tmpfs,
    "unreachable page server": unreachable,
    "unknown name of the page server": unknown_name,
    "page size that is not the memory's": other_page_size,
    "memory locked": locked,
}
IN_THE_VMM = "no userfaultfd right"

# ------------------------------------------------------------------------------ a tmpfs that nobody else sees

# The same numbers on every architecture.
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
SET_STRING, CREATE, CLOEXEC = 1, 6, 1


def small_tmpfs(size_bytes: int) -> int:
    """Mounted nowhere: it is gone when its last descriptor is."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    context = checked(LIBC.syscall(FSOPEN, b"tmpfs", CLOEXEC), "fsopen")
    try:
        size = ctypes.c_char_p(str(size_bytes).encode())
        checked(LIBC.syscall(FSCONFIG, context, SET_STRING, b"size", size, 0), "fsconfig")
        checked(LIBC.syscall(FSCONFIG, context, CREATE, None, None, 0), "fsconfig")
        return checked(LIBC.syscall(FSMOUNT, context, CLOEXEC, 0), "fsmount")
    finally:
        os.close(context)


# ------------------------------------------------------------------------------------------------------ tests


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with serve(folder, {"vm": SHAPE.make_image(folder / "image")}) as running:
        yield running


@contextmanager
def provoked(row: Row, folder: Path) -> Iterator[Wrong]:
    with ExitStack() as stack:
        yield PROVOKE[row.wrong](stack, folder)


def test_the_table_and_these_tests_have_the_same_rows() -> None:
    assert [row.wrong for row in rows() if row.wrong != IN_THE_VMM] == list(PROVOKE)
    assert len(rows()) == len(PROVOKE) + 1


IN_CLIENT = [row for row in rows() if row.wrong != IN_THE_VMM]


@pytest.mark.parametrize("row", IN_CLIENT, ids=lambda row: row.wrong)
def test_the_program_says_so_and_ends(server: Process, folder: Path, row: Row) -> None:
    with provoked(row, folder) as wrong:
        data_address = wrong.data_address or server.ready["data"]
        start = client(folder, data_address, *wrong.options, image=wrong.image, launcher=wrong.launcher)
        with start as run, Vmm(run.handoff) as vmm:
            vmm.send(wrong.message, wrong.fds)
            if wrong.mend is not None:
                run.wait_log("paused")
                wrong.mend()
            assert run.wait() == row.exit_code
            assert row.said_in(run.log)
            assert "Traceback" not in run.log
            assert not run.handoff.exists()


@pytest.mark.parametrize("row", IN_CLIENT, ids=lambda row: row.wrong)
def test_nothing_is_left_behind(server: Process, folder: Path, row: Row) -> None:
    with provoked(row, folder) as wrong:
        if wrong.apart:
            return  # the process has ended, and that was all of it
        options = run_options(wrong, server)
        with unchanged():
            ended = session_of(wrong, options)
    assert row.said_in(f"{ended}; {ended.remedy}")
    if wrong.mend is None:
        assert ended.exit_code == row.exit_code
    else:
        assert ended.reason is Reason.NO_MEMORY


def run_options(wrong: Wrong, server: Process) -> RunOptions:
    return RunOptions(
        socket=Path(),
        data_address=wrong.data_address or server.ready["data"],
        image=wrong.image,
        session="restore",
        postcopy=Postcopy.AT_ONCE,
        background=True,
        spin_us=0,
        collapse=False,
        vmm_uid=None,
        handoff_timeout_s=None,
        attach_timeout_s=0.3,
        control_listen=Address("127.0.0.1"),
        metrics_listen=None,
        ready=Ready(),
        progress=False,
    )


def session_of(wrong: Wrong, options: RunOptions) -> PageferryError:
    """What a session on this hand-off ends with, or pauses for; all that it had is closed."""

    async def run(session: Restore) -> PageferryError:
        following = asyncio.create_task(follow(session))
        await give_up_unattached(session, options.attach_timeout_s)
        while not session.ended and session.paused is None:
            await session.changed(session.revision)
        following.cancel()
        await asyncio.wait({following})
        if session.paused is not None and session.phase is Phase.POSTCOPY:
            return PageferryError(session.paused, session.message)
        error = session.error()
        assert error is not None
        return error

    ours, theirs = socket.socketpair()
    with theirs:
        send(theirs, wrong.message, wrong.fds)
        try:
            with Vms() as vms, ours:
                session = take_over(vms, receive(ours, uids={os.geteuid()}), options)
                return asyncio.run(asyncio.wait_for(run(session), PATIENCE_S))
        except PageferryError as error:
            return error


def test_no_userfaultfd_right(folder: Path) -> None:
    """It shows in the VMM, which makes the userfaultfd: the shim ends it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1":
        pytest.skip("vm.unprivileged_userfaultfd is 1")
    (row,) = [row for row in rows() if row.wrong == IN_THE_VMM]
    with tempfile.TemporaryDirectory(prefix="pageferry-", dir="/dev/shm") as name:
        open_to_all = Path(name)
        open_to_all.chmod(0o777)
        for program in (ROOT / "native/build/pageferry-shim.so", guest_program()):
            Path(shutil.copy(program, open_to_all)).chmod(0o755)
        ended = subprocess.run(
            [open_to_all / "guest", "run", *SHAPE.options(), f"--memory=file:{name}/ram", "--bare"],
            env={
                "LD_PRELOAD": f"{name}/pageferry-shim.so",
                "PAGEFERRY_SHIM_RAM": f"{name}/ram",
                "PAGEFERRY_SHIM_SOCKET": f"{name}/handoff.sock",
            },
            user=NOBODYS_UID,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert ended.returncode == row.exit_code
    assert row.said_in(ended.stderr)
    assert len(ended.stderr.splitlines()) == 1
