# SPDX-License-Identifier: Apache-2.0
"""The peer's way: QEMU's own migration over TCP, with postcopy at once or after some precopy.

Plain, it sends what the guest asks for on the stream of all pages; with `preempt`, on a stream of its own.
Neither is held back: no limit on bandwidth. When all pages are here is told by the destination's own event.
"""

import time
from typing import Final

from tests.support.move_room import Facts, MoveError, Room, deadline_ns
from tests.support.qemu import Qemu
from tests.support.qmp import QmpError

PORT: Final = 7860
UNLIMITED: Final = 100_000_000_000
ANSWER_MAX_S: Final = 15.0
ENDING_S: Final = 0.5  # its sockets end a moment before QEMU does
POLL_S: Final = 0.01
FAILED: Final = ("failed", "cancelled", "postcopy-paused")


class QemuPostcopy:
    def __init__(self, *, preempt: bool = False, precopy_s: float = 0) -> None:
        self._preempt = preempt
        self._precopy_s = precopy_s
        self._facts: Facts = {}

    def prepare(self, room: Room) -> None:
        self._room = room
        room.start_source()
        room.start_target()
        self._uri = f"tcp:{room.hosts.destination.address}:{PORT}"
        for qemu, more in ((room.source, ()), (room.target, ("postcopy-blocktime",))):
            names = ["events", "postcopy-ram", *more, *(["postcopy-preempt"] if self._preempt else [])]
            capabilities = [{"capability": name, "state": True} for name in names]
            qemu.qmp.command("migrate-set-capabilities", capabilities=capabilities)
            qemu.qmp.command("migrate-set-parameters", max_bandwidth=UNLIMITED, max_postcopy_bandwidth=0)
        room.target.qmp.command("migrate-incoming", uri=self._uri)

    def start(self) -> int:
        source = self._room.source.qmp
        started_ns = time.monotonic_ns()
        source.command("migrate", uri=self._uri)
        if not self._precopy_s:
            source.command("migrate-start-postcopy")
        self._started_ns = started_ns
        return started_ns

    def wait_all_here(self) -> int:
        if self._precopy_s:
            self._switch_over()
        deadline = deadline_ns()
        while time.monotonic_ns() < deadline:
            status = self._status(self._room.target)
            if status == "completed":
                return self._completed_ns()
            if status in FAILED:
                raise MoveError(f"the destination's migration: {status}")
            time.sleep(POLL_S)
        raise MoveError(f"not complete in time: the destination's migration is {status}")

    def _switch_over(self) -> None:
        """A precopy that has converged by then is over, and refuses the command."""
        time.sleep(max(0.0, self._started_ns / 1e9 + self._precopy_s - time.monotonic()))
        status = self._status(self._room.source)
        if status in FAILED:
            raise MoveError(f"the source's migration, in its precopy: {status}")
        self._facts["converged"] = status == "completed"
        if status == "active":
            self._room.source.qmp.command("migrate-start-postcopy", timeout_s=ANSWER_MAX_S)

    @staticmethod
    def _status(qemu: Qemu) -> str:
        try:
            return str(qemu.qmp.command("query-migrate", timeout_s=ANSWER_MAX_S).get("status", "none"))
        except QmpError:
            time.sleep(ENDING_S)
            qemu.check_alive()
            raise

    def _completed_ns(self) -> int:
        """QEMU stamps its events with the clock of the day."""
        for event in reversed(self._room.target.qmp.events):
            if event["event"] == "MIGRATION" and event["data"]["status"] == "completed":
                stamp = event["timestamp"]
                day_ns = stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1000
                return int(day_ns - time.time_ns() + time.monotonic_ns())
        raise MoveError("the destination is complete, and has not said so")

    def finish(self) -> Facts:
        told = self._room.target.qmp.command("query-migrate")
        sent = self._room.source.qmp.command("query-migrate").get("ram", {})
        return {
            **self._facts,
            "own_blocktime_ms": told.get("postcopy-blocktime"),
            "requests": sent.get("postcopy-requests"),
            "transferred": sent.get("transferred"),
        }
