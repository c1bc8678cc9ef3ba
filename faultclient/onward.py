# SPDX-License-Identifier: Apache-2.0
"""Hands a VM that runs here on to this host's page server, so that it can move on before it has arrived.

The conversation is in pageferry/host/onward.py, the reasons are in docs/chain.md. Once every page is here the
page server says when we may go: it makes the registration its own then. While it is not there, or has refused
the VM, it is asked again; only when this process is told to end, and nobody has the VM, does nobody need to.
"""

import asyncio
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final, Protocol

from faultclient.pager import PagerFds
from pageferry.host.handoff import Handoff, Region, Role
from pageferry.host.onward import Lines, Word, message
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log

RETRY_S: Final = 0.25
RETRY_S_MAX: Final = 5.0  # of one that refuses it, or is not there: doubled up to this
READ_BYTES: Final = 256


def check_onward(handoff: Handoff) -> None:
    """Of a VM that is to be handed on. PageferryError: it cannot be."""
    if handoff.role is not Role.BOTH or not handoff.shared:
        raise PageferryError(
            Reason.BAD_REQUEST,
            f"this VM is to move on from here, and has handed over with the role {handoff.role.value}",
            "start it under the shim with PAGEFERRY_SHIM_ROLE=both, or leave out onward=",
        )
    if handoff.pid <= 0 or handoff.pidfd < 0:
        raise PageferryError(
            Reason.UNSUPPORTED,
            "the VMM is in another PID namespace: what it writes cannot be seen from here",
            "run the fault client in its PID namespace, or in the host's",
        )


class Holder(Protocol):
    """The pager of the VM."""

    def fds(self) -> PagerFds: ...


class Onward:
    """Of one VM. `kept`: the page server has made the registration its own."""

    def __init__(
        self,
        vm: str,
        path: Path,
        *,
        pager: Holder,
        regions: tuple[Region, ...],
        pid: int,
        leaving: asyncio.Event,
    ) -> None:
        """`leaving`: this process is told to end."""
        self.kept = False
        self._vm = vm
        self._path = path
        self._pager = pager
        self._message = message(regions, pid)
        self._leaving = leaving
        self._arrived = asyncio.Event()
        self._said = ""
        self._retry_s = RETRY_S

    def arrived(self) -> None:
        """Every page is here, and none of them poisoned: from now on somebody else may answer faults."""
        self._arrived.set()

    async def run(self) -> None:
        """Until we may go. The pager stays open meanwhile."""
        while not (self._arrived.is_set() and self._leaving.is_set()):
            try:
                await self._try()
            except (OSError, ValueError) as error:
                self._say(f"{type(error).__name__}: {error}")
            if self.kept:
                log.info("let_go", vm=self._vm, because="the page server has it")
                return
            await first_of(asyncio.sleep(self._retry_s), self._both())
            self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)
        log.warning("not_handed_on", vm=self._vm, because="no page server has it, and this process ends")

    async def _both(self) -> None:
        await self._arrived.wait()
        await self._leaving.wait()

    def _say(self, why: str) -> None:
        if why != self._said:
            log.warning("onward_waits", vm=self._vm, socket=str(self._path), text=why)
        self._said = why

    async def _try(self) -> None:
        """One connection, from its hand-off to its end."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.setblocking(False)
            connection.connect(str(self._path))
            fds = self._pager.fds()
            table = open_for_reading(fds.table)
            try:
                handed = [fds.uffd, fds.ram, table.fileno(), fds.pidfd]
                sent = socket.send_fds(connection, [self._message], handed, socket.MSG_NOSIGNAL)
            finally:
                table.close()
            if sent != len(self._message):
                raise OSError("the hand-off was cut")
            await self._converse(connection)

    async def _converse(self, connection: socket.socket) -> None:
        hearing = Hearing(connection)
        if await hearing.next() is not Word.ACCEPTED:
            self._say("the page server has refused this VM: see its log")
            return
        log.info("handed_on", vm=self._vm, socket=str(self._path))
        self._said, self._retry_s = "", RETRY_S
        answer = asyncio.ensure_future(hearing.next())
        try:
            await first_of(asyncio.shield(answer), self._arrived.wait())
            if not answer.done():
                await asyncio.get_running_loop().sock_sendall(connection, Word.COMPLETE.line)
            self.kept = await answer is Word.LET_GO
        finally:
            answer.cancel()
        if not self.kept:
            self._say("the page server has gone")


class Hearing:
    """Words of the other end, one after another; None: it has ended."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = Lines()
        self._words: list[Word] = []

    async def next(self) -> Word | None:
        while not self._words:
            try:
                part = await asyncio.get_running_loop().sock_recv(self._connection, READ_BYTES)
            except ConnectionError:
                part = b""
            if not part:
                return None
            self._words = self._lines.take(part)
        return self._words.pop(0)


def open_for_reading(fd: int) -> Any:
    """The same file anew: whoever gets it cannot write."""
    return Path(f"/proc/self/fd/{fd}").open("rb", buffering=0)


async def first_of(*awaited: Awaitable[Any]) -> None:
    """The others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in awaited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
