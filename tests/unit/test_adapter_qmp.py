# SPDX-License-Identifier: Apache-2.0
"""QMP as QEMU speaks it and as a broken one would: long lines, events between, late answers, the end."""

import asyncio
import errno
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pageferry.host import jsonlines, qmp
from pageferry.host.qmp import Qmp, QmpRefusalError
from pageferry.reasons import PageferryError, Reason
from tests.support.processes import leaks_nothing

__all__ = ["leaks_nothing"]
pytestmark = pytest.mark.usefixtures("leaks_nothing")
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
Answer = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(path: Path, answer: Answer, greeting: bytes = GREETING) -> AsyncIterator[None]:
    """A QEMU whose monitor answers qmp_capabilities as it should and all else by `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        while line := await reader.readline():
            request = json.loads(line)
            if request["execute"] == "qmp_capabilities":
                reply(writer, request, {})
            else:
                await answer(request, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        await asyncio.sleep(0.01)  # serve() sees the end


def reply(writer: asyncio.StreamWriter, request: dict[str, Any], returned: Any) -> None:
    writer.write(json.dumps({"return": returned, "id": request["id"]}).encode() + b"\r\n")


def run(go: Callable[[Path], Awaitable[None]], path: Path) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(go(path), 30)

    asyncio.run(bounded())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp"


def test_long_answers_and_events_between(path: Path) -> None:
    schema = [{"name": f"command-{number}", "meta-type": "command"} for number in range(8000)]

    async def answer(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n')
        reply(writer, request, schema if request["execute"] == "query-qmp-schema" else request["arguments"])

    async def go(path: Path) -> None:
        async with listening(path, answer):
            monitor = await Qmp.connect(path)
            assert len(json.dumps(schema)) > 250_000
            assert await monitor.execute("query-qmp-schema") == schema
            both = await asyncio.gather(*(monitor.execute("x", {"n": number}) for number in range(2)))
            assert both == [{"n": 0}, {"n": 1}]
            monitor.close()

    run(go, path)


def test_a_no_is_in_qemus_words(path: Path) -> None:
    async def answer(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        error = {"class": "GenericError", "desc": "State blocked by non-migratable device 'x'"}
        writer.write(json.dumps({"error": error, "id": request["id"]}).encode() + b"\n")

    async def go(path: Path) -> None:
        async with listening(path, answer):
            monitor = await Qmp.connect(path)
            with pytest.raises(QmpRefusalError, match="refuses migrate: State blocked") as caught:
                await monitor.execute("migrate")
            assert caught.value.words == "State blocked by non-migratable device 'x'"
            assert not monitor.closed
            monitor.close()

    run(go, path)


def test_an_answer_that_comes_too_late_is_nobodys(path: Path) -> None:
    late: list[tuple[dict[str, Any], asyncio.StreamWriter]] = []

    async def answer(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if request["execute"] == "stop":
            late.append((request, writer))
            writer.write(b'{"ret')  # and half of a line
        else:
            writer.write(b'urn": "late", "id": %d}\n' % late[0][0]["id"])
            reply(writer, request, "in time")

    async def go(path: Path) -> None:
        async with listening(path, answer):
            monitor = await Qmp.connect(path)
            with pytest.raises(PageferryError, match=r"has not answered stop in 0\.05 s") as caught:
                await monitor.execute("stop", timeout_s=0.05)
            assert caught.value.reason is Reason.TOO_SLOW
            assert await monitor.execute("query-status") == "in time"
            monitor.close()

    run(go, path)


def test_the_end_in_the_middle(path: Path) -> None:
    async def answer(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"return": ')
        writer.close()

    async def go(path: Path) -> None:
        async with listening(path, answer):
            monitor = await Qmp.connect(path)
            for _ in range(2):
                with pytest.raises(PageferryError, match="QEMU has ended") as caught:
                    await monitor.execute("query-status")
                assert caught.value.reason is Reason.NO_VMM
            assert monitor.closed

    run(go, path)


def test_closed_while_somebody_waits(path: Path) -> None:
    async def answer(_: dict[str, Any], __: asyncio.StreamWriter) -> None:
        pass

    async def go(path: Path) -> None:
        async with listening(path, answer):
            monitor = await Qmp.connect(path)
            waiting = asyncio.create_task(monitor.execute("stop"))
            await asyncio.sleep(0.01)
            monitor.close()
            with pytest.raises(PageferryError, match="QEMU has ended"):
                await waiting

    run(go, path)


@pytest.mark.parametrize(
    ("greeting", "sentence", "reason"),
    [
        (b'{"hello": 1}\n', "is no QMP socket", Reason.BAD_REQUEST),
        (b"SSH-2.0-OpenSSH\r\n", "QEMU has ended, or has closed", Reason.NO_VMM),
        (b"[1]\n", "QEMU has ended, or has closed", Reason.NO_VMM),
        (b"x" * 5000 + b"\n", "QEMU has ended, or has closed", Reason.NO_VMM),
        (b"", "does not greet", Reason.TOO_SLOW),
    ],
)
def test_what_is_no_monitor(
    path: Path, greeting: bytes, sentence: str, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "COMMAND_S", 0.1)
    monkeypatch.setattr(jsonlines, "LINE_BYTES_MAX", 4096)

    async def answer(_: dict[str, Any], __: asyncio.StreamWriter) -> None:
        pass

    async def go(path: Path) -> None:
        async with listening(path, answer, greeting):
            with pytest.raises(PageferryError, match=sentence) as caught:
                await Qmp.connect(path)
            assert caught.value.reason is reason

    run(go, path)


def test_no_descriptor_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def go(path: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", full)
            with pytest.raises(PageferryError, match="Too many open files; raise the limit") as caught:
                await Qmp.connect(path)
        assert caught.value.reason is Reason.BUSY

    run(go, path)


def test_nobody_listens_or_the_queue_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "COMMAND_S", 0.1)

    async def go(path: Path) -> None:
        for expected in ("No such file", "Connection refused"):
            with pytest.raises(PageferryError, match=expected) as caught:
                await Qmp.connect(path)
            assert caught.value.reason is Reason.NO_VMM
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                if not path.exists():
                    dead.bind(str(path))
        path.unlink()
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first,
        ):
            listener.bind(str(path))
            listener.listen(0)
            first.connect(str(path))
            with pytest.raises(PageferryError, match="somebody else is connected"):
                await Qmp.connect(path)

    run(go, path)
