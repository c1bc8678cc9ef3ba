# SPDX-License-Identifier: Apache-2.0
"""Our way, as an operator starts it: two `serve` commands, and one `faultclient migrate`.

The clock starts at the first line that `migrate` writes, which it writes before its first call. QEMU's
command goes to a monitor that is connected already, so the start of an interpreter is told apart
(launch_ms). All pages are here when a line tells COMMITTED.
"""

import json
import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import grpc

from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2
from tests.support.initrd import ROOT
from tests.support.move_room import MOVE_MAX_S, Facts, MoveError, Room, deadline_ns
from tests.support.processes import Process, command, environment

SHIM: Final = ROOT / "native" / "build" / "pageferry-shim.so"
VM: Final = "guest"
ALL_HERE: Final = ("COMMITTED", "RELEASED")
CALL_MAX_S: Final = 5.0


class Lines:
    """A command's standard output, each line a JSON object with the moment of its arrival."""

    def __init__(self, arguments: list[str], room: Room) -> None:
        self._log = room.folder / "migrate.err"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment()
            )
        room.stack.callback(self._close)
        self._arrived: queue.SimpleQueue[tuple[bytes, int]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="migrate-lines", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._arrived.put((line, time.monotonic_ns()))
        self._arrived.put((b"", time.monotonic_ns()))

    def next(self, until_ns: int) -> tuple[dict[str, Any], int]:
        try:
            wait_s = max(0.0, (until_ns - time.monotonic_ns()) / 1e9)
            line, arrived_ns = self._arrived.get(timeout=wait_s)
        except queue.Empty:
            raise MoveError(f"`faultclient migrate` says nothing in time\n{self._said()}") from None
        if not line:
            raise MoveError(f"`faultclient migrate` has ended with {self._process.wait()}\n{self._said()}")
        told: dict[str, Any] = json.loads(line)
        return told, arrived_ns

    def end(self) -> dict[str, Any]:
        """The last line, once the command has ended well."""
        try:
            status = self._process.wait(MOVE_MAX_S)
        except subprocess.TimeoutExpired:
            raise MoveError(f"`faultclient migrate` does not end\n{self._said()}") from None
        if status != 0:
            raise MoveError(f"`faultclient migrate` has ended with {status}\n{self._said()}")
        self._thread.join()
        last: dict[str, Any] = {}
        while (line := self._arrived.get_nowait()[0]) != b"":
            last = json.loads(line)
        return last

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-4000:].strip()

    def _close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Ours:
    def __init__(self, *, precopy_s: float = 0, options: Sequence[str] = ()) -> None:
        """`options`: more of `migrate`."""
        self._precopy_s = precopy_s
        self._options = options

    def prepare(self, room: Room) -> None:
        self._room = room
        here, there = room.hosts.source, room.hosts.destination
        self._server = self._serve(
            [*here.prefix, *command("pageserver", "serve")],
            "source",
            f"--data-listen={here.address}:0",
            f"--control-listen={here.address}:0",
            "--insecure-network",  # the namespaces are ours alone
        )
        self._control = f"unix:{room.folder / 'control.sock'}"
        self._serve(
            [*there.prefix, *command("faultclient", "serve")], "target", f"--control-listen={self._control}"
        )
        room.start_source({**self._shim("source"), "PAGEFERRY_SHIM_ROLE": "track"})
        room.start_target(self._shim("target"))
        _ = room.target.qmp  # answers once its memory has been handed over
        self._channel = room.stack.enter_context(grpc.insecure_channel(self._control))

    def _serve(self, start: list[str], name: str, *options: str) -> Process:
        room = self._room
        adapter = room.adapter_socket(name)
        vm = f"--vm={VM},handoff={room.folder / name}.sock,qemu={adapter}"
        state = f"--state-dir={room.folder / name}-state"
        arguments = [*start, vm, state, *options]
        return room.stack.enter_context(Process(arguments, folder=room.folder, ready=True))

    def _shim(self, name: str) -> dict[str, str]:
        room = self._room
        return {
            "LD_PRELOAD": str(SHIM),
            "PAGEFERRY_SHIM_RAM": str(room.source_ram if name == "source" else room.target_ram),
            "PAGEFERRY_SHIM_SOCKET": f"{room.folder / name}.sock",
        }

    def start(self) -> int:
        ready = self._server.ready
        addresses = [f"--source={ready['control']}", f"--data-address={ready['data']}"]
        postcopy = "allow" if self._precopy_s else "at-once"
        options = [f"--target={self._control}", f"--vm={VM}", f"--postcopy={postcopy}", "--json"]
        launched_ns = time.monotonic_ns()
        start = [*self._room.hosts.destination.prefix, *command("faultclient", "migrate")]
        self._lines = Lines([*start, *addresses, *options, *self._options], self._room)
        self._told, self._started_ns = self._lines.next(deadline_ns())
        self._launch_ms = (self._started_ns - launched_ns) / 1e6
        return self._started_ns

    def wait_all_here(self) -> int:
        if self._precopy_s:
            self._switch_over()
        until_ns = deadline_ns()
        arrived_ns = self._started_ns
        while str(self._told.get("phase", "")).removeprefix("PHASE_") not in ALL_HERE:
            self._told, arrived_ns = self._lines.next(until_ns)
        return arrived_ns

    def _switch_over(self) -> None:
        """A precopy that has converged by then has handed over by itself, and refuses the call."""
        self._wait_begun()
        time.sleep(max(0.0, self._started_ns / 1e9 + self._precopy_s - time.monotonic()))
        stub = faultclient_pb2_grpc.FaultClientServiceStub(self._channel)
        name = migrations_pb2.SessionName(session=str(self._told.get("session", "")))
        try:
            stub.SwitchOver(name, timeout=CALL_MAX_S)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise MoveError(f"SwitchOver: {error.details()}") from error

    def _wait_begun(self) -> None:
        """Until the target has told of the session: it takes its time where others take the CPUs."""
        until_ns = deadline_ns()
        while self._told.get("side") != "target":
            self._told, _ = self._lines.next(until_ns)

    def finish(self) -> Facts:
        return {"launch_ms": round(self._launch_ms, 1), **self._lines.end()}
