# SPDX-License-Identifier: Apache-2.0
"""QMP over its unix socket, read by the line: replies may be hundreds of kilobytes long, which some
clients do not take.
"""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Reply = dict[str, Any]
RECEIVE_BYTES = 65536


class QmpError(Exception):
    """QEMU refused a command, or its socket ended or stayed silent."""


class Qmp:
    """One QMP connection, used by one thread. `events` keeps what QEMU announced, in order."""

    def __init__(self, path: Path, alive: Callable[[], None], timeout_s: float = 60) -> None:
        """Waits until QEMU has made its socket; `alive` raises when waiting is in vain."""
        self.events: list[Reply] = []
        self._unread = b""
        deadline = time.monotonic() + timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while self._socket.connect_ex(str(path)) != 0:
                alive()
                if time.monotonic() > deadline:
                    raise QmpError(f"no QMP socket at {path} within {timeout_s:g} s")
                time.sleep(0.01)
            self._receive(deadline, "greeting")
            self.command("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def command(self, name: str, *, timeout_s: float = 60, **arguments: object) -> Any:
        """Sends one command and waits for its answer: what QEMU returns. Underscores in names of arguments
        become dashes.
        """
        request: Reply = {"execute": name}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        deadline = time.monotonic() + timeout_s
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{name}: the QMP socket has ended") from error
        while True:
            reply = self._receive(deadline, name)
            if "error" in reply:
                raise QmpError(f"{name}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]
            self.events.append(reply)

    def _receive(self, deadline: float, what: str) -> Reply:
        pieces = [self._unread]
        while b"\n" not in pieces[-1]:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                piece = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError as error:
                raise QmpError(f"{what}: no answer in time") from error
            except OSError as error:
                raise QmpError(f"{what}: the QMP socket has ended") from error
            if not piece:
                raise QmpError(f"{what}: the QMP socket has ended")
            pieces.append(piece)
        line, _, self._unread = b"".join(pieces).partition(b"\n")
        reply: Reply = json.loads(line)
        return reply

    def close(self) -> None:
        self._socket.close()
