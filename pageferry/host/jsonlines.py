# SPDX-License-Identifier: Apache-2.0
"""JSON objects over a unix stream socket, one a line, with file descriptors beside them.

QMP and the socket adapter speak so. Lines may be hundreds of kilobytes long (QEMU's schema is 240 kB). A
caller that gives up waiting loses nothing: what has come stays for the next one.
"""

import array
import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from pageferry.reasons import PageferryError, Reason

LINE_BYTES_MAX: Final = 8 << 20
READ_BYTES: Final = 65_536
# Descriptors in one message; more than anybody sends.
FDS_MAX: Final = 16
# A unix socket whose queue is full says so and tells nobody when it no longer is.
QUEUE_S: Final = 0.01


class JsonLines:
    """One connection, used by one task at a time. OSError: it has ended."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._unread = bytearray()
        self._fds: list[int] = []
        self._stop_waiting: Callable[[], None] | None = None

    @classmethod
    async def connect(cls, path: Path, whose: str) -> Self:
        """PageferryError: nobody listens there, or BUSY. While its queue is full this waits, without end."""
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise PageferryError(
                Reason.BUSY,
                f"no socket can be had for {whose} {path}: {error.strerror}",
                "raise the limit on open files if it is that",
            ) from error
        try:
            connection.setblocking(False)
            while True:
                try:
                    connection.connect(str(path))
                    break
                except BlockingIOError:
                    await asyncio.sleep(QUEUE_S)
        except OSError as error:
            connection.close()
            raise PageferryError(
                Reason.NO_VMM,
                f"nobody listens on {whose} {path}: {error.strerror or error}",
                "start the VMM with it, or name the right path",
            ) from error
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    @property
    def peer_pid(self) -> int:
        """Of the process that listens; 0: it is in another PID namespace."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    async def send(self, value: Any, fds: Sequence[int] = ()) -> None:
        """Whole, or the connection is over: half a line would spoil the next one."""
        line = memoryview(json.dumps(value).encode() + b"\n")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        begun = False
        try:
            while line:
                try:
                    line = line[self._socket.sendmsg([line], rights, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    await self._writable()
                    continue
                rights, begun = [], True
        except BaseException as error:
            if begun or isinstance(error, OSError):
                self.close()
            raise

    async def receive(self) -> dict[str, Any]:
        """The next object. Its descriptors, if any came, are had from take_fds."""
        searched = 0
        while (end := self._unread.find(b"\n", searched)) < 0:
            searched = len(self._unread)
            if searched > LINE_BYTES_MAX:
                self.close()
                raise ConnectionAbortedError(f"a line is longer than {LINE_BYTES_MAX} bytes")
            await self._read_more()
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            self.close()
            raise ConnectionAbortedError(f"a line is no JSON: {error}") from error
        if not isinstance(value, dict):
            self.close()
            raise ConnectionAbortedError("a line is no JSON object")
        return value

    async def _read_more(self) -> None:
        space = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
        while True:
            try:
                data, rights, _, _ = self._socket.recvmsg(READ_BYTES, space, socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                await self._readable()
        for level, kind, content in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._fds.extend(numbers)
        if not data:
            raise ConnectionResetError("the other end has closed it")
        self._unread += data

    def take_fds(self) -> list[int]:
        """Those that have come and nobody has taken; the caller closes them."""
        fds, self._fds = self._fds, []
        return fds

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._until(loop.add_reader, loop.remove_reader)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._until(loop.add_writer, loop.remove_writer)

    async def _until(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        fd = self._socket.fileno()
        if fd < 0:
            raise ConnectionResetError("it was closed")
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def stop() -> None:
            """Before the descriptor is closed: its number may be somebody else's a moment later."""
            self._stop_waiting = None
            remove(fd)
            if not ready.done():
                ready.set_exception(ConnectionResetError("it was closed"))

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self._stop_waiting = stop
        add(fd, wake)
        try:
            await ready
        finally:
            if self._stop_waiting is stop:
                self._stop_waiting = None
                remove(fd)

    def close(self) -> None:
        if self._stop_waiting is not None:
            self._stop_waiting()
        self._socket.close()
        for fd in self.take_fds():
            os.close(fd)
