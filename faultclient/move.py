# SPDX-License-Identifier: Apache-2.0
"""The driver of one move, at the target.

    refusals, before anything moves -> attach -> rounds -> HandOver, the frozen map, arm -> load the state
    -> ACCEPTED, recorded durably -> arrival.py

Until ACCEPTED anything may end it: what cannot work, somebody who asks, the VMM's death. Then ABORTED is
recorded, and only then this VMM is killed (its memory holds half a guest) and the source told, which lets its
guest run again. From ACCEPTED on nothing ends it but the VMM's own end. Which is which, phases.py says.

No grpc in here, and no sockets: the source is an object that can be asked, the VMM one that obeys.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from faultclient.asking import Source, SourceFacts, patiently, report_aborted
from faultclient.handover import HandOver
from faultclient.orders import MovingPager, Orders
from faultclient.pager import EventKind, PagerEvent
from faultclient.rounds import FIXED_S, Limits, Rounds, Verdict
from faultclient.session import Postcopy, Session, look_on, with_remedy
from faultclient.vms import Vm
from pageferry.host.handoff import Handoff
from pageferry.host.vmm import Vmm, VmmFacts
from pageferry.layout import pc_layout
from pageferry.phases import ENDS, Event, Phase, Side, step
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log

# Before the guest is accepted, a source that cannot be reached for this long ends the move.
PATIENCE_S: Final = 30.0
LOOK_S: Final = 0.02
# A VMM that exits while it loads: so long is its adapter given to say why.
LAST_WORDS_S: Final = 1.0
RECORD_AGAIN_S: Final = 1.0
ROUND_MASK: Final = (1 << 32) - 1


class Means(Protocol):
    """What a move has to work with."""

    async def handoff(self) -> Handoff:
        """Once the VM has handed its memory over."""

    def give_back(self, handoff: Handoff) -> None:
        """It was not touched: another session may have it."""

    def adapter(self, handoff: Handoff) -> Vmm: ...

    async def open(self, handoff: Handoff) -> Vm:
        """Starts the pager; the hand-off is gone then, whether that worked or not."""

    def let_go(self, vm: Vm) -> None:
        """Closes the pager."""

    def record(
        self, session: Session, phase: Phase, failure: Reason | None = None, message: str = ""
    ) -> None:
        """On the disk when it returns. PageferryError: it is not."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    event: Event
    reason: Reason
    message: str


class Move:
    """run() takes it to its end; give_up() and switch_over() may come at any time meanwhile."""

    def __init__(
        self, session: Session, means: Means, source: Source, limits: Limits, fixed_s: float = FIXED_S
    ) -> None:
        self.session = session
        self.means = means
        self.source = source
        self.limits = limits
        self.fixed_s = fixed_s  # of a downtime: a guess, or what an earlier move took
        self.complete = asyncio.Event()
        self.vmm_gone = asyncio.Event()
        self.leaving = asyncio.Event()  # this process is told to end
        self.handed_over: HandOver | None = None
        self.heard = True  # by the source, how this has ended; False: it did not take the token
        self._adapter: Vmm | None = None
        self._orders: Orders | None = None
        self._at_once = asyncio.Event()  # hand over, converged or not
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._loading = False  # the state, until the end: a VMM may die of it
        self._taken = False  # the VM's memory is in our hands: it cannot be given to anybody else
        self._given_up: GivenUp | None = None
        self._driving: asyncio.Task[None] | None = None

    @property
    def adapter(self) -> Vmm:
        assert self._adapter is not None
        return self._adapter

    @property
    def orders(self) -> Orders:
        assert self._orders is not None
        return self._orders

    @property
    def pager(self) -> MovingPager:
        assert self.session.vm is not None
        return self.session.vm.pager

    @property
    def owes(self) -> bool:
        """When the session has ended, and the source may not have heard: there is a VMM to kill, or a guest
        stands still there. One that was never asked to hand over runs, whether it hears or not."""
        return self._taken or self.handed_over is not None

    # ------------------------------------------------------------------------------------------- from outside

    async def run(self) -> None:
        """Until the guest is accepted (the rest is arrival.py's), or never will be, and the source knows."""
        self._driving = asyncio.create_task(self._drive())
        try:
            await self._driving
        except asyncio.CancelledError:
            if self._given_up is None:
                raise
        except PageferryError as error:
            self._because(Event.FAILED, error.reason, str(with_remedy(error)))
        except Exception as error:  # noqa: BLE001  # a fault of ours must not leave a guest standing still
            log.error("bug", session=self.session.name, exc_info=error)
            self._because(Event.FAILED, Reason.BUG, f"{type(error).__name__}: {error}")
        finally:
            self._driving = None  # its error holds all that it came through, the connection to the source too
        if self.session.may(Event.CANCELLED):
            await self._abort()

    def give_up(self, event: Event, reason: Reason, message: str) -> bool:
        """False, and nothing has changed, once the guest is accepted, or the session has ended."""
        if not self.session.may(Event.CANCELLED):
            return False
        self._because(event, reason, message)
        if self._driving is not None:
            self._driving.cancel()
        return True

    def _because(self, event: Event, reason: Reason, message: str) -> None:
        """The first reason is the one that is told."""
        self._given_up = self._given_up or GivenUp(event, reason, message)

    def switch_over(self) -> None:
        """PageferryError: it is not in precopy."""
        if self.session.phase is not Phase.PRECOPY or self._given_up is not None:
            raise PageferryError(
                Reason.WRONG_PHASE,
                f"session {self.session.name} is in phase {self.session.phase.name}",
                "only a precopy can be told to hand over",
            )
        self._at_once.set()
        self._news.set()

    # ----------------------------------------------------------------------------------- what the pager tells

    def _take(self, event: PagerEvent) -> None:
        if self.session.poisoning.answered(event) or event.order_refused:
            return
        match event.kind:
            case EventKind.FAILED:
                if not self.give_up(Event.FAILED, event.reason or Reason.BUG, event.text):
                    self.session.note(event)
            case EventKind.VMM_GONE:
                self.vmm_gone.set()
                gone = (Event.VMM_GONE, Reason.NO_VMM, event.text)
                if self._loading:
                    asyncio.get_running_loop().call_later(LAST_WORDS_S, self.give_up, *gone)
                else:
                    self.give_up(*gone)
            case EventKind.PHASE:
                self._hear(Phase(event.value), cancel_requested=bool(event.page))
            case EventKind.POPULATED:
                self._news.set()
            case EventKind.COMPLETE:
                self.complete.set()
            case _:
                self.session.note(event)

    def _hear(self, phase: Phase, *, cancel_requested: bool) -> None:
        """What the source says; the target decides what comes of it."""
        if cancel_requested and not self.session.cancel_requested:
            self.session.cancel_requested = True
            self.session.tell()
            self.give_up(Event.CANCELLED, Reason.CANCELLED, "an operator has asked the source to cancel")
        if phase in (Phase.ABORTED, Phase.LOST):
            message = f"the source has ended the session: {phase.name}"
            if not self.give_up(Event.FAILED, Reason.WRONG_PHASE, message) and not self.session.ended:
                log.error("alarm", session=self.session.name, text=f"{message}, and the guest runs here")

    # ------------------------------------------------------------------------------------------------ the way

    async def _drive(self) -> None:
        await self._attach()
        if self.limits.postcopy is not Postcopy.AT_ONCE:
            await self._precopy()
        self.session.happen(Event.STOPPED)
        self.handed_over = HandOver(self.source, self.orders, self.limits.postcopy, self.session)
        state = await self.handed_over.received()
        self._loading = True
        await self.adapter.load_state(state)
        if self.vmm_gone.is_set():
            raise PageferryError(Reason.NO_VMM, "the VMM has exited")
        if self._given_up is not None:  # asked for while the adapter did not look up
            raise asyncio.CancelledError
        self.means.record(self.session, step(Side.TARGET, self.session.phase, Event.ACCEPTED))
        self.session.happen(Event.ACCEPTED)

    async def _attach(self) -> None:
        """The hand-off is there, both ends fit together, and the data port has let us in."""
        handoff = await self.means.handoff()
        try:
            if not handoff.shared:
                raise PageferryError(
                    Reason.UNSUPPORTED,
                    "private memory cannot be filled before the guest runs here",
                    "put the VM's RAM on a memfd or a tmpfs",
                )
            self._adapter = self.means.adapter(handoff)
            here = await self._adapter.attach(Side.TARGET)
            there = await patiently(self.session, self.source.facts, PATIENCE_S)
            compare(here, there)
        except BaseException:
            try:
                await self._close_adapter()  # a VMM may speak with one client alone: the next one's turn
            finally:
                self.means.give_back(handoff)
            raise
        self.session.machine = f"{here.name}, {here.machine}" if here.machine else here.name
        if here.below_4g_bytes:
            self.session.machine_layout = pc_layout(handoff.length_bytes, here.below_4g_bytes)
        for warning in here.warnings:
            log.warning("adapter", session=self.session.name, text=warning)
        self._taken = True
        self.session.vm = await self.means.open(handoff)
        self._orders = Orders(self.pager, self._take)
        self._looking = asyncio.create_task(look_on(self.session))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._orders.attached()
        except TimeoutError as error:
            text = self.session.message or f"the page server at {self.session.data_address} has not answered"
            raise PageferryError(self.session.paused or Reason.TOO_SLOW, text) from error
        self.session.happen(Event.ATTACHED)

    async def _precopy(self) -> None:
        """Until the guest may be stopped. PageferryError: it would never come to that."""
        rounds = Rounds(self.limits, self.pager.pages().total, time.monotonic(), self.fixed_s)
        verdict = Verdict.ROUND
        while verdict is not Verdict.HAND_OVER and not self._at_once.is_set():
            if verdict is Verdict.ROUND:
                answer = await self._round()
                rounds.read(time.monotonic(), answer.page)
                self._show(rounds, answer.value)
            else:
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()
            verdict = self._look(rounds)
            if verdict is Verdict.ABORT:
                raise PageferryError(Reason.TOO_SLOW, rounds.because, "allow postcopy, or give it longer")
        because = "it was asked for" if self._at_once.is_set() else rounds.because
        log.info("converged", session=self.session.name, rounds=rounds.number, because=because)

    async def _round(self) -> PagerEvent:
        try:
            async with asyncio.timeout(self.limits.progress_s):
                return await self.orders.round(open_new=True)
        except TimeoutError as error:
            text = self.session.message or "the page server has not settled a round"
            raise PageferryError(self.session.paused or Reason.TOO_SLOW, text) from error

    def _look(self, rounds: Rounds) -> Verdict:
        now_s, missing = time.monotonic(), self.orders.missing()
        fetched_bytes = self.pager.counters()["fetched_bytes_total"]
        verdict = rounds.look(now_s, missing=missing, fetched_bytes=fetched_bytes, paused=self.session.paused)
        downtime_s = rounds.downtime_s(now_s, missing)
        self.session.figures.downtime_us = int((downtime_s or 0) * 1e6)
        return verdict

    def _show(self, rounds: Rounds, as_of: int) -> None:
        figures = self.session.figures
        figures.round = as_of & ROUND_MASK
        figures.dirty_pages = rounds.named
        figures.dirty_pages_per_second = round(rounds.dirty_per_s)
        log.info("round", session=self.session.name, round=figures.round, pages=rounds.named)
        self.session.tell()

    # ------------------------------------------------------------------------------------------------- an end

    async def keep(self, event: Event, reason: Reason | None, message: str) -> None:
        """What this event leads to is on the disk when it returns: an end is told to nobody before."""
        phase = step(Side.TARGET, self.session.phase, event)
        while True:
            try:
                self.means.record(self.session, phase, reason, message)
                return
            except PageferryError as error:
                log.error("not_recorded", session=self.session.name, phase=phase.name, text=str(error))
                self.session.pause(error.reason, error.message)
            await asyncio.sleep(RECORD_AGAIN_S)

    async def _abort(self) -> None:
        """Recorded first; then the VMM is killed and the source told, neither after the other: a kill may
        take long, and the source's guest stands still meanwhile."""
        given_up = self._given_up or GivenUp(Event.FAILED, Reason.BUG, "it came to no end")
        await self.keep(given_up.event, given_up.reason, given_up.message)
        self.session.pauses.clear()
        self.session.fail(given_up.event, given_up.reason, given_up.message)
        self.close_pager()
        async with asyncio.TaskGroup() as tasks:
            reporting = tasks.create_task(report_aborted(self.session, self.source))
            if self._taken:
                tasks.create_task(self._kill())
        self.heard = reporting.result()

    def close_pager(self) -> None:
        """Nobody needs its pages any more, or it may never be armed."""
        if self._orders is not None and self.session.vm is not None:
            self.session.look()
            self._orders.close()
            self.means.let_go(self.session.vm)

    async def _kill(self) -> None:
        try:
            await self.adapter.kill()
        except Exception as error:  # noqa: BLE001  # whatever it is, the source has to hear of the end
            bug = None if isinstance(error, PageferryError) else error
            log.error("not_killed", session=self.session.name, text=str(error), exc_info=bug)
        self._taken = False

    async def let_go(self) -> None:
        """After the end."""
        if self._looking is not None:
            self._looking.cancel()
        if self._orders is not None:
            self._orders.close()
        await self._close_adapter()
        await self.source.close()

    async def _close_adapter(self) -> None:
        """What cannot be set back is logged: nobody depends on it any more."""
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            try:
                await adapter.close()
            except PageferryError as error:
                log.warning("adapter_not_closed", session=self.session.name, text=str(error))


def compare(here: VmmFacts, there: SourceFacts) -> None:
    """PageferryError: it could not run here. Before a page has moved."""
    if there.phase in ENDS:
        raise PageferryError(
            there.failure or Reason.WRONG_PHASE,
            f"the session has ended at the source: {there.phase.name} {there.message}".rstrip(),
            "make a new one",
        )
    if here.machine != there.machine_type:
        raise PageferryError(
            Reason.MISMATCH,
            f"the source is {there.machine or 'of no known kind'}; the target is {here.name}"
            + (f", {here.machine}" if here.machine else ""),
            f"start the target as the source, with -machine {there.machine_type}"
            if there.machine_type
            else "name the same kind of VM at both ends",
        )
