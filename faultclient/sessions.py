# SPDX-License-Identifier: Apache-2.0
"""All sessions of `faultclient serve`: which there are, which may be begun, and what is kept of them.

A session that was asked for is there at once; what takes longer shows in it. No grpc here.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from faultclient.arrival import Arrival
from faultclient.asking import Source, report_aborted
from faultclient.move import Move
from faultclient.request import StartRequest, TargetRecord
from faultclient.restore import Restore
from faultclient.rounds import FIXED_S
from faultclient.session import Postcopy, Session
from faultclient.vms import Ticket, Vm
from pageferry.host.handoff import Handoff
from pageferry.host.vmm import Vmm
from pageferry.limits import SESSIONS_MAX
from pageferry.phases import ENDS, Event, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.records import Records, unreadable
from pageferry.service.logs import log

# CancelSession answers when the end is recorded, or after this long.
CANCEL_S: Final = 0.08
RESTARTED: Final = "the fault client was started again before the guest was accepted here"
NOT_SERVED: Final = "the fault client that served this guest has ended: missing pages cannot come any more"


class House(Protocol):
    """This host's VMs, by name."""

    def known(self, vm: str) -> None:
        """PageferryError: there is none of this name."""

    async def handoff(self, vm: str) -> Handoff: ...

    def give_back(self, vm: str, handoff: Handoff) -> None: ...

    def adapter(self, vm: str, handoff: Handoff) -> Vmm: ...

    async def open(self, handoff: Handoff, request: StartRequest, ticket: Ticket | None) -> Vm: ...

    def let_go(self, vm: Vm) -> None: ...

    async def follow(self, restore: Restore, handoff: Handoff, request: StartRequest) -> None:
        """A lazy restore, to its end."""


@dataclass(slots=True)
class Entry:
    request: StartRequest
    session: Session
    record: TargetRecord
    move: Move | None = None
    driving: asyncio.Task[None] | None = None

    @property
    def working(self) -> bool:
        return self.driving is not None and not self.driving.done()

    @property
    def needed(self) -> bool:
        """For more than to be looked at."""
        return not self.session.ended or (self.working and (self.move is None or self.move.owes))


class MoveMeans:
    """What one move works with."""

    def __init__(self, house: House, records: Records, entry: Entry, ticket: Ticket) -> None:
        self._house = house
        self._records = records
        self._entry = entry
        self._ticket = ticket

    async def handoff(self) -> Handoff:
        return await self._house.handoff(self._entry.request.vm)

    def give_back(self, handoff: Handoff) -> None:
        self._house.give_back(self._entry.request.vm, handoff)

    def adapter(self, handoff: Handoff) -> Vmm:
        return self._house.adapter(self._entry.request.vm, handoff)

    async def open(self, handoff: Handoff) -> Vm:
        return await self._house.open(handoff, self._entry.request, self._ticket)

    def let_go(self, vm: Vm) -> None:
        self._house.let_go(vm)

    def record(
        self, session: Session, phase: Phase, failure: Reason | None = None, message: str = ""
    ) -> None:
        record = replace(self._entry.record, phase=phase, failure=failure, message=message)
        self._records.write(session.name, record.to_fields())
        self._entry.record = record


class Sessions:
    """Of this process, those of its predecessors that are on disk included."""

    def __init__(self, house: House, records: Records, connect: Callable[[str, Ticket], Source]) -> None:
        self._house = house
        self._records = records
        self._connect = connect
        self._entries: dict[str, Entry] = {}
        self._news = asyncio.Event()
        self._begun = 0
        self._leaving = False
        self._fixed_s = FIXED_S
        for name, fields in records.load_all().items():
            self._load(name, fields)

    def _load(self, name: str, fields: dict[str, object]) -> None:
        try:
            record = TargetRecord.from_fields(name, fields)
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(self._records.folder / name, str(error)) from error
        request = record.request
        if record.phase in (Phase.CREATED, Phase.PRECOPY, Phase.SWITCHOVER):
            record = replace(record, phase=Phase.ABORTED, failure=Reason.GOING_AWAY, message=RESTARTED)
            self._records.write(name, record.to_fields())
        session = Session(name, request.image, request.data_address, phase=record.phase)
        session.failure, session.message, session.phase_since = record.failure, record.message, record.since
        if record.phase not in ENDS:
            session.pause(Reason.GOING_AWAY, NOT_SERVED)
            log.error("guest_without_pages", session=name, vm=request.vm, phase=record.phase.name)
        self._entries[name] = Entry(request, session, record)

    # ----------------------------------------------------------------------------------------------- watching

    @property
    def closed(self) -> bool:
        """No more will come."""
        return self._leaving

    def all(self) -> Sequence[Session]:
        return [entry.session for entry in self._entries.values()]

    @property
    def begun(self) -> int:
        """Counts up with each new one."""
        return self._begun

    async def more(self, seen: int) -> None:
        """Returns once there are more than were seen."""
        while self._begun <= seen:
            await self._news.wait()

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise PageferryError(Reason.NO_SUCH_IMAGE, f"there is no session {name!r} here") from None

    # ------------------------------------------------------------------------------------------------- calls

    def start(self, request: StartRequest, token: bytes) -> Session:
        """At once; what comes of it shows in the session."""
        self._house.known(request.vm)
        known = self._entries.get(request.session)
        if known is not None:
            if known.request != request:
                raise PageferryError(
                    Reason.ALREADY_ATTACHED,
                    f"session {request.session} was started with other fields",
                    "give this one another name",
                )
            self._report_again(known, token)
            return known.session
        if self._leaving:
            raise PageferryError(Reason.GOING_AWAY, "this fault client is ending", "start the next one")
        for entry in self._entries.values():
            if entry.request.vm == request.vm and not entry.session.ended:
                raise PageferryError(
                    Reason.ALREADY_ATTACHED,
                    f"VM {request.vm} has the session {entry.session.name}, which has not ended",
                    "cancel that one, or wait for its end",
                )
        self._make_room()
        entry = self._begin(request, token)
        self._entries[request.session] = entry
        self._begun += 1
        self._news.set()
        self._news = asyncio.Event()
        return entry.session

    def _begin(self, request: StartRequest, token: bytes) -> Entry:
        record = TargetRecord(request, target=secrets.randbits(64) | 1, epoch=1)
        name, image, data = request.session, request.image, request.data_address
        if not request.control_address:
            restore = Restore(name, image, data, postcopy=request.postcopy)
            entry = Entry(request, restore, record)
            entry.driving = asyncio.create_task(self._restore(restore, request))
            return entry
        self._records.write(name, record.to_fields())
        entry = Entry(request, Session(name, image, data), record)
        ticket = self._ticket(entry, token)
        means = MoveMeans(self._house, self._records, entry, ticket)
        source = self._connect(request.control_address, ticket)
        entry.move = Move(entry.session, means, source, request.limits(), self._fixed_s)
        entry.driving = asyncio.create_task(self._drive(entry, entry.move))
        return entry

    def _ticket(self, entry: Entry, token: bytes) -> Ticket:
        record = entry.record
        bandwidth = entry.request.bandwidth_bytes_per_s
        return Ticket(entry.request.session, token, record.target, record.epoch, bandwidth)

    def switch_over(self, name: str) -> Session:
        entry = self._entry(name)
        if entry.move is None:
            raise PageferryError(Reason.WRONG_PHASE, f"session {name} is no move that is under way")
        entry.move.switch_over()
        return entry.session

    async def cancel(self, name: str, force_image: str = "", by: str = "") -> Session:
        """Once it is recorded, if that does not take long. With the image's name, of a guest that nobody
        here serves any more: LOST. PageferryError: the guest is here for good."""
        entry = self._entry(name)
        session = entry.session
        if force_image not in ("", session.image):
            raise PageferryError(
                Reason.BAD_REQUEST,
                f"session {name} is of image {session.image}, not {force_image}",
                "to force it, type the name of its image",
            )
        abandoned = not entry.working and session.may(Event.GIVEN_UP)
        if abandoned and force_image:
            self._give_up_pages(entry, by)
        elif session.phase not in (Phase.ABORTED, Phase.LOST) and not self._cancel(entry, "it was cancelled"):
            raise PageferryError(
                Reason.WRONG_PHASE,
                f"session {name} is in phase {session.phase.name}: its guest's memory is in two places",
                "give up its missing pages with the image's name" if abandoned else "let it come to its end",
            )
        try:
            async with asyncio.timeout(CANCEL_S):
                await session.over()
        except TimeoutError:
            log.info("cancel_goes_on", session=name)
        return session

    def _cancel(self, entry: Entry, message: str) -> bool:
        if entry.move is not None:
            return entry.move.give_up(Event.CANCELLED, Reason.CANCELLED, message)
        if not isinstance(entry.session, Restore) or not entry.session.cancel(Reason.CANCELLED, message):
            return False
        if entry.session.vm is None and entry.driving is not None:
            entry.driving.cancel()  # it waits for a hand-off
        elif entry.session.vm is not None and not entry.working:
            self._house.let_go(entry.session.vm)  # nobody follows it, who would
        return True

    def _give_up_pages(self, entry: Entry, by: str) -> None:
        """Those that have not come by now. PageferryError: that cannot be recorded."""
        session, message = entry.session, f"its missing pages were given up by {by}"
        log.warning("audit", what="given_up", session=session.name, image=session.image, by=by)
        if entry.request.control_address:
            lost = replace(entry.record, phase=Phase.LOST, failure=Reason.CANCELLED, message=message)
            self._records.write(session.name, lost.to_fields())
            entry.record = lost
        session.pauses.clear()
        session.fail(Event.GIVEN_UP, Reason.CANCELLED, message)
        if session.vm is not None:
            self._house.let_go(session.vm)

    # ------------------------------------------------------------------------------------------------ driving

    async def _drive(self, entry: Entry, move: Move) -> None:
        try:
            await move.run()
            if not move.session.ended:
                await Arrival(move).run()
                if entry.request.postcopy is not Postcopy.FORBID and move.session.figures.downtime_us:
                    self._fixed_s = move.session.figures.downtime_us / 1e6
            if move.heard:
                self._note_reported(entry)
        except Exception as error:  # noqa: BLE001  # other VMs, and this one's pages, go on without it
            move.session.pause(*why(move.session, error))
        finally:
            await move.let_go()

    async def _restore(self, restore: Restore, request: StartRequest) -> None:
        try:
            await self._house.follow(restore, await self._house.handoff(request.vm), request)
        except Exception as error:  # noqa: BLE001  # as above
            reason, message = why(restore, error)
            if restore.vm is None:
                restore.fail(Event.FAILED, reason, message)
            else:  # its pager runs on, and may have let the guest run
                restore.pause(reason, message)

    def _report_again(self, entry: Entry, token: bytes) -> None:
        """A predecessor has aborted it and found nobody to tell: the token's bearer has come again."""
        if entry.working or entry.record.reported or entry.session.phase is not Phase.ABORTED:
            return
        if not entry.request.control_address:
            return
        entry.record = replace(entry.record, epoch=entry.record.epoch + 1)
        source = self._connect(entry.request.control_address, self._ticket(entry, token))

        async def tell() -> None:
            try:
                if await report_aborted(entry.session, source):
                    self._note_reported(entry)
            finally:
                await source.close()

        entry.driving = asyncio.create_task(tell())

    def _note_reported(self, entry: Entry) -> None:
        entry.record = replace(entry.record, reported=True)
        try:
            self._records.write(entry.session.name, entry.record.to_fields())
        except PageferryError as error:  # it would be reported once more, which is no harm
            log.warning("not_recorded", session=entry.session.name, text=str(error))

    def _make_room(self) -> None:
        """The oldest that nobody needs any more are forgotten, those that still report last. PageferryError:
        there is no room."""
        idle = [name for name, entry in self._entries.items() if not entry.needed]
        idle.sort(key=lambda name: self._entries[name].working)
        while len(self._entries) >= SESSIONS_MAX:
            if not idle:
                raise PageferryError(Reason.BUSY, f"there are {SESSIONS_MAX} sessions", "wait for one to end")
            name = idle.pop(0)
            self._records.remove(name)
            driving = self._entries.pop(name).driving
            if driving is not None:
                driving.cancel()

    # ------------------------------------------------------------------------------------------------ the end

    async def leave(self, message: str, patience_s: float) -> None:
        """Gives up what may be given up, and returns when nobody needs this process any more: a guest that
        was accepted does until its last page has come, and the source has heard of it."""
        self._leaving = True
        self._news.set()
        needed: list[asyncio.Task[None]] = []
        reporting: list[asyncio.Task[None]] = []
        for entry in self._entries.values():
            if entry.driving is None or entry.driving.done():
                continue
            session = entry.session
            if session.ended or self._cancel(entry, message):
                reporting.append(entry.driving)
            else:
                needed.append(entry.driving)
                if entry.move is not None:
                    entry.move.leaving.set()
                log.warning(
                    "stays", session=session.name, phase=session.phase.name, because="its guest needs us"
                )
        if reporting:
            await asyncio.wait(reporting, timeout=patience_s)
        if needed:
            await asyncio.wait(needed)

    async def close(self) -> None:
        """Drivers end where they are."""
        driving = [entry.driving for entry in self._entries.values() if entry.working]
        tasks = [task for task in driving if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def why(session: Session, error: Exception) -> tuple[Reason, str]:
    """A driver has failed. A fault of ours is logged with all that has led to it."""
    cause = error
    while isinstance(cause, ExceptionGroup):
        cause = cause.exceptions[0]  # what comes after it comes of it
    if isinstance(cause, PageferryError):
        return cause.reason, str(cause)
    log.error("bug", session=session.name, exc_info=error)
    return Reason.BUG, f"its driver has failed: {type(cause).__name__}: {cause}"
