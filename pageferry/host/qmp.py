# SPDX-License-Identifier: Apache-2.0
"""QMP, QEMU's monitor, as far as a move needs it: one command at a time, each with its time limit.

A QEMU whose pages do not come answers some commands and hangs in others (`stop`, `quit`) for ever; so
nothing here waits without end, and an answer that comes too late is known by its id and dropped. Events are
not looked at.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from pageferry.host.jsonlines import JsonLines
from pageferry.reasons import PageferryError, Reason

# The greeting, and any command that only looks or sets: QEMU answers in 1 ms, unless it hangs.
COMMAND_S: Final = 10.0


class QmpRefusalError(PageferryError):
    """QEMU's own no; `words` are its."""

    def __init__(self, command: str, words: str) -> None:
        super().__init__(Reason.UNSUPPORTED, f"QEMU refuses {command}: {words}")
        self.words = words


class Qmp:
    """A connection to a QMP socket, past its greeting. Calls of several tasks take turns.

    PageferryError: QmpRefusalError, TOO_SLOW, or NO_VMM when QEMU has ended.
    """

    def __init__(self, lines: JsonLines, path: Path) -> None:
        self._lines = lines
        self._path = path
        self._turn = asyncio.Lock()
        self._number = 0

    @classmethod
    async def connect(cls, path: Path) -> Self:
        try:
            async with asyncio.timeout(COMMAND_S):
                qmp = cls(await JsonLines.connect(path, "QEMU's QMP socket"), path)
                try:
                    await qmp._begin()
                except BaseException:
                    qmp.close()
                    raise
        except TimeoutError as error:
            raise PageferryError(
                Reason.TOO_SLOW,
                f"QEMU does not greet on {path}: somebody else is connected to it, or QEMU hangs",
                "a QMP socket takes one at a time: give QEMU a -qmp socket of its own for this",
            ) from error
        return qmp

    async def _begin(self) -> None:
        try:
            greeting = await self._lines.receive()
        except OSError as error:
            raise self.ended() from error
        if "QMP" not in greeting:
            raise PageferryError(
                Reason.BAD_REQUEST, f"{self._path} is no QMP socket", "name the one that QEMU's -qmp made"
            )
        await self.execute("qmp_capabilities")

    @property
    def peer_pid(self) -> int:
        return self._lines.peer_pid

    @property
    def closed(self) -> bool:
        return self._lines.closed

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fd: int | None = None,
        timeout_s: float = COMMAND_S,
    ) -> Any:
        """What QEMU returns. `fd` goes beside the command, as getfd wants it."""
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                return await self._execute(command, arguments, fd)
        except TimeoutError as error:
            raise PageferryError(
                Reason.TOO_SLOW,
                f"QEMU has not answered {command} in {timeout_s:g} s",
                "it hangs if its pages do not come: only SIGKILL ends it then",
            ) from error
        except OSError as error:
            self._lines.close()
            raise self.ended() from error

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None, fd: int | None) -> Any:
        if self.closed:
            raise ConnectionResetError("it was closed")
        self._number += 1
        number = self._number
        request = {"execute": command, "id": number} | ({"arguments": dict(arguments)} if arguments else {})
        await self._lines.send(request, [] if fd is None else [fd])
        while True:
            answer = await self._lines.receive()
            if answer.get("id") != number:
                continue  # an event, or what nobody waits for any more
            if "error" in answer:
                raise QmpRefusalError(command, str(answer["error"].get("desc", answer["error"])))
            return answer.get("return")

    def ended(self) -> PageferryError:
        return PageferryError(
            Reason.NO_VMM, f"QEMU has ended, or has closed {self._path}", "its own log says why"
        )

    def close(self) -> None:
        self._lines.close()
