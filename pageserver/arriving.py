# SPDX-License-Identifier: Apache-2.0
"""The fault client that brings a VM's memory, as the page server sees it: on the connection of its hand-off.

Its end is no news of the VM: what has arrived is here, and what has not stays LATER.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from pageferry.host.onward import Lines, Word
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log

READ_BYTES: Final = 256


def say_accepted(connection: socket.socket) -> None:
    """To whoever has handed a VM over in its place. PageferryError: it has gone."""
    connection.setblocking(False)
    try:
        connection.sendall(Word.ACCEPTED.line)
    except OSError as error:
        raise PageferryError(
            Reason.NO_VMM, f"who has handed it over has gone: {error}", "try again"
        ) from error


class Arriving:
    """`complete`: every page is here, and the fault client waits to be let go; `going`: somebody is at that.
    The connection stays the caller's."""

    def __init__(self, vm: str, connection: socket.socket, on_complete: Callable[[], None]) -> None:
        self.complete = False
        self.going = False
        self._vm = vm
        self._connection = connection
        self._on_complete = on_complete
        self._lines = Lines()
        self._open = True

    def accept(self) -> None:
        """PageferryError: it has gone."""
        say_accepted(self._connection)
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._hear)

    def _hear(self) -> None:
        try:
            part = self._connection.recv(READ_BYTES)
            words = self._lines.take(part)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            log.warning("fault_client", vm=self._vm, text=f"{type(error).__name__}: {error}")
            part, words = b"", []
        if not part:
            self.close()
            log.warning("fault_client_gone", vm=self._vm, complete=self.complete)
        if Word.COMPLETE in words and not self.complete:
            self.complete = True
            log.info("all_here", vm=self._vm)
            self._on_complete()

    def let_go(self) -> None:
        """Nobody needs it any more."""
        if self._open:
            with suppress(OSError):  # it has gone by itself
                self._connection.sendall(Word.LET_GO.line)
        self.close()

    def close(self) -> None:
        """Nothing is heard any more."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
