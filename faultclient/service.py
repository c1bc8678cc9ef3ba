# SPDX-License-Identifier: Apache-2.0
"""FaultClientService: sessions as protobuf. Nothing is decided here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from faultclient.request import StartRequest
from faultclient.session import Postcopy, Session
from pageferry.limits import IMAGE_PAGES_MAX, WATCH_INTERVAL_MIN_MS, WATCH_INTERVAL_MS
from pageferry.names import IMAGE_NAME_RULE, is_image_name
from pageferry.reasons import PageferryError, Reason
from pageferry.records import SESSION_NAME
from pageferry.service import native
from pageferry.service.addresses import Address
from pageferry.service.metadata import AUTHORIZATION, token_of
from pageferry.service.poison import as_log, asked_pages, some
from pageferry.units import PageRun
from pageferry.v1 import faultclient_pb2, faultclient_pb2_grpc, migrations_pb2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DNS: Final = "dns:///"
POSTCOPY: Final = {
    faultclient_pb2.POSTCOPY_UNSPECIFIED: Postcopy.ALLOW,
    faultclient_pb2.POSTCOPY_ALLOW: Postcopy.ALLOW,
    faultclient_pb2.POSTCOPY_FORBID: Postcopy.FORBID,
    faultclient_pb2.POSTCOPY_AT_ONCE: Postcopy.AT_ONCE,
}


class Book(Protocol):
    """The sessions of this process. Each call may raise PageferryError."""

    @property
    def closed(self) -> bool:
        """No more will come."""

    @property
    def begun(self) -> int:
        """How many have come so far."""

    def all(self) -> Sequence[Session]: ...

    async def more(self, seen: int) -> None:
        """Returns once there are more than were seen."""

    def start(self, request: StartRequest, token: bytes) -> Session: ...

    def switch_over(self, name: str) -> Session: ...

    async def cancel(self, name: str, force_image: str, by: str) -> Session: ...


# ------------------------------------------------------------------------------------------------- the words


def as_message(session: Session) -> migrations_pb2.Session:
    """The session as it is now."""
    since = Timestamp()
    since.FromNanoseconds(int(session.phase_since * 1e9))
    figures = session.figures
    message = migrations_pb2.Session(
        session=session.name,
        image=session.image,
        revision=session.revision,
        phase=int(session.phase),  # type: ignore[arg-type]  # the same numbers: a test compares them
        phase_since=since,
        paused=int(session.paused or 0),  # type: ignore[arg-type]
        failure=int(session.failure or 0),  # type: ignore[arg-type]
        message=session.message,
        peer=session.data_address,
        cancel_requested=session.cancel_requested,
        round=figures.round,
        dirty_pages=figures.dirty_pages,
        dirty_pages_per_second=figures.dirty_pages_per_second,
        downtime_us=figures.downtime_us,
        machine=session.machine,
        poison_seq=session.poisoning.log.seq,
    )
    if session.vm is not None:
        pages, counters = session.vm.pager.pages(), session.vm.pager.counters()
        message.pages_total = pages.total
        message.pages_settled = pages.here
        message.pages_poisoned = pages.states["POISONED"]
        message.wire_bytes = counters["wire_in_bytes_total"] + counters["wire_out_bytes_total"]
        message.faults = counters["faults_total"]
        message.faults_waiting = counters["asks_outstanding"]
        message.blocktime_us = session.vm.pager.blocktime_ns() // 1000
    return message


def pages_of(session: Session, request: migrations_pb2.PoisonRequest) -> list[PageRun]:
    """PageferryError: it names pages that are none, or that nobody can find."""
    total = session.vm.pager.pages().total if session.vm is not None else IMAGE_PAGES_MAX
    return asked_pages(request, total, session.layout, session.image)


def poison_log(
    session: Session, request: migrations_pb2.PoisonRequest, only: Sequence[PageRun] = ()
) -> migrations_pb2.PoisonLog:
    return as_log(session.poisoning.log, session.poisoned, request.after_seq, only)


def arrivals_of(session: Session) -> faultclient_pb2.Arrivals:
    message = faultclient_pb2.Arrivals()
    if session.arrivals is not None:
        message.cell_pages = session.arrivals.cell_pages
        message.whole_after_ms.extend(session.arrivals.whole_after_ms)
    if session.vm is not None:
        waits = [session.vm.pager.histogram(name).counts for name in ("fault_fetch_ns", "fault_local_ns")]
        counts = [sum(both) for both in zip(*waits, strict=True)]
        last = max((index for index, count in enumerate(counts) if count), default=-1)
        message.wait_us_max.extend(limit // 1000 for limit in native.BUCKET_LIMITS[: last + 1])
        message.waits.extend(counts[: last + 1])
    return message


def moving(message: migrations_pb2.Session) -> tuple[int, ...]:
    """The numbers whose change is worth a message: the first of them at once, the others once an interval."""
    return message.revision, message.pages_settled, message.faults, message.faults_waiting, message.wire_bytes


def as_request(message: faultclient_pb2.StartSessionRequest) -> StartRequest:
    """PageferryError: what is wrong with it."""
    if SESSION_NAME.fullmatch(message.session) is None:
        raise bad("a session's name has 1 to 63 of a-z, 0-9 and -")
    if not is_image_name(message.image):
        raise bad(f"an image's name has {IMAGE_NAME_RULE}")
    if message.postcopy not in POSTCOPY:
        raise bad(f"postcopy {message.postcopy} is unknown")
    Address.parse(message.data_address.removeprefix(DNS))
    if message.control_address:
        Address.parse(message.control_address.removeprefix(DNS))
    default = StartRequest("", "", "", "")
    return StartRequest(
        session=message.session,
        image=message.image,
        vm=message.vm,
        data_address=message.data_address,
        control_address=message.control_address,
        postcopy=POSTCOPY[message.postcopy],
        manual_switchover=message.manual_switchover,
        max_downtime_ms=message.max_downtime_ms or default.max_downtime_ms,
        bandwidth_bytes_per_s=message.bandwidth_per_migration,
        completion_timeout_per_gib_s=message.completion_timeout_per_gib_s
        or default.completion_timeout_per_gib_s,
        progress_timeout_s=message.progress_timeout_s or default.progress_timeout_s,
        rounds_max=message.rounds_max or default.rounds_max,
    )


def bad(message: str) -> PageferryError:
    return PageferryError(Reason.BAD_REQUEST, message)


def token_shown(context: Context) -> bytes:
    """The session's token; empty if none was shown. It goes nowhere but to the source."""
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION:
            return token_of(str(value))
    return b""


# ------------------------------------------------------------------------------------------------- the calls


class FaultClientService(faultclient_pb2_grpc.FaultClientServiceServicer):
    def __init__(self, book: Book) -> None:
        self._book = book

    def _named(self, name: str) -> Session:
        for session in self._book.all():
            if session.name == name:
                return session
        raise PageferryError(Reason.NO_SUCH_IMAGE, f"there is no session {name!r} here")

    async def StartSession(
        self, request: faultclient_pb2.StartSessionRequest, context: Context
    ) -> migrations_pb2.Session:
        token = token_shown(context)
        asked = as_request(request)
        if asked.control_address and not token:
            raise PageferryError(
                Reason.NOT_ALLOWED,
                "a move needs its session's token",
                "send it as authorization: Bearer TOKEN",
            )
        return as_message(self._book.start(asked, token))

    async def SwitchOver(
        self, request: migrations_pb2.SessionName, context: Context
    ) -> migrations_pb2.Session:
        self._named(request.session)
        return as_message(self._book.switch_over(request.session))

    async def CancelSession(
        self, request: migrations_pb2.EndSessionRequest, context: Context
    ) -> migrations_pb2.Session:
        self._named(request.session)
        session = await self._book.cancel(request.session, request.force_image, str(context.peer()))
        return as_message(session)

    async def GetSession(
        self, request: migrations_pb2.SessionName, context: Context
    ) -> migrations_pb2.Session:
        return as_message(self._named(request.session))

    async def GetArrivals(
        self, request: migrations_pb2.SessionName, context: Context
    ) -> faultclient_pb2.Arrivals:
        return arrivals_of(self._named(request.session))

    async def PoisonPages(
        self, request: migrations_pb2.PoisonRequest, context: Context
    ) -> migrations_pb2.PoisonLog:
        session = self._named(request.session)
        await session.poison(some(pages_of(session, request)))
        return poison_log(session, request)

    async def ClearPoison(
        self, request: migrations_pb2.PoisonRequest, context: Context
    ) -> migrations_pb2.PoisonLog:
        session = self._named(request.session)
        await session.clear_poison(some(pages_of(session, request)))
        return poison_log(session, request)

    async def ListPoison(
        self, request: migrations_pb2.PoisonRequest, context: Context
    ) -> migrations_pb2.PoisonLog:
        session = self._named(request.session)
        return poison_log(session, request, pages_of(session, request))

    async def WatchSessions(
        self, request: migrations_pb2.WatchSessionsRequest, context: Context
    ) -> AsyncIterator[migrations_pb2.Session]:
        interval_ms = max(request.interval_ms or WATCH_INTERVAL_MS, WATCH_INTERVAL_MIN_MS)
        shown: dict[str, tuple[int, ...]] = {}
        while True:
            begun = self._book.begun
            matches = [self._named(request.session)] if request.session else list(self._book.all())
            for session in matches:
                message = as_message(session)
                if shown.get(session.name) != moving(message):
                    shown[session.name] = moving(message)
                    yield message
            ended = all(one.ended and shown[one.name][0] == one.revision for one in matches)
            if request.once or (ended and (request.session or self._book.closed)):
                return
            waits = [one.changed(shown[one.name][0]) for one in matches]
            if not request.session:
                waits.append(self._book.more(begun))
            await first_of(waits, interval_ms / 1000)


async def first_of(waits: Sequence[Any], interval_s: float) -> None:
    """Until one of them has happened, or an interval has passed."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(tasks, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
