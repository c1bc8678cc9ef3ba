# SPDX-License-Identifier: Apache-2.0
"""The adapter for an unmodified QEMU, from 7.2 on, over its QMP socket.

The state of devices and CPUs is a migration of everything but the guest's RAM file (the capability
x-ignore-shared), over a socket pair of ours whose other end QEMU gets through QMP: no path, no permission, no
name in anybody's file system. A running migration's names of states grow with QEMU's versions, so all but the
ends mean "not yet".

"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pageferry.host import qemu_checks as checks
from pageferry.host.process import HeldProcess, gone
from pageferry.host.qemu_settings import Settings
from pageferry.host.qmp import COMMAND_S, Qmp, QmpRefusalError
from pageferry.host.vmm import VmmFacts
from pageferry.limits import DEVICE_STATE_BYTES_MAX
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason

OLDEST: Final = (7, 2)
POLL_S: Final = 0.001
# `stop` waits for block I/O that is under way, `cont` may take locks of images.
STOP_S: Final = 30.0
SAVE_S: Final = 30.0
# Loading reads guest memory: up to some dozens of pages come from the other host meanwhile.
LOAD_S: Final = 60.0
# A QEMU that could not load exits a moment after its sockets have ended.
EXIT_S: Final = 5.0
READ_BYTES: Final = 1 << 20
STATE_FD: Final = "pageferry-state"
# The device state of a guest without RAM in it: 0.3 MB on pc and q35.
STATE_BYTES: Final = 1 << 20
# "QEVM", version 3 of the stream, and the mark of the section that names the machine type.
STATE_HEAD: Final = b"QEVM\0\0\0\3\7"
MACHINE_BYTES_MAX: Final = 100
ENDS: Final = ("completed", "failed", "cancelled")
LIKE: Final = "start the target's QEMU as the source's: machine type, CPU, devices in the same order, memory"
ANNOUNCE: Final = {"initial": 50, "max": 550, "rounds": 5, "step": 100}


class QemuVmm:
    """One QEMU, at one side of one move after another."""

    def __init__(self, qmp_path: Path, *, pidfd: int = -1) -> None:
        """`pidfd`: of the process that handed its memory over; a copy is kept. -1: whoever listens on the QMP
        socket is believed to be it."""
        self._path = qmp_path
        self._process = HeldProcess(pidfd) if pidfd >= 0 else None
        self._qmp: Qmp | None = None
        self._side = Side.SOURCE
        self._stopped = False  # by us
        self._was_paused = False  # and not by us: it stays so
        self._machine = ""
        self._memory_bytes = 0
        self._exit_on_error = False  # migrate-incoming knows the argument
        self._settings = Settings()

    # -- attach ----------------------------------------------------------------------------------------------

    async def attach(self, side: Side, *, precopy: bool = True) -> VmmFacts:
        self._side = side
        qmp = await self._connect()
        try:
            return await self._look(qmp, side, precopy)
        except BaseException:
            await self._disconnect()
            raise

    async def _connect(self) -> Qmp:
        if self._qmp is None or self._qmp.closed:
            qmp = await Qmp.connect(self._path)
            try:
                self._hold(qmp.peer_pid)
            except BaseException:
                qmp.close()
                raise
            self._qmp = qmp
        return self._qmp

    def _hold(self, qmp_pid: int) -> None:
        """The process on the QMP socket must be that of the hand-off: otherwise one VM would be stopped, and
        another one moved."""
        if self._process is None:
            if qmp_pid <= 0:
                raise checks.refused(
                    "QEMU is in another PID namespace, so that it cannot be held or killed",
                    "run in the same PID namespace as it, or in the host's",
                )
            try:
                fd = os.pidfd_open(qmp_pid)
            except ProcessLookupError as error:
                raise gone() from error
            self._process = HeldProcess(fd)
            os.close(fd)
        if self._process.ended:
            raise gone()
        if qmp_pid > 0 and self._process.pid > 0 and self._process.pid != qmp_pid:
            raise checks.refused(
                f"process {qmp_pid} listens on {self._path}, but process {self._process.pid} has handed its "
                "memory over",
                "name the QMP socket of that VM, one that its QEMU has made itself",
                Reason.MISMATCH,
            )

    async def _look(self, qmp: Qmp, side: Side, precopy: bool) -> VmmFacts:
        told = (await qmp.execute("query-version"))["qemu"]
        version = (int(told["major"]), int(told["minor"]), int(told["micro"]))
        text = ".".join(map(str, version))
        if version < OLDEST:
            raise checks.refused(f"QEMU {text} is too old", "use QEMU 7.2 or newer")
        status = await self._check_status(qmp, side)
        assert self._process is not None
        view = checks.ProcessView.of(self._process.pid)
        warnings: list[str] = []
        self._machine = await checks.machine_type(qmp, view.command_line, warnings)
        self._memory_bytes = await checks.memory_bytes(qmp, version)
        checks.check_process(view, self._memory_bytes, warnings)
        below_4g_bytes = await checks.below_4g_bytes(qmp, self._machine, self._memory_bytes)
        await checks.check_devices(qmp)
        await checks.check_blocks(qmp, precopy=precopy and side is Side.SOURCE)
        if side is Side.SOURCE:
            await checks.check_blockers(qmp)
        else:  # at the source this would hold the guest up for a moment: the answer has 240 kB
            schema = await qmp.execute("query-qmp-schema")
            self._exit_on_error = takes(schema, "migrate-incoming", "exit-on-error")
        await self._settings.set(qmp, late_activation=side is Side.TARGET)
        return VmmFacts(
            name=f"qemu {text}",
            machine=self._machine,
            version=text,
            memory_bytes=self._memory_bytes,
            running=status == "running",
            warnings=tuple(warnings),
            below_4g_bytes=below_4g_bytes,
        )

    async def _check_status(self, qmp: Qmp, side: Side) -> str:
        status = str((await qmp.execute("query-status"))["status"])
        migration = await qmp.execute("query-migrate")
        if side is Side.SOURCE:
            if status not in ("running", "paused"):
                raise checks.refused(
                    f"the guest is in state {status}: it can be moved while it runs or is paused",
                    "let it run (cont)",
                    Reason.WRONG_PHASE,
                )
            if migration.get("status", "none") not in ("none", *ENDS):
                raise checks.refused(
                    f"QEMU is in a migration already ({migration['status']})",
                    "wait for its end, or migrate_cancel it",
                    Reason.BUSY,
                )
        elif status != "inmigrate" or migration:
            raise checks.refused(
                f"the target's QEMU does not wait for a guest (it is in state {status}"
                f"{', and listens already' if status == 'inmigrate' else ''})",
                "start it with -incoming defer, anew for each move",
                Reason.WRONG_PHASE,
            )
        return status

    # -- source ----------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        qmp = self._attached()
        status = (await qmp.execute("query-status"))["status"]
        if status == "running":
            self._stopped, self._was_paused = True, False
            await qmp.execute("stop", timeout_s=STOP_S)
        elif status == "paused":
            self._was_paused = not self._stopped
        elif status != "postmigrate":
            raise checks.refused(
                f"the guest went into state {status} meanwhile", "let it run (cont)", Reason.WRONG_PHASE
            )

    async def save_state(self) -> bytes:
        qmp = self._attached()
        deadline = time.monotonic() + SAVE_S
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            await self._give_fd(qmp, theirs)
            await qmp.execute("migrate", {"uri": f"fd:{STATE_FD}"})
            theirs.close()
            state = await self._collect(ours, deadline)
        told = await self._await_end(qmp, deadline)
        if told.get("status") != "completed":
            raise checks.refused(
                f"QEMU could not save the guest's state: {words(told)}", "see QEMU's log", Reason.UNSUPPORTED
            )
        others = int(told.get("ram", {}).get("total", 0))  # firmware and video memory: not the guest's RAM
        if others >= self._memory_bytes > 0 or len(state) > STATE_BYTES + others:
            raise has_ram(len(state))
        return state

    async def _collect(self, connection: socket.socket, deadline: float) -> bytes:
        connection.setblocking(False)
        state = bytearray()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                while piece := await loop.sock_recv(connection, READ_BYTES):
                    state += piece
                    if len(state) > DEVICE_STATE_BYTES_MAX:
                        raise has_ram(len(state))
        except TimeoutError as error:
            raise too_slow("save", SAVE_S) from error
        return bytes(state)

    # -- target ----------------------------------------------------------------------------------------------

    async def load_state(self, state: bytes) -> None:
        if len(state) > DEVICE_STATE_BYTES_MAX:
            raise has_ram(len(state))
        qmp = self._attached()
        if (saved_as := machine_of(state)) not in (None, self._machine):
            raise checks.refused(
                f"the guest's state is of a {saved_as}, and this QEMU is a {self._machine}",
                LIKE,
                Reason.MISMATCH,
            )
        deadline = time.monotonic() + LOAD_S
        arguments: dict[str, Any] = {"uri": f"fd:{STATE_FD}"}
        if self._exit_on_error:
            arguments["exit-on-error"] = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with ours, theirs:
                await self._give_fd(qmp, theirs)
                await qmp.execute("migrate-incoming", arguments)
                theirs.close()
                await self._feed(ours, state, deadline)
                told = await self._await_end(qmp, deadline)
        except PageferryError as error:
            if error.reason is Reason.NO_VMM:
                raise await self._not_loaded() from error
            raise
        if told.get("status") != "completed":
            raise checks.refused(f"QEMU cannot load the guest's state: {words(told)}", LIKE, Reason.MISMATCH)

    async def _feed(self, connection: socket.socket, state: bytes, deadline: float) -> None:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                # one that gives up closes its end: the outcome is told by query-migrate
                with suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_sendall(connection, state)
                    connection.shutdown(socket.SHUT_WR)
        except TimeoutError as error:
            raise too_slow("load", LOAD_S) from error

    async def _not_loaded(self) -> PageferryError:
        """Before exit-on-error (9.1) a QEMU that cannot load says why on its stderr, and exits."""
        assert self._process is not None
        if await self._process.wait_ended(EXIT_S):
            return checks.refused(
                "QEMU could not load the guest's state and has exited; why is in its own log",
                LIKE,
                Reason.MISMATCH,
            )
        return checks.refused("QEMU has closed its QMP socket while it loaded", "see its log", Reason.NO_VMM)

    # -- both ------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        qmp = await self._connect()
        if self._side is Side.TARGET:
            await qmp.execute("cont", timeout_s=STOP_S)
            # The guest runs, whatever comes of this: QEMU has announced it once by itself.
            with suppress(QmpRefusalError):
                await qmp.execute("announce-self", ANNOUNCE)
            await self._disconnect()
            return
        await self._end_migration(qmp)
        status = (await qmp.execute("query-status"))["status"]
        if status != "running" and not self._was_paused:
            await qmp.execute("cont", timeout_s=STOP_S)
        self._stopped = False

    async def _end_migration(self, qmp: Qmp) -> None:
        """A save that was given up in the middle."""
        told = await qmp.execute("query-migrate")
        if told.get("status", "none") not in ("none", *ENDS):
            await qmp.execute("migrate_cancel")
            await self._await_end(qmp, time.monotonic() + SAVE_S)

    async def kill(self) -> None:
        if self._process is None:
            await self._connect()
        assert self._process is not None
        await self._process.kill()
        if self._qmp is not None:
            self._qmp.close()

    async def _disconnect(self) -> None:
        qmp, self._qmp = self._qmp, None
        if qmp is None:
            return
        try:
            await self._settings.give_back(qmp)
        finally:
            qmp.close()

    async def close(self) -> None:
        await self._disconnect()
        if self._process is not None:
            self._process.close()
            self._process = None

    def _attached(self) -> Qmp:
        if self._qmp is None or self._qmp.closed:
            raise PageferryError(
                Reason.NO_VMM, f"there is no connection to QEMU on {self._path}", "attach to it first"
            )
        return self._qmp

    async def _give_fd(self, qmp: Qmp, theirs: socket.socket) -> None:
        await qmp.execute("getfd", {"fdname": STATE_FD}, fd=theirs.fileno())

    async def _await_end(self, qmp: Qmp, deadline: float) -> dict[str, Any]:
        """What query-migrate says when it is over. While QEMU waits for a page, it answers late."""
        while True:
            left_s = deadline - time.monotonic()
            told: dict[str, Any] = await qmp.execute("query-migrate", timeout_s=max(left_s, COMMAND_S))
            if told.get("status") in ENDS:
                return told
            if left_s <= 0:
                raise PageferryError(
                    Reason.TOO_SLOW,
                    f"QEMU's migration did not end; it is {told.get('status')}",
                    "see its log",
                )
            await asyncio.sleep(POLL_S)


def takes(schema: list[dict[str, Any]], command: str, argument: str) -> bool:
    """Whether this QEMU knows the argument, by its own description of itself."""
    entries = {entry["name"]: entry for entry in schema}
    arguments = entries.get(entries.get(command, {}).get("arg-type", ""), {})
    return any(member["name"] == argument for member in arguments.get("members", ()))


def machine_of(state: bytes) -> str | None:
    """The machine type that a state begins with; None: it begins otherwise. QEMU tells a wrong one to nobody
    but its log: over QMP it says "load of migration failed: Invalid argument"."""
    head = len(STATE_HEAD)
    if not state.startswith(STATE_HEAD) or len(state) < head + 4:
        return None
    length = int.from_bytes(state[head : head + 4], "big")
    return (
        state[head + 4 : head + 4 + length].decode(errors="replace") if length <= MACHINE_BYTES_MAX else None
    )


def words(told: Mapping[str, Any]) -> str:
    return str(told.get("error-desc") or f"the migration was {told.get('status')}")


def has_ram(state_bytes: int) -> PageferryError:
    return checks.refused(
        f"the guest's state has {state_bytes} bytes and more: its RAM is in it",
        f"put all of its memory into one named file: {checks.RAM_LINE}",
    )


def too_slow(what: str, seconds: float) -> PageferryError:
    return PageferryError(
        Reason.TOO_SLOW, f"QEMU has not finished in {seconds:g} s: {what} of the guest's state", "see its log"
    )
