# SPDX-License-Identifier: Apache-2.0
"""An orchestrator that owns one QEMU (docs/adapters.md, section 3), and can be made to stand still.

It does what it is asked for by the QEMU adapter, on its own thread, one request after another. So a test
stops a move at the very step that it is about, without a sleep and without a hook in the product:

    with Orchestrator(folder / "adapter", folder / "qmp") as owner:
        gate = owner.before("load_state")
        ...
        gate.wait()     asked for, and not begun
        gate.go()
"""

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from pageferry.host.adapter_socket import sealed
from pageferry.host.qemu import QemuVmm
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason
from tests.support.processes import PATIENCE_S

READ_BYTES: Final = 65_536
FDS_MAX: Final = 4
Act = Callable[[], None]


class Gate:
    """Passed once. A refusal is what the request is answered with."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._open = threading.Event()
        self._refusal: PageferryError | None = None

    def __call__(self) -> None:
        self._arrived.set()
        self._open.wait()
        if self._refusal is not None:
            raise self._refusal

    def wait(self) -> None:
        assert self._arrived.wait(PATIENCE_S), "nobody has asked for it"

    @property
    def arrived(self) -> bool:
        return self._arrived.is_set()

    def go(self, refusal: PageferryError | None = None) -> None:
        self._refusal = refusal
        self._open.set()

    def drop(self) -> None:
        """It is not done any more."""
        self.go(PageferryError(Reason.CANCELLED, "the orchestrator was told to let it be"))


class Orchestrator:
    """Listens from its construction on. `asked` has all requests in their order."""

    def __init__(self, path: Path, qmp_path: Path) -> None:
        self.asked: list[str] = []
        self._path = path
        self._qmp_path = qmp_path
        self._acts: dict[tuple[str, bool], Act] = {}
        self._gates: list[Gate] = []
        self._vmm: QemuVmm | None = None
        self._connection: socket.socket | None = None
        self._closing = False
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._run, name="orchestrator", daemon=True)
        self._thread.start()

    # ----------------------------------------------------------------------------------------- standing still

    def before(self, request: str) -> Gate:
        """The next such request stands still before anything of it is done."""
        return self._gate(request, done=False)

    def after(self, request: str, act: Act | None = None) -> Gate:
        """It stands still (or `act` is called) once it is done, and not answered."""
        return self._gate(request, done=True, act=act)

    def _gate(self, request: str, *, done: bool, act: Act | None = None) -> Gate:
        gate = Gate()
        self._gates.append(gate)
        self._acts[request, done] = act or gate
        return gate

    def _pass(self, request: str, *, done: bool) -> None:
        act = self._acts.pop((request, done), None)
        if act is not None:
            act()

    # ------------------------------------------------------------------------------------------- its requests

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while not self._closing:
                try:
                    self._connection, _ = self._listener.accept()
                except OSError:
                    break  # by close()
                with self._connection:
                    try:
                        self._serve(runner, self._connection)
                    except OSError:
                        continue  # whoever asked has gone
            if self._vmm is not None:
                runner.run(self._vmm.close())

    def _serve(self, runner: asyncio.Runner, connection: socket.socket) -> None:
        unread, fds = b"", []
        while True:
            while b"\n" not in unread:
                data, came, _, _ = socket.recv_fds(connection, READ_BYTES, FDS_MAX)
                fds += came
                if not data:
                    return
                unread += data
            line, _, unread = unread.partition(b"\n")
            self._answer(runner, connection, json.loads(line), fds)
            fds = []

    def _answer(
        self, runner: asyncio.Runner, connection: socket.socket, asked: dict[str, Any], fds: list[int]
    ) -> None:
        request = asked["execute"]
        self.asked.append(request)
        state: bytes | None = None
        try:
            self._pass(request, done=False)
            told, state = runner.run(self._do(request, asked["arguments"], fds))
            self._pass(request, done=True)
            answer: dict[str, Any] = {"return": told}
        except PageferryError as error:
            words = {"reason": error.reason.name, "text": error.message, "remedy": error.remedy}
            answer = {"error": words}
        finally:
            for fd in fds:
                os.close(fd)
        line = json.dumps(answer | {"id": asked["id"]}).encode() + b"\n"
        if state is None:
            connection.sendall(line)
        else:
            with sealed(state) as fd:
                socket.send_fds(connection, [line], [fd])

    async def _do(
        self, request: str, arguments: dict[str, Any], fds: list[int]
    ) -> tuple[dict[str, Any], bytes | None]:
        if request == "attach":
            return await self._attach(arguments), None
        vmm = self._vmm
        assert vmm is not None, "attach comes first"
        match request:
            case "save_state":
                state = await vmm.save_state()
                return {"bytes": len(state)}, state
            case "load_state":
                await vmm.load_state(os.pread(fds[0], arguments["bytes"], 0))
            case "pause" | "resume" | "kill":
                await getattr(vmm, request)()
            case _:
                raise PageferryError(Reason.UNSUPPORTED, f"nobody has told of {request}")
        return {}, None

    async def _attach(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._vmm is not None:
            await self._vmm.close()
            self._vmm = None
        try:
            pidfd = os.pidfd_open(arguments["pid"])
        except (ProcessLookupError, OverflowError) as error:
            raise PageferryError(Reason.NO_VMM, "the VMM has exited", "start it again") from error
        vmm = QemuVmm(self._qmp_path, pidfd=pidfd)
        os.close(pidfd)
        self._vmm = vmm
        facts = await vmm.attach(Side[arguments["side"].upper()], precopy=arguments["precopy"])
        return {
            "name": facts.name,
            "version": facts.version,
            "machine": facts.machine,
            "memory_bytes": facts.memory_bytes,
            "running": facts.running,
            "warnings": list(facts.warnings),
        }

    # ------------------------------------------------------------------------------------------------ its end

    def close(self) -> None:
        self._closing = True
        for gate in self._gates:
            gate.drop()
        for end in (self._listener, self._connection):
            if end is not None and end.fileno() >= 0:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it has ended by itself
        self._thread.join(PATIENCE_S)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
