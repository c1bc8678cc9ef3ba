# SPDX-License-Identifier: Apache-2.0
"""The adapter for a VMM that belongs to an orchestrator: it is asked, over a unix socket that it listens on.

One JSON object a line each way, the device state beside it as a memfd (docs/adapters.md). A connection that
was lost is made anew with the next request: each may be asked again.
"""

import asyncio
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pageferry.host.jsonlines import JsonLines
from pageferry.host.process import HeldProcess
from pageferry.host.vmm import VmmFacts
from pageferry.limits import DEVICE_STATE_BYTES_MAX
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason

PROTOCOL: Final = 1
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
# What each request may take; loading reads guest memory, which may still be on its way.
TIMEOUTS_S: Final[Mapping[str, float]] = {
    "attach": 10.0,
    "pause": 30.0,
    "save_state": 30.0,
    "load_state": 60.0,
    "resume": 30.0,
    "kill": 30.0,
}


class SocketVmm:
    """The orchestrator's VMM. `pidfd`: of the process that handed its memory over, or -1; held as a copy."""

    def __init__(self, path: Path, *, pidfd: int = -1) -> None:
        self._path = path
        self._process = HeldProcess(pidfd) if pidfd >= 0 else None
        self._lines: JsonLines | None = None
        self._turn = asyncio.Lock()
        self._number = 0

    async def attach(self, side: Side, *, precopy: bool = True) -> VmmFacts:
        arguments = {"protocol": PROTOCOL, "side": side.name.lower(), "precopy": precopy}
        if self._process is not None:
            arguments["pid"] = self._process.pid
        told, _ = await self._ask("attach", arguments)
        try:
            return VmmFacts(
                name=_word(told, "name"),
                machine=_word(told, "machine"),
                version=_word(told, "version"),
                memory_bytes=_number(told, "memory_bytes"),
                running=told.get("running") is True,
                warnings=tuple(map(str, told.get("warnings", []))),
                below_4g_bytes=_number(told, "below_4g_bytes"),
            )
        except (TypeError, ValueError) as error:
            raise self._malformed("attach", str(error)) from error

    async def pause(self) -> None:
        await self._ask("pause")

    async def save_state(self) -> bytes:
        _, state = await self._ask("save_state", with_state=True)
        return state

    async def load_state(self, state: bytes) -> None:
        if len(state) > DEVICE_STATE_BYTES_MAX:
            raise _too_long(len(state))
        with sealed(state) as fd:
            await self._ask("load_state", {"bytes": len(state)}, fds=[fd])

    async def resume(self) -> None:
        await self._ask("resume")

    async def kill(self) -> None:
        """The orchestrator is asked, so that it does not take it for a crash; a process that we hold is gone
        afterwards whatever it says."""
        try:
            await self._ask("kill")
        except PageferryError:
            if self._process is None:
                raise
        if self._process is not None:
            await self._process.kill()

    async def close(self) -> None:
        self._disconnect()
        if self._process is not None:
            self._process.close()
            self._process = None

    # -- one request -----------------------------------------------------------------------------------------

    async def _ask(
        self,
        request: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
        with_state: bool = False,
    ) -> tuple[dict[str, Any], bytes]:
        """What it returns, and the state that came beside it."""
        timeout_s = TIMEOUTS_S[request]
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                return await self._exchange(request, dict(arguments or {}), fds, with_state)
        except TimeoutError as error:
            raise PageferryError(
                Reason.TOO_SLOW,
                f"the orchestrator on {self._path} has not answered {request} in {timeout_s:g} s",
                "see its log",
            ) from error
        except OSError as error:
            self._disconnect()
            raise PageferryError(
                Reason.NO_VMM,
                f"the orchestrator on {self._path} has gone in the middle of {request}",
                "see its log",
            ) from error

    async def _exchange(
        self, request: str, arguments: dict[str, Any], fds: Sequence[int], with_state: bool
    ) -> tuple[dict[str, Any], bytes]:
        if self._lines is None or self._lines.closed:
            self._lines = await JsonLines.connect(self._path, "the orchestrator's socket")
        lines = self._lines
        self._number += 1
        await lines.send({"execute": request, "arguments": arguments, "id": self._number}, fds)
        while (answer := await lines.receive()).get("id") != self._number:
            _close_all(lines.take_fds())  # of an answer that came too late
        came = lines.take_fds()
        try:
            if "error" in answer:
                raise _told(request, answer["error"])
            returned = answer.get("return")
            if not isinstance(returned, dict):
                raise self._malformed(request, "return is no object")
            return returned, self._state(returned, came) if with_state else b""
        finally:
            _close_all(came)

    def _state(self, returned: Mapping[str, Any], fds: Sequence[int]) -> bytes:
        try:
            state_bytes = _number(returned, "bytes")
        except (TypeError, ValueError) as error:
            raise self._malformed("save_state", str(error)) from error
        if state_bytes > DEVICE_STATE_BYTES_MAX:
            raise _too_long(state_bytes)
        if len(fds) != 1 or not stat.S_ISREG(os.fstat(fds[0]).st_mode):
            raise self._malformed("save_state", f"{len(fds)} descriptors came, not one memfd")
        state = os.pread(fds[0], state_bytes, 0)
        if len(state) != state_bytes:
            raise self._malformed("save_state", f"{len(state)} of {state_bytes} bytes are in the memfd")
        return state

    def _malformed(self, request: str, what: str) -> PageferryError:
        return PageferryError(
            Reason.BAD_REQUEST,
            f"the orchestrator on {self._path} answers {request} wrongly: {what}",
            "let it answer as docs/adapters.md says",
        )

    def _disconnect(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None


@contextmanager
def sealed(state: bytes) -> Iterator[int]:
    """A memfd that holds it and that nobody can change."""
    fd = os.memfd_create("pageferry-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(state)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        yield fd
    finally:
        os.close(fd)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _told(request: str, error: Any) -> PageferryError:
    """In the orchestrator's words. A reason that is none of ours means: it cannot."""
    error = error if isinstance(error, dict) else {"text": str(error)}
    name = str(error.get("reason", ""))
    reason = Reason[name] if name in Reason.__members__ else Reason.UNSUPPORTED
    text = str(error.get("text") or "it does not say why")
    return PageferryError(reason, f"the orchestrator refuses {request}: {text}", str(error.get("remedy", "")))


def _word(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key, "")
    if not isinstance(value, str):
        raise TypeError(f"{key} is no string")
    return value


def _number(told: Mapping[str, Any], key: str) -> int:
    value = told.get(key, 0)
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is no whole number")
    return value


def _too_long(state_bytes: int) -> PageferryError:
    return PageferryError(
        Reason.UNSUPPORTED,
        f"a device state of {state_bytes} bytes is over {DEVICE_STATE_BYTES_MAX}",
        "keep the guest's memory out of it",
    )
