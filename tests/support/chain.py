# SPDX-License-Identifier: Apache-2.0
"""A chain of moves on one machine: services of three stations, and the VM of each.

    with Chain(folder, saved) as chain:
        first = chain.move_to_b(bandwidth_per_migration=8 << 20)
        ...
        second = chain.move_to_c()

The guest begins at A. At B it is handed on from the fault client to the page server. At C its owner is an
orchestrator that a test can make stand still (move_adapter.py).
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import grpc

from pageferry.phases import Phase, Side
from pageferry.reasons import REASON_TRAILER, Reason
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2_grpc
from tests.support.move_adapter import Orchestrator
from tests.support.move_guests import monitor, running, shim, waiting
from tests.support.move_pair import VM, ControlProxy, Move, Pair
from tests.support.processes import PATIENCE_S, POLL_S, Process, command
from tests.support.proxy import Proxy
from tests.support.qemu import Qemu
from tests.support.shape import SavedGuest

COMPARED_BYTES: Final = 1 << 20
PAGE_BYTES: Final = 4096


class Leg(Pair):
    """From the page server of one station to the fault client of the next."""

    def __init__(self, stack: ExitStack, server: Process, client: Process) -> None:
        self.stack = stack
        self.server, self.client = server, client
        self.data = stack.enter_context(Proxy(server.ready["data"]))
        self.control = stack.enter_context(ControlProxy(server.ready["control"]))
        self._stubs = {
            Side.SOURCE: self._stub(server, migrations_pb2_grpc.MigrationServiceStub),
            Side.TARGET: self._stub(client, faultclient_pb2_grpc.FaultClientServiceStub),
        }


class Chain:
    """Gone at the end, whatever it is in."""

    def __init__(self, folder: Path, saved: SavedGuest) -> None:
        self.folder = folder
        self._stack = ExitStack()
        try:
            self._serve()
            self.c_owner = self._stack.enter_context(
                Orchestrator(folder / "c.adapter", monitor(folder / "c"))
            )
            self.c = waiting(self._stack, saved.shape, folder / "c", folder / "c.in")
            roles = shim(folder / "b.ram", folder / "b.in", "both")
            self.b = waiting(self._stack, saved.shape, folder / "b", folder / "b.in", environment=roles)
            self.a = running(self._stack, saved, folder / "a", folder / "a.out")
        except BaseException:
            self._stack.close()
            raise

    def _serve(self) -> None:
        a, b = f"qemu={monitor(self.folder / 'a')}", f"qemu={monitor(self.folder / 'b')}"
        folder = self.folder
        self.a_server = self._server("a", f"{VM},handoff={folder}/a.out,{a}")
        self.b_server = self._server("b", f"{VM},handoff={folder}/b.out,{b}")
        self.b_client = self._client("b", f"{VM},handoff={folder}/b.in,{b},onward={folder}/b.out")
        self.c_client = self._client("c", f"{VM},handoff={folder}/c.in,socket={folder}/c.adapter")
        self.a_to_b = Leg(self._stack, self.a_server, self.b_client)
        self.b_to_c = Leg(self._stack, self.b_server, self.c_client)

    def _server(self, name: str, vm: str) -> Process:
        ports = ("--data-listen=127.0.0.1:0", "--control-listen=127.0.0.1:0")
        return self._start(f"{name}-server", command("pageserver", "serve", f"--vm={vm}", *ports))

    def _client(self, name: str, vm: str) -> Process:
        port = f"--control-listen=unix:{self.folder}/{name}.control"
        return self._start(f"{name}-client", command("faultclient", "serve", f"--vm={vm}", port))

    def _start(self, name: str, arguments: list[str]) -> Process:
        folder = self.folder / name
        folder.mkdir()
        state = f"--state-dir={folder / 'state'}"
        return self._stack.enter_context(Process([*arguments, state], folder=folder, ready=True))

    # -------------------------------------------------------------------------------------------------- moves

    def move_to_b(self, **options: Any) -> Move:
        return Move(self.a_to_b, **options)

    def move_to_c(self, **options: Any) -> Move:
        """As soon as the page server at B has the VM."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return Move(self.b_to_c, **options)
            except grpc.RpcError as error:
                metadata: Any = error.trailing_metadata() or ()
                reasons = [value for key, value in metadata if key == REASON_TRAILER]
                if reasons != [Reason.NO_VMM.name]:
                    raise
            assert time.monotonic() < deadline, "B's page server has no VM"
            time.sleep(POLL_S)

    @staticmethod
    def missing(move: Move) -> int:
        """Pages that its target lacks still."""
        told = move.at(Side.TARGET)
        return int(told.pages_total - told.pages_settled)

    @staticmethod
    def wait_ended(move: Move) -> None:
        """Well, at both ends."""
        move.wait_ends(Phase.RELEASED, Phase.RELEASED)
        assert move.failure(Side.SOURCE) is None
        assert move.failure(Side.TARGET) is None

    def logs(self) -> str:
        services = (self.a_server, self.b_client, self.b_server, self.c_client)
        return "\n".join(one.log[-4000:] for one in services)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self.logs())
        self._stack.close()


def pages_unlike(one: Qemu, other: Qemu) -> list[int]:
    """Those that the RAM files of the two have other bytes of."""
    unlike: list[int] = []
    with one.ram_file.open("rb") as left, other.ram_file.open("rb") as right:
        at = 0
        while mine := left.read(COMPARED_BYTES):
            theirs = right.read(COMPARED_BYTES)
            for page in range(0, max(len(mine), len(theirs)) if mine != theirs else 0, PAGE_BYTES):
                if mine[page : page + PAGE_BYTES] != theirs[page : page + PAGE_BYTES]:
                    unlike.append((at + page) // PAGE_BYTES)
            at += COMPARED_BYTES
        assert not right.read(1)
    return unlike
