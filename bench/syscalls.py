# SPDX-License-Identifier: Apache-2.0
"""System calls a page, counted by strace on processes that are already warm.

strace makes each call many times slower, so this is a pass of its own and nothing of it is timed.
"""

import re
import signal
import time
from pathlib import Path

from bench.room import Room

ATTACH_WAIT_S = 10.0
# Below this share of a page a call is housekeeping (timers, heartbeats, the interpreter's idle loop).
SHOWN_PER_PAGE = 0.01
ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(?P<calls>\d+)\s+(?:\d+\s+)?(?P<name>\w+)$")


class Counter:
    """strace on one process and all its threads, from now until `stop`."""

    def __init__(self, room: Room, role: str, pid: int) -> None:
        self._table = room.path / f"strace-{role}.txt"
        self._strace = room.start(f"strace-{role}", "strace", "-f", "-c", "-o", self._table, "-p", str(pid))
        until = time.monotonic() + ATTACH_WAIT_S
        while " attached" not in self._strace.errors():
            if time.monotonic() > until:
                raise self._strace.failed(f"did not attach to {role}")
            time.sleep(0.02)

    def stop(self, pages: int) -> dict[str, float]:
        self._strace.stop(signal.SIGINT)
        return per_page(self._table, pages)


def per_page(table: Path, pages: int) -> dict[str, float]:
    """Calls a page by name, the most frequent first, and their sum as "total"."""
    rows = [match for line in table.read_text().splitlines() if (match := ROW.match(line))]
    calls = {row["name"]: int(row["calls"]) / pages for row in rows if row["name"] != "total"}
    shown = {name: round(count, 2) for name, count in calls.items() if count >= SHOWN_PER_PAGE}
    ordered = dict(sorted(shown.items(), key=lambda item: -item[1]))
    return ordered | {"total": round(sum(calls.values()), 2)}
