# SPDX-License-Identifier: Apache-2.0
"""MigrationService: sessions as protobuf. Nothing is decided here."""

from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from pageferry.limits import DEFAULT_ATTACH_WITHIN_S, WATCH_INTERVAL_MIN_MS, WATCH_INTERVAL_MS
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.records import SESSION_NAME
from pageferry.service.metadata import shown
from pageferry.service.poison import as_log, asked_pages, some
from pageferry.v1 import migrations_pb2, migrations_pb2_grpc
from pageserver.handover import Piece
from pageserver.poison import Poison
from pageserver.record import Terms
from pageserver.session import Report, Session
from pageserver.sessions import Sessions
from pageserver.vms import Vms

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

NAME: Final = migrations_pb2.DESCRIPTOR.services_by_name["MigrationService"].full_name
SHA256_BYTES: Final = 32


def as_message(session: Session, poison: Poison) -> migrations_pb2.Session:
    """The session as it is now. What its target counts as poisoned, once it does, is all there is."""
    record, state = session.record, session.state()
    since = Timestamp()
    since.FromNanoseconds(int(record.phase_since * 1e9))
    per_second = state.dirty_pages * 1_000_000_000 // state.round_ns if state.round_ns else 0
    return migrations_pb2.Session(
        session=session.name,
        image=session.image,
        revision=session.revision,
        phase=int(session.phase),  # type: ignore[arg-type]  # the same numbers: a test compares them
        phase_since=since,
        paused=int(session.paused or 0),  # type: ignore[arg-type]
        failure=int(record.failure or 0),  # type: ignore[arg-type]
        message=session.message,
        peer=session.peer,
        cancel_requested=record.cancel_requested,
        pages_total=record.page_count,
        pages_poisoned=record.pages_poisoned or poison.pages(session.image),
        poison_seq=poison.seq(session.image),
        round=state.round,
        dirty_pages=state.dirty_pages,
        dirty_pages_per_second=per_second,
        downtime_us=session.downtime_us(),
        machine=record.machine,
    )


def moving(message: migrations_pb2.Session) -> tuple[int, ...]:
    """The numbers whose change is worth a message: the first of them at once, the others once an interval."""
    return message.revision, message.round, message.dirty_pages


def as_terms(request: migrations_pb2.CreateSessionRequest) -> Terms:
    """PageferryError: it cannot be."""
    if SESSION_NAME.fullmatch(request.session) is None:
        raise bad(f"{request.session!r:.80} is no session's name", "give 1 to 63 of a-z, 0-9 and -")
    if len(request.token_sha256) != SHA256_BYTES:
        raise bad(f"token_sha256 has {len(request.token_sha256)} bytes", "give the 32 of a SHA-256")
    if request.target_identity:
        raise PageferryError(
            Reason.UNSUPPORTED,
            "a target's identity cannot be checked: there is no TLS yet",
            "leave target_identity empty: the token alone opens the session",
        )
    return Terms(
        session=request.session,
        image=request.image,
        token_sha256=request.token_sha256,
        attach_within_s=request.attach_within_s or DEFAULT_ATTACH_WITHIN_S,
        hold_source=request.hold_source,
    )


def as_report(request: migrations_pb2.RecordPhaseRequest) -> Report:
    try:
        phase = Phase(int(request.phase))
    except ValueError:
        raise bad(f"there is no phase {int(request.phase)}", "report one of the contract's") from None
    return Report(
        phase=phase,
        manifest_digest=request.manifest_digest,
        pages_owned=request.pages_owned,
        pages_zero=request.pages_zero,
        pages_poisoned=request.pages_poisoned,
    )


def as_part(piece: Piece) -> migrations_pb2.HandOverResponse:
    return migrations_pb2.HandOverResponse(
        as_of=piece.as_of,
        manifest_digest=piece.manifest_digest,
        stopped_us=piece.stopped_us,
        device_state=piece.device_state,
        device_state_digest=piece.device_state_digest,
        last=piece.last,
    )


def bad(message: str, remedy: str) -> PageferryError:
    return PageferryError(Reason.BAD_REQUEST, message, remedy)


class MigrationService(migrations_pb2_grpc.MigrationServiceServicer):
    """Whoever shows no token is an operator: there is no TLS yet, so who reaches the port may be one."""

    def __init__(self, sessions: Sessions, vms: Vms) -> None:
        self._sessions = sessions
        self._poison = sessions.poison
        self._vms = vms

    def _to_look(self, name: str, context: Context) -> Session:
        """For an operator, or the session's own target."""
        seen = shown(context.invocation_metadata())
        return (
            self._sessions.named(name) if seen is None else self._sessions.of_target(name, seen, to_look=True)
        )

    def _shown(self, session: Session) -> migrations_pb2.Session:
        return as_message(session, self._poison)

    def _of_target(self, name: str, context: Context) -> Session:
        return self._sessions.of_target(name, shown(context.invocation_metadata()))

    # ---------------------------------------------------------------------------------------------- operators

    async def CreateSession(
        self, request: migrations_pb2.CreateSessionRequest, context: Context
    ) -> migrations_pb2.Session:
        return self._shown(await self._sessions.create(as_terms(request), self._vms))

    async def CancelSession(
        self, request: migrations_pb2.EndSessionRequest, context: Context
    ) -> migrations_pb2.Session:
        session = self._sessions.named(request.session)
        session.cancel(request.force_image, str(context.peer()))
        return self._shown(session)

    async def ReleaseSession(
        self, request: migrations_pb2.EndSessionRequest, context: Context
    ) -> migrations_pb2.Session:
        session = self._sessions.named(request.session)
        session.release(request.force_image, str(context.peer()))
        return self._shown(session)

    async def GetSession(
        self, request: migrations_pb2.SessionName, context: Context
    ) -> migrations_pb2.Session:
        return self._shown(self._to_look(request.session, context))

    async def WatchSessions(
        self, request: migrations_pb2.WatchSessionsRequest, context: Context
    ) -> AsyncIterator[migrations_pb2.Session]:
        interval_s = max(request.interval_ms or WATCH_INTERVAL_MS, WATCH_INTERVAL_MIN_MS) / 1000
        only = None
        if request.session or shown(context.invocation_metadata()) is not None:
            only = self._to_look(request.session, context)
        told: dict[str, tuple[int, ...]] = {}
        while True:
            seen = self._sessions.revision
            for session in self._sessions if only is None else [only]:
                message = self._shown(session)
                if told.get(session.name) != moving(message):
                    told[session.name] = moving(message)
                    yield message
            if request.once or (only is not None and only.ended and told[only.name][0] == only.revision):
                return
            await self._sessions.changed(seen, interval_s)

    async def PoisonPages(
        self, request: migrations_pb2.PoisonRequest, context: Context
    ) -> migrations_pb2.PoisonLog:
        image = self._image_of(request)
        lost = self._poison.of(image)
        await self._poison.poison(image, some(asked_pages(request, lost.page_count, lost.layout, image)))
        return as_log(lost.log, lost.known, request.after_seq)

    async def ListPoison(
        self, request: migrations_pb2.PoisonRequest, context: Context
    ) -> migrations_pb2.PoisonLog:
        image = self._image_of(request)
        lost = self._poison.look(image)
        only = asked_pages(request, lost.page_count, lost.layout, image)
        return as_log(lost.log, lost.known, request.after_seq, only)

    def _image_of(self, request: migrations_pb2.PoisonRequest) -> str:
        """PageferryError: it names none, or two."""
        if bool(request.session) == bool(request.image):
            raise bad("neither an image nor a session is named, or both are", "name one of the two")
        return request.image or self._sessions.named(request.session).image

    # ------------------------------------------------------------------------------------------------- target

    async def HandOver(
        self, request: migrations_pb2.SessionName, context: Context
    ) -> AsyncIterator[migrations_pb2.HandOverResponse]:
        session = self._of_target(request.session, context)
        leave = session.ask()
        context.add_done_callback(lambda _: leave())  # type: ignore[arg-type]  # it may return nothing
        async for piece in session.hand_over():
            yield as_part(piece)

    async def RecordPhase(
        self, request: migrations_pb2.RecordPhaseRequest, context: Context
    ) -> migrations_pb2.Session:
        session = self._of_target(request.session, context)
        session.hear(as_report(request))
        return self._shown(session)
