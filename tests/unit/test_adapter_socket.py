# SPDX-License-Identifier: Apache-2.0
"""The socket adapter against an orchestrator that does as docs/adapters.md says, and against others."""

import array
import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pageferry.host import adapter_socket
from pageferry.host.adapter_socket import SocketVmm
from pageferry.limits import DEVICE_STATE_BYTES_MAX
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason
from tests.support.processes import leaks_nothing

__all__ = ["leaks_nothing"]
pytestmark = pytest.mark.usefixtures("leaks_nothing")
STATE = bytes(range(256)) * 1500
Reply = tuple[dict[str, Any], Sequence[int]]


class Orchestrator:
    """Owns a VM. Each connection is served until its end; `answer` may be replaced."""

    def __init__(self, path: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self.loaded = b""
        self.writable = False
        self.answer: Callable[[dict[str, Any], list[int]], Reply | None] = self.usual
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down
                return
            with connection:
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        unread, fds = b"", []
        while True:
            data, rights, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(16))
            if not data:
                return
            for _, _, content in rights:
                numbers = array.array("i")
                numbers.frombytes(content)
                fds += list(numbers)
            unread += data
            while b"\n" in unread:
                line, _, unread = unread.partition(b"\n")
                request = json.loads(line)
                self.asked.append(request)
                reply = self.answer(request, fds)
                for fd in fds:
                    os.close(fd)
                fds = []
                if reply is None:
                    return
                self._send(connection, {"id": request["id"]} | reply[0], reply[1])

    def _send(self, connection: socket.socket, reply: dict[str, Any], fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        line = json.dumps(reply).encode() + b"\n"
        connection.sendmsg([line[:7]], rights)  # a message may come in pieces
        connection.sendall(line[7:])
        for fd in fds:
            os.close(fd)

    def usual(self, request: dict[str, Any], fds: list[int]) -> Reply | None:
        if request["execute"] == "attach":
            returned = {
                "name": "acme 3",
                "machine": "m1",
                "version": "3",
                "memory_bytes": 4096,
                "running": True,
            }
            return {"return": returned | {"warnings": ["old"]}}, ()
        if request["execute"] == "save_state":
            return {"return": {"bytes": len(STATE)}}, [memfd(STATE)]
        if request["execute"] == "load_state":
            self.loaded = os.pread(fds[0], request["arguments"]["bytes"], 0)
            self.writable = not fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            assert len(self.loaded) == os.fstat(fds[0]).st_size
        return {"return": {}}, ()

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def memfd(content: bytes) -> int:
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd


@contextmanager
def orchestrator(path: Path) -> Iterator[Orchestrator]:
    made = Orchestrator(path)
    try:
        yield made
    finally:
        made.end()


def run(go: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(go, 30)

    asyncio.run(bounded())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter.sock"


def test_both_sides_of_a_move(path: Path) -> None:
    async def go() -> None:
        vmm = SocketVmm(path)
        facts = await vmm.attach(Side.SOURCE, precopy=False)
        assert (facts.name, facts.machine, facts.version) == ("acme 3", "m1", "3")
        assert facts.running
        assert facts.memory_bytes == 4096
        assert facts.warnings == ("old",)
        await vmm.pause()
        assert await vmm.save_state() == STATE
        await vmm.load_state(STATE)
        await vmm.resume()
        await vmm.kill()
        await vmm.close()

    with orchestrator(path) as owner:
        run(go())
    assert [request["execute"] for request in owner.asked] == [
        *("attach", "pause", "save_state", "load_state", "resume", "kill")
    ]
    assert owner.asked[0]["arguments"] == {"protocol": 1, "side": "source", "precopy": False}
    assert owner.loaded == STATE
    assert not owner.writable


@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (
            {"reason": "MISMATCH", "text": "other CPU", "remedy": "same CPU"},
            Reason.MISMATCH,
            "other CPU; same CPU",
        ),
        ({"reason": "SOMETHING_NEW", "text": "no"}, Reason.UNSUPPORTED, "refuses pause: no"),
        ({}, Reason.UNSUPPORTED, "it does not say why"),
        ("plainly no", Reason.UNSUPPORTED, "plainly no"),
    ],
)
def test_a_no_in_its_own_words(path: Path, error: Any, reason: Reason, text: str) -> None:
    async def go() -> None:
        vmm = SocketVmm(path)
        with pytest.raises(PageferryError) as caught:
            await vmm.pause()
        assert caught.value.reason is reason
        assert text in str(caught.value)
        await vmm.close()

    with orchestrator(path) as owner:
        owner.answer = lambda _, __: ({"error": error}, ())
        run(go())


def test_a_lost_connection_is_made_anew(path: Path) -> None:
    async def go(owner: Orchestrator) -> None:
        vmm = SocketVmm(path)
        await vmm.pause()
        owner.answer = lambda _, __: None
        with pytest.raises(PageferryError, match="gone in the middle of pause") as caught:
            await vmm.pause()
        assert caught.value.reason is Reason.NO_VMM
        owner.answer = owner.usual
        await vmm.pause()
        await vmm.close()

    with orchestrator(path) as owner:
        run(go(owner))


def test_nobody_is_there(path: Path) -> None:
    async def go() -> None:
        vmm = SocketVmm(path)
        with pytest.raises(PageferryError, match="nobody listens on the orchestrator's socket") as caught:
            await vmm.attach(Side.TARGET)
        assert caught.value.reason is Reason.NO_VMM
        with pytest.raises(PageferryError):
            await vmm.kill()
        await vmm.close()

    run(go())


def test_no_answer_in_time_and_one_that_comes_too_late(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_socket, "TIMEOUTS_S", {"save_state": 0.1, "pause": 10.0})
    waited = threading.Event()

    def late(request: dict[str, Any], fds: list[int]) -> Reply | None:
        waited.wait(10)
        owner.answer = owner.usual
        return owner.usual(request, fds)

    async def go() -> None:
        vmm = SocketVmm(path)
        with pytest.raises(PageferryError, match=r"has not answered save_state in 0\.1 s") as caught:
            await vmm.save_state()
        assert caught.value.reason is Reason.TOO_SLOW
        waited.set()
        await vmm.pause()
        await vmm.close()

    with orchestrator(path) as owner:
        owner.answer = late
        run(go())


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.mark.parametrize(
    ("returned", "make_fds", "text"),
    [
        ({"bytes": 10}, list, "0 descriptors came, not one memfd"),
        ({"bytes": 10}, lambda: [memfd(b"x"), memfd(b"y")], "2 descriptors came"),
        ({"bytes": 10}, lambda: [pipe()], "not one memfd"),
        ({"bytes": 10}, lambda: [memfd(b"short")], "5 of 10 bytes are in the memfd"),
        ({"bytes": "10"}, lambda: [memfd(b"x" * 10)], "bytes is no whole number"),
        ({"bytes": -1}, lambda: [memfd(b"x" * 10)], "bytes is no whole number"),
        ({"bytes": DEVICE_STATE_BYTES_MAX + 1}, lambda: [memfd(b"x")], "is over"),
        ([], list, "return is no object"),
    ],
)
def test_a_state_that_is_none(
    path: Path, returned: Any, make_fds: Callable[[], list[int]], text: str
) -> None:
    async def go() -> None:
        vmm = SocketVmm(path)
        with pytest.raises(PageferryError, match=text):
            await vmm.save_state()
        await vmm.close()

    with orchestrator(path) as owner:
        owner.answer = lambda _, __: ({"return": returned}, make_fds())
        run(go())


@pytest.mark.parametrize("wrong", [{"name": 3}, {"memory_bytes": "many"}, {"warnings": 5}])
def test_facts_that_are_none(path: Path, wrong: dict[str, Any]) -> None:
    async def go() -> None:
        vmm = SocketVmm(path)
        with pytest.raises(PageferryError, match="answers attach wrongly") as caught:
            await vmm.attach(Side.SOURCE)
        assert caught.value.reason is Reason.BAD_REQUEST
        await vmm.close()

    with orchestrator(path) as owner:
        owner.answer = lambda _, __: ({"return": wrong}, ())
        run(go())


def test_a_state_too_long_is_not_sent(path: Path) -> None:
    async def go() -> None:
        vmm = SocketVmm(path)
        with pytest.raises(PageferryError, match="is over") as caught:
            await vmm.load_state(bytes(DEVICE_STATE_BYTES_MAX + 1))
        assert caught.value.reason is Reason.UNSUPPORTED
        await vmm.close()

    run(go())


def test_a_held_process_is_killed_whatever_the_orchestrator_says(path: Path) -> None:
    async def go(pidfd: int, child: subprocess.Popen[bytes]) -> None:
        vmm = SocketVmm(path, pidfd=pidfd)
        await vmm.attach(Side.SOURCE)
        await vmm.kill()
        assert child.wait(0) == -signal.SIGKILL
        await vmm.close()

    with orchestrator(path) as owner, subprocess.Popen(["sleep", "60"]) as child:
        pidfd = os.pidfd_open(child.pid)
        owner.answer = lambda request, fds: (
            ({"error": {"text": "never"}}, ()) if request["execute"] == "kill" else owner.usual(request, fds)
        )
        run(go(pidfd, child))
        os.close(pidfd)
    assert owner.asked[0]["arguments"]["pid"] == child.pid
    assert owner.asked[-1]["execute"] == "kill"
