# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy before the data port that can do what networks do: hold, lose, reset, and change bytes.

    with Proxy(server.ready["data"]) as proxy:
        client(folder, proxy.address)
        proxy.flip_pages(1)      one bit of the page bytes in the next batch that has any
        proxy.allow(1 << 20)     so many more bytes towards the client, then nothing moves
        proxy.hold()             nothing moves either way until release(), and no byte is lost
        proxy.strand()           nothing ever moves on the present connections, and they stay: half-open links
        proxy.reset()            RST to both ends;   proxy.cut()   FIN
        proxy.target = "..."     where the next connection leads

It runs on its own thread. Bits are flipped inside the pages of a PageBatch only: HTTP/2 frames and the
protobuf in them are followed to find those, and pass as they are.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from tests.support.processes import PATIENCE_S

READ_BYTES: Final = 65_536
FRAME_HEAD_BYTES: Final = 9
FRAME_DATA: Final = 0
PREFIX_BYTES: Final = 5  # of a gRPC message: a flag, and its length
DATA_TAG: Final = 15 << 3 | 2  # PageBatch.data
SKIPPED: Final = {1: 8, 5: 4}  # wire types of a fixed length
RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Span = tuple[int, int]
T = TypeVar("T")


@dataclass(slots=True)
class Messages:
    """One stream's gRPC messages: where in it the bytes of pages lie."""

    _head: bytearray = field(default_factory=bytearray)
    _left: int = 0  # of the message
    _skip: int = 0  # of the field
    _pages: bool = False  # it is the one with the pages
    _tag: int | None = None
    _varint: int = 0
    _shift: int = 0

    def feed(self, data: bytes) -> list[Span]:
        spans = []
        at = 0
        while at < len(data):
            if self._skip:
                taken = min(self._skip, len(data) - at)
                if self._pages:
                    spans.append((at, at + taken))
                self._skip -= taken
                at += taken
            else:
                self._step(data[at])
                at += 1
        return spans

    def _step(self, byte: int) -> None:
        if self._left == 0:
            self._head.append(byte)
            if len(self._head) == PREFIX_BYTES:
                self._left = int.from_bytes(self._head[1:], "big")
                self._head.clear()
            return
        self._left -= 1
        self._varint |= (byte & 0x7F) << self._shift
        self._shift += 7
        if byte < 0x80:
            self._take(self._varint)
            self._varint = self._shift = 0

    def _take(self, value: int) -> None:
        """A varint is complete: a tag, a length, or a value that is passed over."""
        if self._tag is None:
            self._skip = SKIPPED.get(value & 7, 0)
            self._pages = False
            self._tag = value if value & 7 in (0, 2) else None
        else:
            self._skip = value if self._tag & 7 == 2 else 0
            self._pages = self._tag == DATA_TAG
            self._tag = None
        self._left -= self._skip


@dataclass(slots=True)
class Frames:
    """One direction of an HTTP/2 connection, from server to client."""

    _head: bytearray = field(default_factory=bytearray)
    _left: int = 0
    _stream: Messages | None = None
    _streams: dict[int, Messages] = field(default_factory=dict)

    def feed(self, data: bytes) -> list[Span]:
        """Where in it the bytes of pages lie."""
        spans = []
        at = 0
        while at < len(data):
            if self._left == 0:
                taken = min(FRAME_HEAD_BYTES - len(self._head), len(data) - at)
                self._head += data[at : at + taken]
                if len(self._head) == FRAME_HEAD_BYTES:
                    self._begin(bytes(self._head))
                    self._head.clear()
            else:
                taken = min(self._left, len(data) - at)
                if self._stream is not None:
                    found = self._stream.feed(data[at : at + taken])
                    spans += [(at + first, at + end) for first, end in found]
                self._left -= taken
            at += taken
        return spans

    def _begin(self, head: bytes) -> None:
        self._left = int.from_bytes(head[:3], "big")
        number = int.from_bytes(head[5:], "big") & 0x7FFF_FFFF
        self._stream = self._streams.setdefault(number, Messages()) if head[3] == FRAME_DATA else None


@dataclass(slots=True)
class Counts:
    """Bytes are counted when they have been passed on."""

    connections: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    page_bytes: int = 0
    flips: int = 0


class Proxy:
    """Listens on a free port of loopback from its construction on."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.counts = Counts()
        self.delay_s = 0.0  # of every piece, towards the client
        self._flips_left = 0
        self._allowance: int | None = None  # bytes towards the client; None: any
        self._dry = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._stranded: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._open = self._call(asyncio.Event)
        self._open.set()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0), self._loop
        ).result(PATIENCE_S)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    def _call(self, function: Callable[[], T]) -> T:
        """Runs it on the proxy's thread."""

        async def called() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(PATIENCE_S)

    # ------------------------------------------------------------------------------------------------ passing

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        self._writers.add(writer)
        try:
            there, to_server = await asyncio.open_connection(host, int(port))
        except OSError:
            self._lose(writer)
            return
        self._writers.add(to_server)
        self.counts.connections += 1
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._up(reader, to_server))
                both.create_task(self._down(there, writer))
        except asyncio.CancelledError:
            pass  # by close(); asyncio would report it as an error of this task, which ends here anyway
        finally:
            self._lose(writer)
            self._lose(to_server)

    def _lose(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                await self._open.wait()
                await self._pass(writer, data)
                self.counts.up_bytes += len(data)
        except ConnectionError:
            pass  # one end is gone: then so is the other
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames()
        try:
            while data := await reader.read(READ_BYTES):
                await asyncio.sleep(self.delay_s)
                data = self._changed(data, frames.feed(data))
                while data:
                    await self._open.wait()
                    if writer.is_closing():
                        return
                    passed = data[: self._allowance]
                    self._spend(len(passed))
                    await self._pass(writer, passed)
                    data = data[len(passed) :]
        except ConnectionError:
            pass
        writer.close()

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if writer in self._stranded:
            await asyncio.get_running_loop().create_future()  # for ever
        writer.write(data)
        await writer.drain()

    def _spend(self, count: int) -> None:
        self.counts.down_bytes += count
        if self._allowance is not None:
            self._allowance -= count
            if self._allowance == 0:
                self._open.clear()
                self._dry.set()

    def _changed(self, data: bytes, pages: list[Span]) -> bytes:
        """Flips one bit in each stretch of page bytes while there are flips left."""
        changed = bytearray(data)
        for first, end in pages:
            self.counts.page_bytes += end - first
            if self._flips_left:
                self._flips_left -= 1
                self.counts.flips += 1
                changed[(first + end) // 2] ^= 1 << (self.counts.flips % 8)
        return bytes(changed)

    # ----------------------------------------------------------------------------------------------- disorder

    def flip_pages(self, count: int) -> None:
        """One bit in each of the next `count` stretches of page bytes (each of a DATA frame, or a part)."""
        self._call(lambda: setattr(self, "_flips_left", count))

    def allow(self, count: int) -> None:
        """So many bytes more towards clients, on all connections together; then it holds."""

        def change() -> None:
            self._allowance = count
            self._dry.clear()
            self._open.set()

        self._call(change)

    def wait_dry(self) -> None:
        """Until what was allowed is used up: from then on nothing moves."""
        assert self._dry.wait(PATIENCE_S), "the allowance was not used up"

    def hold(self) -> None:
        self._call(self._open.clear)

    def strand(self) -> None:
        self._call(lambda: self._stranded.update(self._writers))

    def release(self) -> None:
        """Everything moves again."""

        def change() -> None:
            self._allowance = None
            self._open.set()

        self._call(change)

    def reset(self) -> None:
        def change() -> None:
            for writer in list(self._writers):
                end: socket.socket = writer.get_extra_info("socket")
                if end.fileno() >= 0:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
                writer.transport.abort()

        self._call(change)

    def cut(self) -> None:
        def change() -> None:
            for writer in list(self._writers):
                writer.close()

        self._call(change)

    # ------------------------------------------------------------------------------------------------ its end

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
