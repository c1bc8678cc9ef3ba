# SPDX-License-Identifier: Apache-2.0
"""A process held by its pidfd, and the adapter for one that is no VMM: it has memory, and no device state.

Such a process hands its memory over by itself (docs/handoff.md). The target's is stopped from attach() to
resume(): two copies of it must never run.
"""

import asyncio
import os
import select
import signal
import time
from pathlib import Path
from typing import Final

from pageferry.host.vmm import VmmFacts
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason

POLL_S: Final = 0.001
# A thread in a system call that cannot be interrupted stops after it; longer than this is a hanging disk.
STOP_S: Final = 10.0
# SIGKILL ends even a QEMU that waits for pages, in 12 ms; its memory is given back before it is gone.
KILL_S: Final = 30.0
STOPPED_STATES: Final = frozenset("Tt")
ENDED_STATES: Final = frozenset("ZX")
STILL: Final = STOPPED_STATES | ENDED_STATES


class HeldProcess:
    """Signals reach this very process or nobody, however often its number is used again."""

    def __init__(self, pidfd: int) -> None:
        """Keeps a descriptor of its own; the caller's stays the caller's."""
        self._pidfd = os.dup(pidfd)

    @property
    def pid(self) -> int:
        """As this process sees it. 0: in another PID namespace; -1: gone."""
        for line in Path(f"/proc/self/fdinfo/{self._pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
        raise PageferryError(Reason.BAD_REQUEST, "what was given as the VMM's pidfd is none")

    @property
    def ended(self) -> bool:
        """Or not held any more."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError as error:
            raise gone() from error
        except PermissionError as error:
            raise PageferryError(
                Reason.NOT_ALLOWED,
                f"may not send {number.name} to process {self.pid}",
                "run as that process's user, or as root",
            ) from error

    async def wait_ended(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not self.ended and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return self.ended

    async def kill(self) -> None:
        """Gone when this returns, and it may have been gone before."""
        if not self.ended:
            try:
                self.send(signal.SIGKILL)
            except PageferryError as error:
                if error.reason is not Reason.NO_VMM:
                    raise
        if not await self.wait_ended(KILL_S):
            raise PageferryError(
                Reason.TOO_SLOW,
                f"process {self.pid} has not ended {KILL_S:g} s after SIGKILL",
                "a system call holds it: look at its /proc entry, and at the kernel's log",
            )

    def states(self) -> frozenset[str]:
        """Of all its threads, as /proc names them. NO_VMM: it is gone."""
        found = set()
        try:
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                try:
                    stat = (task / "stat").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue  # this thread has ended since
                found.add(stat.rpartition(")")[2].split()[0])
        except FileNotFoundError as error:
            raise gone() from error
        if self.ended or found <= ENDED_STATES:
            raise gone()
        return frozenset(found)

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def gone() -> PageferryError:
    return PageferryError(Reason.NO_VMM, "the VMM has exited", "start it again")


class ProcessVmm:
    """The adapter for a plain process."""

    def __init__(self, pidfd: int) -> None:
        if pidfd < 0:
            raise PageferryError(
                Reason.UNSUPPORTED,
                "a process in another PID namespace cannot be stopped",
                "run in the same PID namespace as it, or in the host's",
            )
        self._process = HeldProcess(pidfd)

    async def attach(self, side: Side, *, precopy: bool = True) -> VmmFacts:
        states = self._process.states()
        if self._process.pid <= 0:
            raise PageferryError(
                Reason.UNSUPPORTED,
                "a process in another PID namespace cannot be seen to stand still",
                "run in the same PID namespace as it, or in the host's",
            )
        if side is Side.TARGET:
            await self.pause()
        return VmmFacts(
            name=f"process {self._process.pid}",
            machine="",
            version="",
            running=side is Side.SOURCE and not states <= STILL,
        )

    async def pause(self) -> None:
        """All its threads, the one that is in a page fault or a system call too."""
        self._process.send(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_S
        while not (states := self._process.states()) <= STILL:
            if time.monotonic() > deadline:
                raise PageferryError(
                    Reason.TOO_SLOW,
                    f"process {self._process.pid} has not stopped in {STOP_S:g} s: threads are in state "
                    f"{' '.join(sorted(states - STILL))}",
                    "a thread in state D waits for a disk or a page that does not come",
                )
            await asyncio.sleep(POLL_S)

    async def save_state(self) -> bytes:
        return b""

    async def load_state(self, state: bytes) -> None:
        if state:
            raise PageferryError(
                Reason.MISMATCH,
                f"a plain process has no device state, and {len(state)} bytes of it came",
                "name the same kind of VM at both ends",
            )

    async def resume(self) -> None:
        self._process.send(signal.SIGCONT)

    async def kill(self) -> None:
        await self._process.kill()

    async def close(self) -> None:
        self._process.close()
