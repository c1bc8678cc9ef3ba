# SPDX-License-Identifier: Apache-2.0
"""FaultClientService: sessions as protobuf. Nothing is decided here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from faultclient.session import Session
from pageferry.limits import WATCH_INTERVAL_MIN_MS, WATCH_INTERVAL_MS
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def as_message(session: Session) -> migrations_pb2.Session:
    """The session as it is now."""
    pages = session.vm.pager.pages()
    counters = session.vm.pager.counters()
    since = Timestamp()
    since.FromNanoseconds(int(session.phase_since * 1e9))
    return migrations_pb2.Session(
        session=session.name,
        image=session.vm.image,
        revision=session.revision,
        phase=int(session.phase),  # type: ignore[arg-type]  # the same numbers: a test compares them
        phase_since=since,
        paused=int(session.paused or 0),  # type: ignore[arg-type]
        failure=int(session.failure or 0),  # type: ignore[arg-type]
        message=session.message,
        peer=session.vm.data_address,
        pages_total=pages.total,
        pages_settled=pages.here,
        pages_poisoned=pages.states["POISONED"],
        wire_bytes=counters["wire_in_bytes_total"] + counters["wire_out_bytes_total"],
        faults=counters["faults_total"],
        faults_waiting=counters["asks_outstanding"],
        blocktime_us=session.vm.pager.blocktime_ns() // 1000,
    )


def moving(message: migrations_pb2.Session) -> tuple[int, ...]:
    """The numbers whose change is worth a message: the first of them at once, the others once an interval."""
    return message.revision, message.pages_settled, message.faults, message.faults_waiting


class FaultClientService(faultclient_pb2_grpc.FaultClientServiceServicer):
    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions

    def _named(self, name: str) -> Session:
        for session in self._sessions:
            if session.name == name:
                return session
        raise PageferryError(Reason.NO_SUCH_IMAGE, f"there is no session {name!r} here")

    async def GetSession(
        self, request: migrations_pb2.SessionName, context: Context
    ) -> migrations_pb2.Session:
        return as_message(self._named(request.session))

    async def WatchSessions(
        self, request: migrations_pb2.WatchSessionsRequest, context: Context
    ) -> AsyncIterator[migrations_pb2.Session]:
        interval_ms = max(request.interval_ms or WATCH_INTERVAL_MS, WATCH_INTERVAL_MIN_MS)
        matches = [self._named(request.session)] if request.session else list(self._sessions)
        shown: dict[str, tuple[int, ...]] = {}
        while True:
            for session in matches:
                message = as_message(session)
                if shown.get(session.name) != moving(message):
                    shown[session.name] = moving(message)
                    yield message
            ended = all(session.ended and shown[session.name][0] == session.revision for session in matches)
            if request.once or ended:
                return
            await something(matches, [shown[session.name][0] for session in matches], interval_ms / 1000)


async def something(sessions: Sequence[Session], seen_revisions: Sequence[int], interval_s: float) -> None:
    """Until one of them has changed since it was seen, or an interval has passed."""
    seen = zip(sessions, seen_revisions, strict=True)
    changes = [asyncio.create_task(session.changed(revision)) for session, revision in seen]
    try:
        await asyncio.wait(changes, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for change in changes:
            change.cancel()
