# SPDX-License-Identifier: Apache-2.0
"""All sessions of a page server: made, found again after a restart, told what the data port has seen."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pageferry.host.vmm import Vmm, VmmFacts
from pageferry.layout import pc_layout
from pageferry.limits import PAGE_BYTES, SESSIONS_MAX
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason
from pageferry.records import Records, unreadable
from pageferry.service.logs import log
from pageferry.service.metadata import Shown, not_allowed
from pageserver.dataplane import DataPlane, ServerEvent, ServerEventKind
from pageserver.poison import Poison
from pageserver.record import SourceRecord, Terms
from pageserver.session import Session
from pageserver.steps import Means
from pageserver.vm import Vm
from pageserver.vms import Vms


@dataclass(frozen=True, slots=True)
class Look:
    """What a VM's adapter has seen. `only_at_once`: why no round may be opened; empty: it may."""

    vmm: Vmm
    facts: VmmFacts
    only_at_once: str

    @property
    def machine(self) -> str:
        """As the contract has it."""
        return f"{self.facts.name}, {self.facts.machine}" if self.facts.machine else self.facts.name

    @property
    def message(self) -> str:
        return f"postcopy at once only: {self.only_at_once}" if self.only_at_once else ""


async def look(vm: Vm) -> Look:
    """PageferryError: it cannot be moved, and what to do about it. Nothing is left behind then."""
    vmm = vm.adapter()
    only_at_once = ""
    try:
        try:
            facts = await vmm.attach(Side.SOURCE)
        except PageferryError as error:
            if error.reason is not Reason.UNSUPPORTED:
                raise
            # Some of it does no harm to a guest that stands still before its first page is read.
            facts = await vmm.attach(Side.SOURCE, precopy=False)
            only_at_once = str(error)
        if facts.memory_bytes not in (0, vm.page_count * PAGE_BYTES):
            raise PageferryError(
                Reason.MISMATCH,
                f"{facts.name} has {facts.memory_bytes} bytes of memory, and hands over "
                f"{vm.page_count * PAGE_BYTES}",
                "put all of the guest's memory on the one file that the shim was given",
            )
    except BaseException:
        await vmm.close()
        raise
    for warning in facts.warnings:
        log.warning("vmm", vm=vm.name, text=warning)
    return Look(vmm, facts, only_at_once)


class Sessions:
    """`revision` grows with every change of any of them."""

    def __init__(self, plane: DataPlane, records: Records) -> None:
        self.revision = 0
        self._plane = plane
        self._records = records
        self._vms: Vms | None = None
        self._all: dict[str, Session] = {}
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self.poison = Poison(plane, self._poisoned)
        self._means = Means(plane, records, self._begin, self._changed, self._settled)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._all.values()))

    def named(self, name: str) -> Session:
        """NO_SUCH_IMAGE: there is none."""
        self.catch_up()
        if name not in self._all:
            raise PageferryError(Reason.NO_SUCH_IMAGE, f"there is no session {name!r} here")
        return self._all[name]

    def of_target(self, name: str, shown: Shown | None, *, to_look: bool = False) -> Session:
        """As the target that it is bound to; `to_look`: as one that has its token, attached or not.

        PageferryError: it is not, in the order of the data port.
        """
        self.catch_up()
        session = self._all.get(name)
        if session is None or shown is None or not shown.has(session.record.terms.token_sha256):
            raise not_allowed()
        if shown.session != name:
            raise PageferryError(Reason.BAD_REQUEST, f"the metadata is of session {shown.session!r:.80}")
        target, epoch = shown.target(), shown.epoch()
        if not to_look or session.record.target:
            session.check_target(target, epoch)
        return session

    # ---------------------------------------------------------------------------------------------- made anew

    async def create(self, terms: Terms, vms: Vms) -> Session:
        """The same terms give the same session. PageferryError: there is none."""
        if (known := self._known(terms)) is not None:
            return known
        async with self._free(terms, vms).looking:
            return self._known(terms) or await self._create(terms, vms)

    async def _create(self, terms: Terms, vms: Vms) -> Session:
        """A look takes as long as the VMM does: what held before it is asked once more."""
        vm = self._free(terms, vms)
        seen = await look(vm)
        try:
            self._learn_layout(vm, seen.facts)
            if vm.gone or self._free(terms, vms) is not vm:
                raise PageferryError(Reason.NO_VMM, f"the VMM of {vm.name} has exited", "start it again")
            self._known(terms)  # another image may have got a session of this name
            session = self._made(terms, vm, seen)
        except BaseException:
            await seen.vmm.close()
            raise
        self._changed()
        return session

    def _known(self, terms: Terms) -> Session | None:
        """PageferryError: it has other terms."""
        self.catch_up()
        known = self._all.get(terms.session)
        return None if known is None else self._again(known, terms)

    def _learn_layout(self, vm: Vm, facts: VmmFacts) -> None:
        if facts.below_4g_bytes:
            self.poison.learn_layout(vm.name, pc_layout(vm.page_count * PAGE_BYTES, facts.below_4g_bytes))

    def _again(self, known: Session, terms: Terms) -> Session:
        had = known.record.terms
        if replace(terms, token_sha256=had.token_sha256) != had:
            raise PageferryError(
                Reason.ALREADY_ATTACHED,
                f"session {terms.session} has other terms",
                "repeat the call as it was, or choose another id",
            )
        if terms.token_sha256 != had.token_sha256:
            known.replace_token(terms.token_sha256)
        return known

    def _free(self, terms: Terms, vms: Vms) -> Vm:
        """The VM of this image, which no session has."""
        if self._ending:
            raise PageferryError(Reason.GOING_AWAY, "this page server is ending", "move the VM later")
        self._make_room()
        for session in self:
            if session.image == terms.image and not session.ended:
                raise PageferryError(
                    Reason.ALREADY_ATTACHED,
                    f"{terms.image} is being moved by session {session.name}",
                    "cancel that one, or wait for its end",
                )
            if session.image == terms.image and not session.record.settled:
                raise PageferryError(
                    Reason.BUSY, f"{terms.image} is not given back yet by session {session.name}", "try again"
                )
        vm = vms.get(terms.image)
        if vm is None and vms.knows(terms.image):
            raise PageferryError(
                Reason.NO_VMM,
                f"no VMM has handed over as {terms.image}",
                "start it under the shim, with PAGEFERRY_SHIM_ROLE=track and that hand-off socket",
            )
        if vm is None:
            raise PageferryError(
                Reason.NO_SUCH_IMAGE,
                f"no VM has the name {terms.image!r:.80}",
                "name one of --vm; an image that does not change needs no session",
            )
        return vm

    def _made(self, terms: Terms, vm: Vm, seen: Look) -> Session:
        record = SourceRecord(
            terms=terms,
            spec=vm.spec,
            pid=vm.pid,
            mark=vm.mark,
            ran=seen.facts.running,
            machine=seen.machine,
            content_id=vm.content_id,
            page_count=vm.page_count,
            message=seen.message,
        )
        session = Session(record, self._means, vm, seen.vmm, precopy=not seen.only_at_once)
        session.begin()
        self._all[session.name] = session
        return session

    def _make_room(self) -> None:
        """The oldest of those whose end is done is forgotten."""
        if len(self._all) < SESSIONS_MAX:
            return
        for session in self:
            if session.record.settled:
                self._records.remove(session.name)
                del self._all[session.name]
                if session.at_gate:
                    self._plane.drop_session(session.name)
                return
        raise PageferryError(Reason.BUSY, f"{SESSIONS_MAX} sessions are here", "wait for the end of one")

    # ---------------------------------------------------------------------------------------- after a restart

    def recover(self, vms: Vms) -> None:
        """PageferryError: a record cannot be understood, and nothing has been done."""
        self._vms = vms
        records: list[SourceRecord] = []
        for name, fields in self._records.load_all().items():
            try:
                records.append(SourceRecord.from_fields(name, fields))
            except (KeyError, TypeError, ValueError) as error:
                raise unreadable(self._records.folder / f"{name}.json", repr(error)) from error
        for record in sorted(records, key=lambda one: one.phase_since):
            vm = None if record.settled else Vm.of_record(record)
            if vm is not None:
                vms.adopt(vm)
            session = Session(record, self._means, vm, recovered=True)
            self._all[session.name] = session
            log.info("recovered", session=session.name, image=session.image, phase=session.phase.name)
            if not record.settled:
                session.recover()

    # ------------------------------------------------------------------------------------------- what happens

    def catch_up(self) -> None:
        """Takes what the data port has to tell."""
        while (event := self._plane.event()) is not None:
            if event.kind is ServerEventKind.LOST:
                self.poison.found(event.image)
            session = self._all.get(event.session)
            if session is not None:
                try:
                    self._take(session, event)
                except PageferryError as error:  # of the disk, and no step was lost
                    log.error("not_recorded", session=session.name, text=str(error))

    def _take(self, session: Session, event: ServerEvent) -> None:
        match event.kind:
            case ServerEventKind.ATTACHED:
                session.attached(event.target, event.epoch, event.peer)
            case ServerEventKind.SUPERSEDED:
                session.superseded(event.epoch)
            case ServerEventKind.SILENT:
                session.silent()
            case ServerEventKind.ROUND:
                log.info(
                    "round", session=session.name, as_of=f"{event.value:#x}", dirty_pages=event.page_count
                )

    def _poisoned(self, image: str) -> None:
        for session in self:
            if session.image == image and not session.ended:
                session.tell()
        self._changed()

    def vmm_gone(self, vm: Vm) -> None:
        for session in self:
            if session.vm is vm:
                session.vmm_gone()
        self._tidy(vm)

    def vmm_complete(self, vm: Vm) -> None:
        """Its memory has arrived here."""
        self._tidy(vm)

    def _settled(self, name: str) -> None:
        vm = self._all[name].vm
        if vm is not None:
            self._tidy(vm)

    def _tidy(self, vm: Vm) -> None:
        """Lets a VM go that cannot be moved any more, and whose memory no session needs; or, of one that has
        arrived here, who has brought it."""
        needed = any(session.vm is vm and not session.record.settled for session in self)
        if self._vms is None or needed:
            return
        if vm.gone or not vm.served:
            self._vms.let_go(vm)
        else:
            self._vms.arrived(vm)

    # -------------------------------------------------------------------------------------------- its own end

    async def give_up(self) -> None:
        """No session is begun any more, those that are not handed over are given up; their guests run when
        this returns."""
        self._ending = True
        for session in self:
            session.fail(Reason.GOING_AWAY, "the page server is ending")
        while any(session.ended and not session.record.settled for session in self):
            await self._news.wait()

    async def end(self) -> None:
        """Gives up what can be, and waits for the others until no target needs pages of here."""
        await self.give_up()
        if waits := [session.name for session in self if session.given_away]:
            log.warning(
                "end_waits",
                sessions=" ".join(waits),
                because="their guests are handed over and need their memory: only SIGKILL ends it now",
            )
        while any(session.given_away for session in self):
            await self._news.wait()
        await self.give_up()

    async def close(self) -> None:
        """Nothing happens by itself any more."""
        for session in self:
            session.not_after()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------------------------------------------- means

    def _begin(self, what: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._beside(what, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # one that was cancelled before it began
        return task

    async def _beside(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  # one session's misfortune is not another's
            log.error("bug", what=what, text=str(error), exc_info=error)

    def _changed(self) -> None:
        self.revision += 1
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self, seen_revision: int, timeout_s: float) -> None:
        """Returns once `revision` is above it, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.revision <= seen_revision:
                    await self._news.wait()
