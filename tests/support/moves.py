# SPDX-License-Identifier: Apache-2.0
"""Moves that a test makes up: what both ends have said, and when, as `faultclient migrate` keeps it."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from faultclient.commands.moving import Moving
from faultclient.migrate_config import MigrateOptions
from pageferry.phases import Phase
from pageferry.reasons import Reason
from pageferry.v1 import faultclient_pb2, migrations_pb2

PAGES = 98_304
MB = 1_000_000


def options(**given: Any) -> MigrateOptions:
    defaults: dict[str, Any] = {
        "source": "10.0.0.1:7851",
        "target": "10.0.0.2:7861",
        "source_for_target": None,
        "data_address": "10.0.0.1:7850",
        "image": "web-1",
        "vm": "web-1",
        "session": "move-1",
        "postcopy": "allow",
        "manual_switchover": False,
        "max_downtime_ms": 900,
        "bandwidth": None,
        "rounds_max": 30,
        "completion_timeout_per_gib": 150,
        "progress_timeout": 150,
        "report": None,
    }
    return MigrateOptions.of(defaults | given)


class Clock:
    """A move whose time is the test's."""

    def __init__(self, **given: Any) -> None:
        self.moving = Moving(options(**given))
        self.moving.ended_s = 0.0
        self._fields: dict[str, dict[str, Any]] = {"source": {}, "target": {}}

    def at(self, seconds: float) -> "Clock":
        self.moving.ended_s = seconds
        return self

    def hear(self, side: str, **fields: Any) -> "Clock":
        """An end says something; what it does not mention is as before."""
        known = self._fields[side] | fields
        self._fields[side] = known
        since = Timestamp()
        since.FromMilliseconds(int(1_764_000_000_000 + self.moving.now_s() * 1000))
        self.moving.take(
            side,
            migrations_pb2.Session(
                session="move-1",
                image="web-1",
                phase_since=since,
                pages_total=PAGES,
                machine="qemu 10.0.2, pc-i440fx-7.2",
                **known,
            ),
        )
        return self

    def both(self, phase: Phase, **fields: Any) -> "Clock":
        return self.hear("source", phase=int(phase), **fields).hear("target", phase=int(phase), **fields)


def precopy() -> Clock:
    """Three seconds of it, at 100 MB/s."""
    clock = Clock().at(0.02).both(Phase.CREATED).at(0.06).both(Phase.PRECOPY)
    for tenth in range(1, 31):
        number = 1 + tenth // 10
        clock.at(0.06 + tenth / 10).hear(
            "target",
            pages_settled=min(PAGES * tenth // 31, PAGES),
            wire_bytes=tenth * 10 * MB,
            round=number,
            dirty_pages=PAGES if number == 1 else 4000 // number,
            dirty_pages_per_second=8100,
            downtime_us=48_000,
        )
    return clock


def moved() -> Clock:
    """All of it, well."""
    clock = precopy().at(3.2).both(Phase.SWITCHOVER).at(3.26)
    clock.hear("target", phase=int(Phase.POSTCOPY), downtime_us=61_300, faults=12, faults_waiting=3)
    clock.hear("source", phase=int(Phase.POSTCOPY))
    clock.at(3.6).hear("target", faults=632, faults_waiting=1, wire_bytes=330 * MB, blocktime_us=246_800)
    clock.at(3.8).hear("target", pages_settled=PAGES, faults_waiting=0, phase=int(Phase.COMMITTED))
    clock.at(3.81).both(Phase.RELEASED)
    clock.moving.arrivals = arrivals()
    return clock.at(3.82)


def failed() -> Clock:
    """The link is lost, and the move given up."""
    clock = (
        precopy()
        .at(3.3)
        .hear(
            "target",
            paused=int(Reason.GOING_AWAY),
            message="page server 10.0.0.1:7850: dial: Connection refused",
        )
    )
    clock.at(6.0)
    clock.hear("target", phase=int(Phase.ABORTED), paused=0, failure=int(Reason.TOO_SLOW), message=TOO_SLOW)
    clock.hear("source", phase=int(Phase.ABORTED), failure=int(Reason.CANCELLED), message="given up")
    clock.moving.arrivals = arrivals(upto=600)
    return clock.at(6.1)


TOO_SLOW = "no fewer pages were missing for 150 s; allow postcopy, or give it longer"


def arrivals(upto: int = 1024) -> faultclient_pb2.Arrivals:
    return faultclient_pb2.Arrivals(
        cell_pages=96,
        whole_after_ms=[100 + 7 * cell // 2 if cell < upto else 0 for cell in range(1024)],
        wait_us_max=[0, 12, 57, 110, 240, 3670, 6820],
        waits=[1, 80, 250, 200, 90, 10, 1] if upto == 1024 else [0] * 7,
    )
